"""Trains the network of pyreflect on a fixed set of curves."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guidehall.science.pipeline import Context
from guidehall.science.reflectometry.cnn.curves import CurveSet
from guidehall.science.reflectometry.cnn.network import Cnn
from guidehall.science.reflectometry.cnn.params import FLOOR, CnnTraining, Normalisation
from guidehall.science.reflectometry.epochs import (
    EndedBy,
    EpochLoop,
    Split,
    autocast_type,
    from_bytes,
    to_bytes,
)
from guidehall.science.reflectometry.network_params import Channels, Extent

# Of a preview: both z in angstrom, both SLD in 1e-6/angstrom^2.
PREVIEW = "reflectometry.profile"
_PREVIEW_POINTS = 256
# Rows that are brought to the network's scale at once.
_PIECE = 4096


def fit_normalisation(curves: CurveSet, rows: np.ndarray) -> Normalisation:
    """Extents over these rows only: what is held back must not be known."""
    nr, sld = curves.nr[rows], curves.sld[rows]
    y = Extent.of(np.log10(np.maximum(nr[:, 1], np.float32(FLOOR))))
    return Normalisation(nr=Channels(x=Extent.of(nr[:, 0]), y=y), sld=Channels.of(sld))


class CnnTrainer:
    """Training of one network; its curves lie on the device as it sees them.

    Args:
        network: where training begins.
        curves: the whole set; `split` says which of them it is trained on.
        seed: of the order of curves and of dropout.
    """

    def __init__(
        self,
        network: Cnn,
        settings: CnnTraining,
        context: Context,
        curves: CurveSet,
        split: Split,
        normalisation: Normalisation,
        seed: int,
    ) -> None:
        self.network = network.to(context.device)
        self._context, self._batch = context, settings.batch_size
        self.autocast = autocast_type(settings.precision, context.device)
        self._device_type = torch.device(context.device).type
        self._x, self._y = _normalised(curves, normalisation, context.device)
        self._thin = slice(None, None, math.ceil(curves.sld.shape[2] / _PREVIEW_POINTS))
        self._shown = curves.sld[split.validation[0]]
        self._normalisation = normalisation
        self._training, self._validation = (
            torch.from_numpy(rows).to(context.device) for rows in (split.training, split.validation)
        )
        self.loop = EpochLoop(
            context,
            self.network,
            settings,
            len(split.training),
            seed,
            lambda rows: self._loss(self._training[rows]),
            self._validation_loss,
            to_bytes,
            preview=self._look,
            preview_kind=PREVIEW,
            # In float32 the losses are those of pyreflect, digit by digit.
            fused=self.autocast is not None,
        )

    def run(self) -> EndedBy:
        """Trains to the end, or to where it was asked to end; see `EpochLoop.run`."""
        saved = self._context.checkpoint.load()
        if saved is not None:
            self.loop.restore(from_bytes(saved))
        return self.loop.run()

    def _loss(self, rows: Tensor) -> Tensor:
        """Mean squared error of z and SLD alike, as pyreflect has it, over these rows [B] of the set."""
        return functional.mse_loss(self._answer(rows), self._y[rows])

    def _answer(self, rows: Tensor) -> Tensor:
        """Normalised (z, SLD) [B, 2, M] for these rows [B] of the set."""
        with torch.autocast(
            self._device_type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        ):
            answer: Tensor = self.network(self._x[rows])
        return answer.float()

    def _look(self) -> dict[str, list[float]]:
        """One profile of the validation, always the same one, and what the network makes of it."""
        scale = self._normalisation.sld
        (z, sld), thin = self._answer(self._validation[:1])[0].double().cpu(), self._thin
        return {
            "z": self._shown[0, thin].tolist(),
            "sld": self._shown[1, thin].tolist(),
            "predicted_z": (z[thin] * scale.x.span + scale.x.min).tolist(),
            "predicted_sld": (sld[thin] * scale.y.span + scale.y.min).tolist(),
        }

    def _validation_loss(self) -> float:
        pieces = torch.split(self._validation, self._batch)
        return sum(self._loss(rows).item() * len(rows) for rows in pieces) / len(self._validation)


def _normalised(curves: CurveSet, scale: Normalisation, device: str) -> tuple[Tensor, Tensor]:
    """Network inputs [N, L] and answers [N, 2, M] on the device."""
    x = torch.empty(curves.nr.shape[0], curves.nr.shape[2], device=device)
    y = torch.empty(curves.sld.shape, device=device)
    for start in range(0, len(x), _PIECE):
        rows = slice(start, start + _PIECE)
        r = torch.from_numpy(curves.nr[rows, 1]).to(device).clamp_min(FLOOR)
        x[rows] = (r.log10() - scale.nr.y.min) / scale.nr.y.span
        profiles = torch.from_numpy(curves.sld[rows]).to(device)
        for channel, extent in enumerate((scale.sld.x, scale.sld.y)):
            y[rows, channel] = (profiles[:, channel] - extent.min) / extent.span
    return x, y
