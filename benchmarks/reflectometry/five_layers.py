"""The five-layer film as the groups share it: prior, points, resolution, and a network trained once."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidehall.science.pipeline import LocalContext
from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.draw import Draw, Seeds
from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_FREE_PARAMETERS,
    LEGACY_POINTS,
    LEGACY_PROFILE_POINTS,
    LEGACY_RELATIVE_SIGMA,
    legacy_probe,
    legacy_q,
    legacy_stack,
)
from guidehall.science.reflectometry.network import Network, Seen
from guidehall.science.reflectometry.params import Noise, NrSldParams, Range, Training, TrainingProbe
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import Resolution, resolution
from guidehall.science.reflectometry.training import Trainer

SEED = 3
# Not of the repository; the refinement starts from the network that is kept here.
CACHE = Path(__file__).parent.parent / ".cache"
# Films of test, and of the limits that profiles are normalised by; the trainer draws its own from SEED.
_TEST_SEED, _LIMITS_SEED = 77, 78
LIMIT_CURVES = 3200


def probe() -> TrainingProbe:
    """Whole curves with the resolution of refl1d."""
    return legacy_probe().model_copy(update={"resolution_mode": "refl1d", "partial_curves": 0.0})


def prior() -> Prior:
    """18 free parameters."""
    return Prior(legacy_stack(), probe())


def sigma() -> np.ndarray:
    """[308], one standard deviation of q."""
    return LEGACY_RELATIVE_SIGMA * legacy_q()


def seen() -> Resolution:
    """Of curves at the points of pyreflect, by the rule of refl1d."""
    return resolution(legacy_q(), sigma(), "refl1d")


def films(count: int, seed: int) -> Tensor:
    """[count, 18] points of the prior's cube."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, len(prior().free), generator=generator, dtype=torch.float64)


def test_films(count: int) -> Tensor:
    """Films that no training draws, [count, 18]."""
    return films(count, _TEST_SEED)


def profiles(unit: Tensor) -> tuple[Tensor, Tensor]:
    """z from 0 at the substrate's side and SLD, [B, 900] each, sampled as pyreflect does."""
    one = prior()
    media = one.films(one.values(unit)).reversed()
    z, sld = engine.sampled_profile(media, media.sld, LEGACY_PROFILE_POINTS)
    return z - z[:, :1], sld


@dataclass(frozen=True)
class Limits:
    """What brings z and SLD of training films to 0..1."""

    z: float
    sld_low: float
    sld_high: float

    @classmethod
    def of_training(cls) -> Limits:
        """Of films of their own, neither of test nor of validation."""
        z, sld = profiles(films(LIMIT_CURVES, _LIMITS_SEED))
        return cls(float(z.max()), float(sld.min()), float(sld.max()))


def params(steps: int) -> NrSldParams:
    """The network of the benchmarks: 2.6 million weights, each step on 128 films that it never saw."""
    return NrSldParams(
        stack=legacy_stack(),
        probe=probe(),
        noise=Noise(relative_error=0.0, counts=Range(min=1e15, max=1e15)),
        training=Training(
            epochs=10,
            steps_per_epoch=max(1, steps // 10),
            batch_size=128,
            learning_rate=1e-3,
            width=384,
            depth=4,
            validation_curves=256,
            checkpoint_epochs=1000,
        ),
    )


@dataclass(frozen=True)
class Trained:
    """A network, and what it cost."""

    network: Network
    cpu_seconds: float
    digest: str
    size: int


def train(steps: int) -> Trained:
    """From nothing; the network is kept for other groups.

    The digest is SHA-256 over the films of validation and of test, over the first films of training and over
    the limits of normalisation.
    """
    chosen = params(steps)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        trainer = Trainer(chosen, LocalContext(folder, seed=SEED), None)
        trainer.run()
        seconds = time.process_time() - start
    limits = Limits.of_training()
    digest = hashlib.sha256()
    first = Draw(chosen, trainer.prior, Seeds.of(SEED).training, "cpu").curves(chosen.training.batch_size)
    for unit in (first.unit, trainer.validation.unit, test_films(2000)):
        digest.update(unit.numpy().tobytes())
    digest.update(np.array([limits.z, limits.sld_low, limits.sld_high]).tobytes())
    path = _file(steps)
    path.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in trainer.network.state_dict().items()}, path)
    return Trained(trainer.network, seconds, digest.hexdigest(), path.stat().st_size)


def trained_network(steps: int) -> Network:
    """The network that `train` kept; trained now where there is none."""
    if not _file(steps).exists():
        return train(steps).network
    training = params(steps).training
    network = Network(LEGACY_POINTS, LEGACY_FREE_PARAMETERS, training.width, training.depth)
    network.load_state_dict(load_file(_file(steps)))
    return network.eval()


def _file(steps: int) -> Path:
    return CACHE / f"five-layers-{steps}.safetensors"


@torch.no_grad()
def answer(network: Network, r: Tensor) -> Tensor:
    """[B, 308] curves, errors not told, to points of the prior's cube, [B, 18]."""
    relative = torch.full((len(r),), LEGACY_RELATIVE_SIGMA)
    found: Tensor = network(Seen.whole(r, None, relative))
    return found.double()
