"""Models as files: what all architectures of this science do alike when they are loaded and saved."""

from __future__ import annotations

from typing import TypeVar

import safetensors
import safetensors.torch
from pydantic import BaseModel, ValidationError
from torch import nn

from guidehall.science.pipeline import InvalidModel, Manifest, field_errors

M = TypeVar("M", bound=BaseModel)


def read_arguments(kind: type[M], manifest: Manifest) -> M:
    """The arguments that a manifest gives to its architecture.

    Raises:
        InvalidModel: names the argument that is wrong.
    """
    try:
        return kind.model_validate(manifest.arguments)
    except ValidationError as error:
        path, reason = field_errors(error, "arguments")[0]
        raise InvalidModel(f"{path}: {reason}") from None


def load_weights(network: nn.Module, weights: bytes) -> None:
    """Gives a network, which may be without memory of its own, the tensors of a safetensors file.

    Raises:
        InvalidModel: they are not those of the network, or of other types.
    """
    expected = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    try:
        state = safetensors.torch.load(weights)
        network.load_state_dict(state, assign=True)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise InvalidModel("weights: they are not those of this architecture and these arguments") from error
    # As many bytes in memory as in the file, which is what a server counts.
    wrong = [name for name, tensor in state.items() if tensor.dtype != expected[name]]
    if wrong:
        got, allowed = (
            ", ".join(sorted({str(kind[name]) for name in wrong}))
            for kind in ({name: tensor.dtype for name, tensor in state.items()}, expected)
        )
        raise InvalidModel(f"weights: got {got}; allowed: {allowed}")


def weights_of(network: nn.Module) -> bytes:
    """A network as a safetensors file."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    data: bytes = safetensors.torch.save(state)
    return data
