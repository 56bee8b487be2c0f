"""Model manifests, checked for what storage and its readers rely on; the sciences check the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guidehall.core.errors import InvalidArgument
from services.storage import fields
from services.storage.documents import Document, document

MAX_MANIFEST_BYTES = 1 << 20
MAX_TENSORS = 32

_ARCHITECTURE = re.compile(r"[a-z0-9_.]+/[0-9]+")
_REQUIRED: dict[str, Any] = {
    "architecture": str,
    "arguments": dict,
    "inputs": list,
    "outputs": list,
    "provenance": dict,
    "weights_sha256": str,
    "example": dict,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and meaning of a named tensor; -1 marks a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    unit: str
    description: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that holds together."""

    document: Document
    architecture: str
    weights_sha256: str


def read(field: str, value: Mapping[str, Any]) -> Manifest:
    """Checks a manifest.

    Raises:
        InvalidArgument: too large, or something is missing or of the wrong kind.
    """
    checked = document(field, value, MAX_MANIFEST_BYTES)
    content = checked.value
    for key, kind in _REQUIRED.items():
        if not isinstance(content.get(key), kind):
            raise InvalidArgument.field(f"{field}.{key}", content.get(key), f"required: {_JSON_NAMES[kind]}")
    if not _ARCHITECTURE.fullmatch(content["architecture"]):
        allowed = 'a registry key such as "reflectometry.physical/1"'
        raise InvalidArgument.field(f"{field}.architecture", content["architecture"], allowed)
    fields.sha256(f"{field}.weights_sha256", content["weights_sha256"])
    for key in ("inputs", "outputs"):
        if not 1 <= len(content[key]) <= MAX_TENSORS:
            raise InvalidArgument.field(
                f"{field}.{key}", f"{len(content[key])} tensors", f"1 to {MAX_TENSORS}"
            )
        for index, item in enumerate(content[key]):
            _tensor(f"{field}.{key}[{index}]", item)
    metrics = content.get("metrics", {})
    if not isinstance(metrics, dict) or not all(_is_number(value) for value in metrics.values()):
        raise InvalidArgument.field(f"{field}.metrics", metrics, "numbers by name")
    return Manifest(checked, content["architecture"], content["weights_sha256"])


def tensors(content: Mapping[str, Any], key: str) -> list[TensorSpec]:
    """The inputs or outputs of a manifest that was checked."""
    return [_tensor(key, item) for item in content[key]]


def metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a manifest that was checked."""
    return {name: float(value) for name, value in content.get("metrics", {}).items()}


_JSON_NAMES: dict[Any, str] = {str: "a text", dict: "an object", list: "an array"}


def _tensor(path: str, item: Any) -> TensorSpec:
    match item:
        case {"name": str(name), "datatype": str(datatype), "shape": list(shape)} if all(
            map(_is_dimension, shape)
        ):
            unit, description = item.get("unit", ""), item.get("description", "")
            if isinstance(unit, str) and isinstance(description, str):
                return TensorSpec(name, datatype, tuple(shape), unit, description)
    raise InvalidArgument.field(
        path, item, "an object with name, datatype, shape, and optionally unit and description"
    )


def _is_dimension(value: Any) -> bool:
    return type(value) is int and -1 <= value < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
