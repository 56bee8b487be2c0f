"""The manifest: everything there is to know about a model beside its weights."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

MAX_MANIFEST_BYTES = 1 << 20
MAX_EXAMPLE_VALUES = 20_000
MAX_RANK = 8

# Open Inference Protocol data type -> numpy. Sciences speak only these.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dimension = Annotated[int, Field(ge=-1, le=1 << 31)]


class InvalidModel(ValueError):
    """A model that must not be served. The message may be shown to anybody."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(_Document):
    """Shape and meaning of a named tensor.

    The first dimension is the batch. -1 marks a free dimension.
    """

    name: Name
    datatype: str
    shape: tuple[Dimension, ...] = Field(min_length=1, max_length=MAX_RANK)
    unit: str = Field(default="", max_length=64)
    description: str = Field(default="", max_length=2000)
    optional: bool = False

    @field_validator("datatype")
    @classmethod
    def _known_datatype(cls, value: str) -> str:
        if value not in DATATYPES:
            raise ValueError(f"must be one of {', '.join(DATATYPES)}")
        return value

    def admits(self, array: np.ndarray) -> bool:
        """Whether `array` has this data type and a shape that fits."""
        return (
            array.dtype == DATATYPES[self.datatype]
            and array.ndim == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, array.shape, strict=True))
        )


class ExampleArray(_Document):
    """A small array in JSON: row-major values, null for NaN."""

    shape: tuple[Annotated[int, Field(ge=0, le=MAX_EXAMPLE_VALUES)], ...] = Field(max_length=MAX_RANK)
    values: tuple[float | None, ...] = Field(max_length=MAX_EXAMPLE_VALUES)

    @model_validator(mode="after")
    def _complete(self) -> ExampleArray:
        if math.prod(self.shape) != len(self.values):
            raise ValueError(f"shape {list(self.shape)} does not hold {len(self.values)} values")
        return self

    @classmethod
    def of(cls, array: np.ndarray) -> ExampleArray:
        """The JSON form of `array`."""
        values = (float(value) for value in np.asarray(array, dtype=np.float64).ravel())
        return cls(shape=array.shape, values=tuple(None if math.isnan(value) else value for value in values))

    def array(self, datatype: str) -> np.ndarray:
        """The array, in the numpy type of an Open Inference Protocol `datatype`."""
        values = np.array([np.nan if value is None else value for value in self.values], dtype=np.float64)
        return values.reshape(self.shape).astype(DATATYPES[datatype])


class Example(_Document):
    """Inputs with the outputs they must give; loading a model checks it."""

    inputs: dict[Name, ExampleArray] = Field(min_length=1)
    outputs: dict[Name, ExampleArray] = Field(min_length=1)
    # Between devices and library versions, float32 networks agree to about this much.
    relative_tolerance: float = Field(default=1e-3, gt=0, le=0.1)
    absolute_tolerance: float = Field(default=1e-6, ge=0)

    @classmethod
    def of(
        cls, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], **tolerances: float
    ) -> Example:
        """An example made of arrays."""
        return cls(
            inputs={name: ExampleArray.of(array) for name, array in inputs.items()},
            outputs={name: ExampleArray.of(array) for name, array in outputs.items()},
            **tolerances,
        )


class Provenance(_Document):
    """Where a model comes from."""

    # Resource name of the job that trained it; empty outside the platform.
    job: str = ""
    # Dataset versions it was trained on, by role.
    dataset_versions: dict[str, str] = Field(default_factory=dict)
    seed: int = Field(ge=0, lt=1 << 53)
    software: dict[str, str] = Field(default_factory=dict)


class Manifest(_Document):
    """A model's description, immutable like the weights it belongs to."""

    format_version: int = Field(default=1, ge=1, le=1)
    science: Name
    pipeline: Name
    # Key in the registry, such as "reflectometry.physical/1".
    architecture: Name
    # What the architecture needs to be built; it checks them itself.
    arguments: dict[str, JsonValue]
    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=32)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=32)
    metrics: dict[str, float] = Field(default_factory=dict)
    provenance: Provenance
    weights_sha256: Digest
    example: Example

    @classmethod
    def from_json(cls, data: bytes | str) -> Manifest:
        """Reads a manifest.

        Raises:
            InvalidModel: too large, not JSON, or not a manifest of a format known here.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidModel(f"manifest: got {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InvalidModel(_first_fault(error)) from None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Manifest:
        """Reads a manifest that is parsed JSON already, whole numbers possibly as floats.

        Raises:
            InvalidModel: not a manifest of a format known here.
        """
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise InvalidModel(_first_fault(error)) from None

    def to_json(self) -> bytes:
        """The manifest as JSON.

        Raises:
            InvalidModel: larger than `from_json` would read.
        """
        data = self.model_dump_json(indent=1).encode()
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidModel(f"manifest: got {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        return data


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"manifest.{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def sha256(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def software_versions(packages: Sequence[str] = ("guidehall", "numpy", "torch")) -> dict[str, str]:
    """Installed versions of `packages` and of Python, found without importing them."""
    found = {package: _installed_version(package) for package in packages}
    return {"python": platform.python_version()} | {
        name: version for name, version in found.items() if version
    }


@cache
def _installed_version(package: str) -> str:
    """Empty for what is not installed. Reading it takes longer than many a job."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
