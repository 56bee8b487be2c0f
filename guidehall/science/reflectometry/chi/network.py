"""The networks: weight for weight those of pyreflect, a variational autoencoder and a perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from guidehall.science.pipeline import UserError

_ENCODER = (500, 300, 100)
_DECODER = (72, 200, 300, 500)
_PERCEPTRON = (400, 300, 200, 100, 80)
# Beyond these, the spread of the latent space would overflow.
_LOG_VARIANCES = (-20.0, 10.0)


def _layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        parts += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Encoder(nn.Module):
    """Normalised profiles [B, 2 M] to mean and log variance of the latent space, each [B, D]."""

    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layers((size, *_ENCODER)), nn.ReLU())
        self.linear2 = nn.Linear(_ENCODER[-1], latent)
        self.linear3 = nn.Linear(_ENCODER[-1], latent)

    def forward(self, profiles: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(profiles)
        return self.linear2(x), self.linear3(x).clamp(*_LOG_VARIANCES)


class Decoder(nn.Module):
    """Latent [B, D] to normalised profiles [B, 2 M], each number within 0..1."""

    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.layers = _layers((latent, *_DECODER, size))

    def forward(self, latent: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(latent))


class Autoencoder(nn.Module):
    """Encoder and decoder; draws from the latent space only to be trained."""

    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, latent)
        self.decoder = Decoder(size, latent)

    def forward(self, profiles: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the latent space [B, D], and what is decoded from it [B, 2 M]."""
        mean: Tensor = self.encoder(profiles)[0]
        return mean, self.decoder(mean)

    def loss(self, profiles: Tensor, divergence: float, noise: bool) -> Tensor:
        """Mean squared error of the profiles, plus the weighted divergence from a normal distribution.

        Args:
            noise: draw from the latent space instead of taking its mean.
        """
        mean, log_variance = self.encoder(profiles)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if noise else mean
        error = (self.decoder(latent) - profiles).square().mean()
        apart = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(dim=1).mean()
        found: Tensor = error + divergence * apart
        return found


class Perceptron(nn.Module):
    """Latent [B, D] to normalised chi [B, C]."""

    def __init__(self, latent: int, outputs: int) -> None:
        super().__init__()
        self.mlp = _layers((latent, *_PERCEPTRON, outputs))

    def forward(self, latent: Tensor) -> Tensor:
        answer: Tensor = self.mlp(latent)
        return answer


class ChiNetwork(nn.Module):
    """Both networks.

    Args:
        points: M, of a profile.
        latent: D.
        outputs: C, how many chi.
    """

    def __init__(self, points: int, latent: int, outputs: int) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(2 * points, latent)
        self.perceptron = Perceptron(latent, outputs)


def empty_chi_network(points: int, latent: int, outputs: int) -> ChiNetwork:
    """Names and shapes without memory, so that a description alone cannot ask for gigabytes."""
    with torch.device("meta"):
        return ChiNetwork(points, latent, outputs)


def autoencoder_shape(weights: Mapping[str, Tensor], field: str) -> tuple[int, int]:
    """(M, D) of an autoencoder of pyreflect.

    Raises:
        UserError: blames `field`; the weights are those of no such network.
    """
    first, mean = weights.get("encoder.layers.0.weight"), weights.get("encoder.linear2.weight")
    if first is None or mean is None or first.dim() != 2 or mean.dim() != 2 or first.shape[1] % 2:
        raise UserError(field, "other tensors", "weights of the VariationalAutoencoder of pyreflect")
    return first.shape[1] // 2, mean.shape[0]


def perceptron_outputs(weights: Mapping[str, Tensor], field: str) -> int:
    """C of a perceptron of pyreflect.

    Raises:
        UserError: blames `field`; the weights are those of no such network.
    """
    last = weights.get(f"mlp.{2 * len(_PERCEPTRON)}.weight")
    if last is None or last.dim() != 2:
        raise UserError(field, "other tensors", "weights of deep_MLP of pyreflect")
    return last.shape[0]
