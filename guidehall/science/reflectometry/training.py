"""The training loop: reproducible from its seed, resumable from its checkpoint."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidehall.science.pipeline import Context, UserError, obey
from guidehall.science.reflectometry.draw import Curves, Draw, Seeds
from guidehall.science.reflectometry.epochs import cosine_share, set_rate
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.network import Network, Seen, compress
from guidehall.science.reflectometry.params import EpochLosses, NrSldParams
from guidehall.science.reflectometry.prior import Prior

# Curves that the scale of the network's input comes from.
_STANDARD_CURVES = 512
# Long epochs, too, must be seen to go on.
_REPORT_STEPS = 10
_GRADIENT_LIMIT = 1.0
# Of a preview: z in angstrom, both SLD in 1e-6/angstrom^2.
PREVIEW = "reflectometry.profile"
# Weights of the parameters and of the SLD profile, both about 1 for a network that knows nothing.
_PARAMETER_WEIGHT = 1.0
_PROFILE_WEIGHT = 1.0
_PROFILE_POINTS = 64
# Weight of the mean |log10 R| between the true curve and that of the answer.
_CURVE_WEIGHT = 1.0


@dataclass(frozen=True)
class _Best:
    loss: float
    weights: dict[str, Tensor]


class Trainer:
    """Trains a network on films of one prior.

    Args:
        params: what to train.
        context: where to report, and what to obey, at every step.
        curves: a fixed set to train on; None draws fresh curves at each step.
    """

    def __init__(self, params: NrSldParams, context: Context, curves: Curves | None) -> None:
        self._context, self._curves = context, curves
        self._training = params.training
        self.prior = Prior(params.stack, params.probe, context.device)
        seeds = Seeds.of(context.seed)
        self._draw = Draw(params, self.prior, seeds.training, context.device)
        self.network = _new_network(params, len(self.prior.free), seeds.network).to(context.device)
        rate = params.training.learning_rate
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=rate, fused=True)
        held_back = Draw(params, self.prior, seeds.validation, context.device)
        self.validation = held_back.curves(params.training.validation_curves)
        self.validation_seen = held_back.measured(self.validation)
        # A draw of its own, so that nothing of the validation curves is seen.
        sample = Draw(params, self.prior, seeds.network, context.device).curves(_STANDARD_CURVES)
        self.network.standardise(compress(sample.r))
        self._z = self.prior.depth_grid(_PROFILE_POINTS)
        self._total = params.training.epochs * params.training.steps_per_epoch
        self._step = 0
        # Sum over the steps of the present epoch.
        self._loss_sum = 0.0
        self._best: _Best | None = None
        self.losses: list[EpochLosses] = []

    @property
    def q(self) -> Tensor:
        """The network's grid, [G], in 1/angstrom."""
        return self._draw.q

    def calculate(self, values: Tensor, relative_sigma: Tensor) -> Tensor:
        """Curves [B, G] of films with these parameters; see `Draw.calculate`."""
        return self._draw.calculate(values, relative_sigma)

    @property
    def curves_seen(self) -> int:
        """Training curves shown so far."""
        return self._step * self._training.batch_size

    def run(self) -> bool:
        """Trains to the end, leaving the best network in `network`.

        Returns whether it ended early: it was asked to, or has not improved for `training.patience` epochs.

        Raises:
            JobCancelled, JobPaused: as the owner desired; paused with a checkpoint.
            UserError: the loss stopped being a number.
        """
        self._restore()
        stopped = False
        while self._step < self._total and not stopped:
            stopped = obey(self._context, self._state) or self._has_arrived()
            if not stopped:
                self._train_step()
                if self._step % self._training.steps_per_epoch == 0:
                    self._finish_epoch()
                elif self._step % _REPORT_STEPS == 0:
                    self._report()
        if self._best is None:
            self._finish_epoch()
        assert self._best is not None  # noqa: S101 (set by _finish_epoch)
        self.network.load_state_dict(self._best.weights)
        self.network.eval()
        return stopped

    def _has_arrived(self) -> bool:
        """Whether the last epochs brought nothing; told from the losses, so a resumed run tells it too."""
        patience = self._training.patience
        if not patience or len(self.losses) <= patience:
            return False
        lowest = min(self.losses, key=lambda item: item.validation_loss)
        return len(self.losses) - lowest.epoch >= patience

    def _train_step(self) -> None:
        set_rate(self._optimiser, self._training.learning_rate * cosine_share(self._step / self._total))
        batch = self._next_batch()
        seen = self._draw.partly_measured(batch)
        true_profile, spread = self._truth(batch)
        self._optimiser.zero_grad(set_to_none=True)
        value, size = 0.0, self._training.micro_batch or len(batch)
        for start in range(0, len(batch), size):
            piece = slice(start, start + size)
            # Means over the pieces add up to the mean over the batch.
            share = len(batch[piece]) / len(batch)
            loss = share * self._loss(batch[piece], seen[piece], true_profile[piece], spread)
            torch.autograd.backward(loss)
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_LIMIT)
        if not math.isfinite(value):
            allowed = f"the loss became {value} at step {self._step}; try a smaller one"
            raise UserError("training.learning_rate", self._training.learning_rate, allowed)
        self._optimiser.step()
        self._step += 1
        self._loss_sum += value

    def _next_batch(self) -> Curves:
        count = self._training.batch_size
        if self._curves is None:
            return self._draw.curves(count)
        rows = torch.randint(
            len(self._curves), (count,), generator=self._draw.generator, device=self._draw.generator.device
        )
        return self._curves[rows]

    @torch.no_grad()
    def _truth(self, batch: Curves) -> tuple[Tensor, Tensor]:
        """The true profiles of a batch [B, Z] and the variance of all their points."""
        true_profile = self._profile(batch.unit)
        return true_profile, true_profile.var().clamp_min(1e-6)

    def _loss(self, batch: Curves, seen: Seen, true_profile: Tensor, spread: Tensor) -> Tensor:
        answer: Tensor = self.network(seen)
        wanted = batch.unit.float()
        # 1/12 is the variance of an evenly drawn parameter.
        parameters = _PARAMETER_WEIGHT * 12.0 * (answer - wanted).square().mean()
        deviation = (self._profile(answer) - true_profile).square().mean() / spread
        # What the answer makes of the measurement, in decades.
        curves = compress(self._draw.compared(answer.double())) - compress(self._draw.reference(batch.unit))
        return parameters + _PROFILE_WEIGHT * deviation + _CURVE_WEIGHT * curves.abs().mean()

    def _profile(self, unit: Tensor) -> Tensor:
        films = self.prior.films(self.prior.values(unit))
        return profile(self._z, films.sld, films)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        total, size = 0.0, self._training.batch_size
        for start in range(0, len(self.validation), size):
            batch = self.validation[start : start + size]
            seen = self.validation_seen[start : start + size]
            loss = self._loss(batch, seen, *self._truth(batch))
            total += loss.item() * len(batch)
        return total / len(self.validation)

    def _finish_epoch(self) -> None:
        validation_loss = self._validation_loss()
        epoch = len(self.losses) + 1
        # Stopped early, an epoch may have fewer steps, or none at all.
        steps = self._step - (epoch - 1) * self._training.steps_per_epoch
        train_loss = self._loss_sum / max(steps, 1)
        self.losses.append(EpochLosses(epoch=epoch, train_loss=train_loss, validation_loss=validation_loss))
        if self._best is None or validation_loss < self._best.loss:
            weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self._best = _Best(validation_loss, weights)
        self._report()
        self._loss_sum = 0.0
        self._context.preview(PREVIEW, {"epoch": epoch} | self._look())
        if self._training.checkpoint_epochs and epoch % self._training.checkpoint_epochs == 0:
            self._context.checkpoint.save(self._state())

    @torch.no_grad()
    def _look(self) -> dict[str, list[float]]:
        """One profile of the validation, always the same one, and what the network makes of it."""
        truth = self.validation[:1]
        answer = self.network(self.validation_seen[:1])
        return {
            "z": self._z.tolist(),
            "sld": self._profile(truth.unit)[0].tolist(),
            "predicted_sld": self._profile(answer)[0].tolist(),
        }

    def _report(self) -> None:
        """The step, with the numbers of the last epoch that is complete."""
        numbers = self.losses[-1].model_dump() if self.losses else {}
        self._context.progress(self._step, self._total, phase="train", **numbers)

    def _state(self) -> bytes:
        state = {
            "step": self._step,
            "loss_sum": self._loss_sum,
            "losses": [item.model_dump() for item in self.losses],
            "best_loss": None if self._best is None else self._best.loss,
            "best_weights": {} if self._best is None else self._best.weights,
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "generator": self._draw.generator.get_state(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def _restore(self) -> None:
        data = self._context.checkpoint.load()
        if data is None:
            return
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self._step, self._loss_sum = state["step"], state["loss_sum"]
        self.losses = [EpochLosses.model_validate(item) for item in state["losses"]]
        if state["best_loss"] is not None:
            self._best = _Best(state["best_loss"], state["best_weights"])
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._draw.generator.set_state(state["generator"])
        self._context.log(f"goes on from the checkpoint at step {self._step} of {self._total}")


def _new_network(params: NrSldParams, parameters: int, seed: int) -> Network:
    """The same weights for the same seed, leaving torch's global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(params.probe.points, parameters, params.training.width, params.training.depth)
