"""What the parameters of networks that are trained in epochs on fixed sets share. Needs no torch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from guidehall.science.pipeline import MODEL_NAME, refuse_field
from guidehall.science.reflectometry.params import Params

# No curve or profile holds larger numbers.
LARGEST = 1e6


class Extent(Params):
    """Least and largest value: what is brought to 0 and to 1."""

    min: float = Field(title="Least", ge=-LARGEST, le=LARGEST)
    max: float = Field(title="Largest", ge=-LARGEST, le=LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> Extent:
        if self.max < self.min:
            refuse_field(self, ["max"], self.max, f"must not be below min, {self.min}")
        return self

    @classmethod
    def of(cls, values: np.ndarray) -> Extent:
        """That of `values`."""
        return cls(min=float(values.min()), max=float(values.max()))

    @property
    def span(self) -> float:
        """The distance, or 1 where nothing varies: no value may become NaN."""
        return self.max - self.min or 1.0


class Channels(Params):
    """Extents of the two rows of a curve: q and log10 R, or z and SLD."""

    x: Extent
    y: Extent

    @classmethod
    def of(cls, curves: np.ndarray) -> Channels:
        """Those of curves [N, 2, L]."""
        return cls(x=Extent.of(curves[:, 0]), y=Extent.of(curves[:, 1]))


class EpochTraining(Params):
    """How long and how a network is trained."""

    epochs: int = Field(10, title="Epochs", description="It is validated after each.", ge=1, le=10_000)
    batch_size: int = Field(32, title="Curves per step", ge=1, le=4096)
    optimiser: Literal["adam", "adamw"] = Field("adam", title="Optimiser")
    learning_rate: float = Field(2.15481e-5, title="Learning rate", gt=0, le=1)
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        title="Learning rate over time",
        description="constant, as pyreflect has it; or rising, then falling to 1 % along half a cosine.",
    )
    weight_decay: float = Field(2.6324e-5, title="Weight decay", ge=0, le=1)
    gradient_limit: float = Field(0.0, title="Largest gradient", description="0 for any.", ge=0, le=1e6)
    patience: int = Field(
        0, title="Epochs without improvement before it ends", description="0 for any number.", ge=0, le=10_000
    )
    checkpoint_epochs: int = Field(
        0,
        title="Epochs between checkpoints",
        description="Beside those that are made about once a minute; 0 for none.",
        ge=0,
        le=10_000,
    )


def model_name(default: str) -> Any:
    """The field of a pipeline that publishes a model."""
    return Field(
        default,
        title="Model name",
        description="Each run adds a version to it.",
        pattern=f"^{MODEL_NAME.pattern}$",
    )
