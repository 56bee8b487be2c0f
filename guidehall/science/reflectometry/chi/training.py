"""Trains the autoencoder, then the perceptron on its latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guidehall.science.pipeline import Context
from guidehall.science.reflectometry.chi.network import ChiNetwork
from guidehall.science.reflectometry.chi.params import ChiParams
from guidehall.science.reflectometry.chi.predictor import ChiArguments, ChiPredictor, normalised
from guidehall.science.reflectometry.epochs import EpochLoop, Split, from_bytes, to_bytes
from guidehall.science.reflectometry.network_params import Channels, EpochTraining, Extent
from guidehall.science.reflectometry.params import EpochLosses

# Of the training's validation profiles, so many are reconstructed as well as a typical one.
_TYPICAL = 0.99


@dataclass(frozen=True)
class ChiSeeds:
    """Independent seeds for what a run draws."""

    network: int
    split: int
    autoencoder: int
    perceptron: int

    @classmethod
    def of(cls, seed: int) -> ChiSeeds:
        """All of them from the seed of the job."""
        # Apart from the seeds of a network that is trained in the same job.
        words = np.random.SeedSequence([seed, 1]).generate_state(4, np.uint64)
        return cls(*(int(word) for word in words))


class ChiTrainer:
    """Training of both networks; the profiles lie on the device as they see them.

    Args:
        profiles: float32 [N, 2, M], z and SLD.
        chi: float64 [N, C].
        stoppable: whether to end early when that is desired.
    """

    def __init__(
        self,
        params: ChiParams,
        context: Context,
        profiles: np.ndarray,
        chi: np.ndarray,
        split: Split,
        stoppable: bool,
    ) -> None:
        self._params, self._context, self._split, self._stoppable = params, context, split, stoppable
        self._seeds = ChiSeeds.of(context.seed)
        # What is held back must not be known.
        self._channels = Channels.of(profiles[split.training])
        self._extents = tuple(Extent.of(column) for column in chi[split.training].T)
        device = context.device
        self._profiles, self._chi = profiles, chi
        self._x = normalised(profiles, self._channels).to(device)
        low, span = (
            np.array([getattr(extent, name) for extent in self._extents]) for name in ("min", "span")
        )
        self._y = torch.from_numpy(2.0 * (chi - low) / span - 1.0).float().to(device)
        self._training, self._validation = (
            torch.from_numpy(rows).to(device) for rows in (split.training, split.validation)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seeds.network)
            network = ChiNetwork(profiles.shape[2], params.latent_dim, chi.shape[1])
        self.network = network.to(device)
        self.losses: dict[str, list[EpochLosses]] = {}
        self._finished: dict[str, Any] = {}

    def run(self) -> bool:
        """Trains to the end, leaving the best networks. Returns whether it was stopped early.

        A stop ends the autoencoder early and leaves the perceptron its time: without it there is no model.

        Raises:
            JobCancelled, JobPaused: as the owner desired; paused with a checkpoint.
            UserError: the loss stopped being a number.
        """
        data = self._context.checkpoint.load()
        saved: dict[str, Any] = {} if data is None else from_bytes(data)
        if "finished" in saved:
            self._finished = saved["finished"]
            self.network.autoencoder.load_state_dict(self._finished["weights"])
            self.losses["autoencoder"] = [
                EpochLosses.model_validate(item) for item in self._finished["losses"]
            ]
            stopped = bool(self._finished["stopped"])
        else:
            stopped = self._train_autoencoder(saved.get("loop"))
        perceptron_stopped = self._train_perceptron(
            saved.get("loop") if "finished" in saved else None, self._stoppable and not stopped
        )
        return stopped or perceptron_stopped

    def _train_autoencoder(self, state: dict[str, Any] | None) -> bool:
        settings = self._params.autoencoder
        network = self.network.autoencoder

        def loss(rows: Tensor) -> Tensor:
            return network.loss(self._x[self._training[rows]], settings.divergence, noise=True)

        def validation_loss() -> float:
            return network.loss(self._x[self._validation], settings.divergence, noise=False).item()

        loop = self._loop("autoencoder", settings, loss, validation_loss, self._stoppable)
        if state is not None:
            loop.restore(state)
        stopped = loop.run() == "stop"
        self.losses["autoencoder"] = loop.losses
        self._finished = {
            "weights": network.state_dict(),
            "losses": [item.model_dump() for item in loop.losses],
            "stopped": stopped,
        }
        return stopped

    def _train_perceptron(self, state: dict[str, Any] | None, stoppable: bool) -> bool:
        with torch.no_grad():
            latent = self.network.autoencoder.eval()(self._x)[0]
        network = self.network.perceptron

        def loss(rows: Tensor) -> Tensor:
            chosen = self._training[rows]
            return functional.mse_loss(network(latent[chosen]), self._y[chosen])

        def validation_loss() -> float:
            return functional.mse_loss(network(latent[self._validation]), self._y[self._validation]).item()

        loop = self._loop("perceptron", self._params.perceptron, loss, validation_loss, stoppable)
        if state is not None:
            loop.restore(state)
        stopped = loop.run() == "stop"
        self.losses["perceptron"] = loop.losses
        return stopped

    def _loop(
        self, name: str, settings: EpochTraining, loss: Any, validation_loss: Any, stoppable: bool
    ) -> EpochLoop:
        def pack(state: dict[str, Any]) -> bytes:
            return to_bytes({"loop": state} | ({"finished": self._finished} if self._finished else {}))

        module = getattr(self.network, name)
        seed = getattr(self._seeds, name)
        return EpochLoop(
            self._context,
            module,
            settings,
            len(self._training),
            seed,
            loss,
            validation_loss,
            pack,
            phase=name,
            field=name,
            stoppable=stoppable,
        )

    def predictor(self) -> ChiPredictor:
        """The trained model on the CPU, with intervals as wide as its errors on the validation profiles."""
        rows, level = self._split.validation, self._params.level
        plain = ChiArguments(
            profile_points=self._profiles.shape[2],
            latent_dim=self._params.latent_dim,
            profiles=self._channels,
            chi=self._extents,
        )
        answer = ChiPredictor(plain, self.network).answer(self._profiles[rows])
        errors = np.sort(np.abs(answer["chi"] - self._chi[rows]), axis=0)
        # The quantile that holds the level for one more profile; of few profiles, the largest error.
        rank = min(math.ceil((len(rows) + 1) * level), len(rows)) - 1
        arguments = plain.model_copy(
            update={
                "half_widths": tuple(float(width) for width in errors[rank]),
                "level": level,
                "reconstruction_limit": float(np.quantile(answer["reconstruction_error"], _TYPICAL)),
            }
        )
        return ChiPredictor(arguments, self.network)
