"""Classes of devices, and which may stand in for which."""

from __future__ import annotations

from guidehall.core.errors import InvalidArgument

CPU = "cpu"
# From the highest tier to the lowest; what asks for one also runs, more slowly, on those after it.
GPU_TIERS = ("B200", "H200", "H100", "A100-80GB", "A100", "L40S", "A10G", "L4", "T4")
DEVICE_CLASSES = (*GPU_TIERS, CPU)
_BY_LOWER = {name.lower(): name for name in DEVICE_CLASSES}


def device_class(text: str, field: str = "device_class") -> str:
    """The class that `text` names, in any case: "h200" is "H200".

    Raises:
        InvalidArgument: no class of this name.
    """
    try:
        return _BY_LOWER[text.lower()]
    except KeyError:
        raise InvalidArgument.field(field, text, f"one of {', '.join(DEVICE_CLASSES)}") from None


def class_of_pool(pool: str) -> str:
    """The class whose name a pool bears, such as "A100-80GB" of "a100-80gb"; empty when it bears none."""
    return _BY_LOWER.get(pool, "")


def at_or_below(asked: str, *, gpu_only: bool = False) -> tuple[str, ...]:
    """The classes that may serve who asked for one: itself, then lower tiers, then the CPU.

    Args:
        asked: a name in `DEVICE_CLASSES`.
        gpu_only: the work cannot do without a GPU.
    """
    classes = DEVICE_CLASSES[DEVICE_CLASSES.index(asked) :]
    return tuple(name for name in classes if name != CPU) if gpu_only else classes
