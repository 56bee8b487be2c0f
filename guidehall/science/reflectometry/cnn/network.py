"""The network of pyreflect, weight for weight: convolutions over log10 R, then one dense layer.

Its tensors have the names and shapes of `pyreflect.models.cnn.CNN`, so that weights go both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guidehall.science.pipeline import UserError

_ALLOWED = "weights of the network of pyreflect: layers.0 to layers.N and linear1"


class CnnShape(NamedTuple):
    """What fixes the shapes of all weights.

    Attributes:
        layers: convolutions.
        width: channels of the last one; the others grow evenly towards it from 1.
        kernel: points under a convolution, odd.
        points: L, of a reflectivity curve.
        profile_points: M, of a profile.
    """

    layers: int
    width: int
    kernel: int
    points: int
    profile_points: int


class Cnn(nn.Module):
    """Normalised log10 R [B, L] to normalised (z, SLD) [B, 2, M]."""

    def __init__(self, shape: CnnShape, dropout: float = 0.0) -> None:
        super().__init__()
        self._profile_points = shape.profile_points
        self.layers = nn.ModuleList()
        step, width = (shape.width - 1) / shape.layers, 1.0
        for index in range(shape.layers):
            last = index == shape.layers - 1
            into = int(width + 0.5)
            out = shape.width if last else int(width + step + 0.5)
            # Every second one drops whole channels.
            drop = nn.Dropout1d(dropout) if index % 2 == 1 and not last else nn.Dropout(dropout)
            self.layers.extend(
                [
                    nn.Conv1d(into, out, shape.kernel, padding=shape.kernel // 2),
                    nn.BatchNorm1d(out),
                    nn.ReLU(inplace=True),
                    drop,
                ]
            )
            width += step
        self.linear1 = nn.Linear(shape.width * shape.points, 2 * shape.profile_points)

    def forward(self, curves: Tensor) -> Tensor:
        x = curves[:, None, :]
        for layer in self.layers:
            x = layer(x)
        answer: Tensor = self.linear1(x.flatten(1))
        return answer.view(-1, 2, self._profile_points)


def empty_network(shape: CnnShape) -> Cnn:
    """Names and shapes without memory, so that a description alone cannot ask for gigabytes."""
    with torch.device("meta"):
        return Cnn(shape)


def shape_of(weights: Mapping[str, Tensor], field: str = "inputs.weights") -> CnnShape:
    """The network that weights belong to, told from their shapes.

    Raises:
        UserError: blames `field`; they are those of no such network.
    """
    convolutions = [name for name, tensor in weights.items() if tensor.dim() == 3]
    layers = len(convolutions)
    last = weights.get(f"layers.{4 * (layers - 1)}.weight")
    dense = weights.get("linear1.weight")
    if not 1 <= layers <= 24 or last is None or last.dim() != 3 or dense is None or dense.dim() != 2:
        raise UserError(field, "other tensors", _ALLOWED)
    width, kernel = last.shape[0], last.shape[2]
    if dense.shape[1] % max(width, 1) or dense.shape[0] % 2 or kernel % 2 == 0 or 0 in dense.shape:
        raise UserError(field, f"linear1.weight: shape {list(dense.shape)}", _ALLOWED)
    return CnnShape(layers, width, kernel, dense.shape[1] // width, dense.shape[0] // 2)
