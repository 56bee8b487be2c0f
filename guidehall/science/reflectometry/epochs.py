"""Training over a fixed set in epochs: reproducible from its seed, resumable, ended early when asked."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from guidehall.science.pipeline import Context, UserError, obey
from guidehall.science.reflectometry.network_params import EpochTraining
from guidehall.science.reflectometry.params import EpochLosses

EndedBy = Literal["epochs", "stop", "patience"]
# Long epochs, too, must be seen to go on; reading a loss makes the processor wait for the device.
_REPORT_STEPS = 10
# Share of a training over which the learning rate rises, and what is left of it at the end.
_WARM_UP = 0.03
_LAST_RATE = 0.01


@dataclass(frozen=True)
class Split:
    """Rows of a set, without overlap and in random order."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, count: int, held_back: float, seed: int) -> Split:
        """The same rows for the same seed.

        Args:
            held_back: share for validation and the same for testing; at least one row each.
        """
        order = np.random.default_rng(seed).permutation(count)
        size = max(1, int(count * held_back))
        return cls(order[2 * size :], order[:size], order[size : 2 * size])


def autocast_type(precision: str, device: str) -> torch.dtype | None:
    """bfloat16 where it is asked for, or where it is left to the machine and that calculates with it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else None
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # Older versions of torch cannot tell.
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if found.get("amx_bf16") or found.get("avx512_bf16") else None


def new_optimiser(module: nn.Module, settings: EpochTraining, fused: bool) -> torch.optim.Optimizer:
    """The optimiser; fused, one pass over the weights, it is faster and rounds in another way."""
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )


def cosine_share(done: float) -> float:
    """The share of the highest learning rate, rising at first, then falling along half a cosine.

    Args:
        done: share of the steps that were made.
    """
    if done < _WARM_UP:
        return (done + 1e-3) / _WARM_UP
    fall = (done - _WARM_UP) / (1.0 - _WARM_UP)
    return _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * fall))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Makes the next step one with this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class EpochLoop:
    """Trains one network.

    Args:
        context: where to report, and what to obey, at every step.
        module: its parameters are trained; ends with the best weights, in evaluation mode.
        settings: how long and how.
        rows: number of training curves.
        loss: the loss over these rows [B], which `backward` can follow.
        validation_loss: the loss over what is held back.
        pack: makes a checkpoint of the loop's state.
        preview: the newest answer for something that is held back, to be shown under `preview_kind`.
        phase: its name in reports.
        field: parameters to blame, such as "training".
        stoppable: whether to end early when that is desired.
        fused: the optimiser's form, see `new_optimiser`.
    """

    def __init__(
        self,
        context: Context,
        module: nn.Module,
        settings: EpochTraining,
        rows: int,
        seed: int,
        loss: Callable[[Tensor], Tensor],
        validation_loss: Callable[[], float],
        pack: Callable[[dict[str, Any]], bytes],
        phase: str = "train",
        field: str = "training",
        stoppable: bool = True,
        fused: bool = False,
        preview: Callable[[], Mapping[str, Any]] | None = None,
        preview_kind: str = "",
    ) -> None:
        self._context, self._module, self._settings = context, module, settings
        self._rows, self._seed, self._phase, self._field = rows, seed, phase, field
        self._loss, self._validation_loss, self._pack = loss, validation_loss, pack
        self._preview, self._preview_kind = preview, preview_kind
        self._stoppable = stoppable
        self._optimiser = new_optimiser(module, settings, fused)
        self._steps_per_epoch = math.ceil(rows / settings.batch_size)
        self._total = settings.epochs * self._steps_per_epoch
        self._step = 0
        # Over the steps of the present epoch, on the device.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
        self._best_loss = math.inf
        self._best_epoch = 0
        self._best_weights: dict[str, Tensor] = {}
        self.losses: list[EpochLosses] = []

    def run(self) -> EndedBy:
        """Trains to the end.

        Raises:
            JobCancelled, JobPaused: as the owner desired; paused with a checkpoint.
            UserError: the loss stopped being a number.
        """
        ended: EndedBy = "epochs"
        devices = [self._context.device] if torch.device(self._context.device).type == "cuda" else []
        # Dropout draws from torch's global random state, which belongs to the process.
        with torch.random.fork_rng(devices=devices):
            while self._step < self._total:
                if self._is_patience_over():
                    ended = "patience"
                    break
                if obey(self._context, self._packed) and self._stoppable:
                    ended = "stop"
                    break
                self.train_step(self._next_rows())
                if self._step % self._steps_per_epoch == 0:
                    self._finish_epoch()
                elif self._step % _REPORT_STEPS == 0:
                    self._check(self._loss_sum.item())
                    self._report()
        if not self.losses:
            self._finish_epoch()
        self._module.load_state_dict(self._best_weights)
        self._module.eval()
        return ended

    def _is_patience_over(self) -> bool:
        patience = self._settings.patience
        return patience > 0 and len(self.losses) - self._best_epoch >= patience

    def _next_rows(self) -> Tensor:
        epoch, index = divmod(self._step, self._steps_per_epoch)
        # Drawn anew for each step from where it is, so that a resumed run needs no state of a generator.
        order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        size = self._settings.batch_size
        rows = torch.from_numpy(order[index * size : (index + 1) * size])
        return rows.to(self._context.device)

    def train_step(self, rows: Tensor) -> Tensor:
        """One step on these training curves [B]; returns their loss, on the device."""
        self._module.train()
        torch.manual_seed(_mixed(self._seed, self._step))
        if self._settings.schedule == "cosine":
            set_rate(self._optimiser, self._settings.learning_rate * cosine_share(self._step / self._total))
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss(rows)
        torch.autograd.backward(loss)
        if self._settings.gradient_limit > 0:
            nn.utils.clip_grad_norm_(self._module.parameters(), self._settings.gradient_limit)
        self._optimiser.step()
        self._step += 1
        self._loss_sum += loss.detach()
        return loss.detach()

    def _finish_epoch(self) -> None:
        self._module.eval()
        with torch.no_grad():
            validation_loss = self._validation_loss()
        epoch = len(self.losses) + 1
        # Stopped early, an epoch may have fewer steps, or none at all.
        steps = self._step - (epoch - 1) * self._steps_per_epoch
        train_loss = self._loss_sum.item() / max(steps, 1)
        self._check(train_loss)
        self._check(validation_loss)
        self.losses.append(EpochLosses(epoch=epoch, train_loss=train_loss, validation_loss=validation_loss))
        if validation_loss < self._best_loss:
            self._best_loss, self._best_epoch = validation_loss, epoch
            self._best_weights = {name: value.clone() for name, value in self._module.state_dict().items()}
        self._report()
        self._loss_sum.zero_()
        if self._preview is not None:
            with torch.no_grad():
                shown = self._preview()
            self._context.preview(self._preview_kind, {"epoch": epoch, **shown})
        if self._settings.checkpoint_epochs and epoch % self._settings.checkpoint_epochs == 0:
            self._context.checkpoint.save(self._packed())

    def _packed(self) -> bytes:
        return self._pack(self.state())

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            allowed = f"the loss became {loss} before step {self._step}; try a smaller one"
            raise UserError(f"{self._field}.learning_rate", self._settings.learning_rate, allowed)

    def _report(self) -> None:
        """The step, with the numbers of the last epoch that is complete."""
        numbers = self.losses[-1].model_dump() if self.losses else {}
        self._context.progress(self._step, self._total, phase=self._phase, **numbers)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here."""
        # At the end of its epoch the best are the present ones: a third of the state of a large network.
        apart = self._best_epoch * self._steps_per_epoch != self._step
        return {
            "step": self._step,
            "loss_sum": self._loss_sum,
            "losses": [item.model_dump() for item in self.losses],
            "best_loss": self._best_loss,
            "best_epoch": self._best_epoch,
            "best_weights": self._best_weights if apart else {},
            "module": self._module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._step = state["step"]
        self._loss_sum = state["loss_sum"].to(self._context.device)
        self.losses = [EpochLosses.model_validate(item) for item in state["losses"]]
        self._best_loss, self._best_epoch = state["best_loss"], state["best_epoch"]
        best = state["best_weights"] or (state["module"] if self._best_epoch else {})
        self._best_weights = {name: value.to(self._context.device).clone() for name, value in best.items()}
        self._module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._context.log(f"{self._phase}: goes on from the checkpoint at step {self._step} of {self._total}")


def to_bytes(state: dict[str, Any]) -> bytes:
    """A state as a checkpoint keeps it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """What `to_bytes` was given."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _mixed(seed: int, step: int) -> int:
    """A seed for each step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
