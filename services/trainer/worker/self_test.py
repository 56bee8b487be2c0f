"""Whether a device still calculates. Runs in a child; imports torch only when it is asked."""

from __future__ import annotations

import sys

# Whole numbers that every precision multiplies and adds up exactly.
_SIZE, _LARGEST = 512, 7
_MEMORY_BYTES = 64 << 20


class WrongAnswer(RuntimeError):
    """The device calculates, and wrongly."""


def self_test(device: str) -> None:
    """Multiplies on the device and compares, and reads back what was written to its memory.

    Raises:
        Exception: whatever is wrong.
    """
    import torch

    numbers = (torch.arange(_SIZE * _SIZE) % _LARGEST).float().reshape(_SIZE, _SIZE)
    there = numbers.to(device)
    if not torch.equal((there @ there).cpu(), numbers @ numbers):
        raise WrongAnswer("a product of matrices is wrong")
    pattern = torch.arange(_MEMORY_BYTES // 4, dtype=torch.int32)
    if not torch.equal(pattern.to(device).cpu(), pattern):
        raise WrongAnswer("its memory does not keep what is written")


def device_fault(error: BaseException) -> str:
    """What an exception says against the device; empty when it does not speak of it.

    A program's own mistake can look the same, so this is a suspicion only, which a self-test confirms.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return ""
    first_line = str(error).partition("\n")[0]
    accelerator: type[BaseException] | None = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        return first_line or "an error of the accelerator"
    return first_line if "CUDA error" in first_line or "CUDNN_STATUS_" in first_line else ""
