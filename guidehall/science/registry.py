"""Which sciences there are: the subpackages here, and modules that the environment names.

A science is any importable module or package with a `SCIENCE`. `GUIDEHALL_SCIENCE_MODULES` lists further
ones, separated by commas. Nothing in here imports torch; the code of a pipeline or a predictor is imported
when it is used.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

import guidehall.science
from guidehall.science.pipeline import (
    Architecture,
    InvalidModel,
    Manifest,
    Pipeline,
    Predictor,
    UserError,
    sha256,
)

MODULES_VARIABLE = "GUIDEHALL_SCIENCE_MODULES"


class RegistryError(RuntimeError):
    """The installation is wrong: a science cannot be imported, or two claim one name."""


@dataclass(frozen=True)
class Science:
    """What one folder adds to the platform."""

    name: str
    title: str
    pipelines: tuple[Pipeline, ...] = ()
    architectures: tuple[Architecture, ...] = ()

    def __post_init__(self) -> None:
        names = [pipeline.name for pipeline in self.pipelines] + [item.key for item in self.architectures]
        for name in names:
            if not name.startswith(self.name + "."):
                raise RegistryError(f"{name!r} must start with the name of its science, {self.name + '.'!r}")


@dataclass(frozen=True)
class _Catalogue:
    sciences: dict[str, Science]
    pipelines: dict[str, Pipeline]
    architectures: dict[str, Architecture]


def sciences() -> dict[str, Science]:
    """All sciences by name."""
    return dict(_catalogue().sciences)


def pipelines() -> dict[str, Pipeline]:
    """All pipelines by name."""
    return dict(_catalogue().pipelines)


def pipeline(name: str) -> Pipeline:
    """The pipeline called `name`.

    Raises:
        UserError: there is none.
    """
    known = _catalogue().pipelines
    if name not in known:
        raise UserError("pipeline", name, f"the pipelines are {', '.join(sorted(known))}")
    return known[name]


def architecture(key: str) -> Architecture:
    """The architecture with this key.

    Raises:
        InvalidModel: there is none.
    """
    known = _catalogue().architectures
    if key not in known:
        raise InvalidModel(f"architecture: got {key}; known are {', '.join(sorted(known))}")
    return known[key]


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema of a pipeline's parameters."""
    return _schema(pipeline(name).params)


def result_schema(name: str) -> dict[str, Any]:
    """JSON Schema of a pipeline's result document."""
    return _schema(pipeline(name).result)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema: dict[str, Any] = _ordered(model.model_json_schema(mode="validation"))
    return schema


def _ordered(node: Any) -> Any:
    """`node` with the order of each object's properties in words: a Struct does not keep that of its keys."""
    if isinstance(node, list):
        return [_ordered(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _ordered(item) for key, item in node.items()}
    if isinstance(node.get("properties"), dict):
        copy["propertyOrder"] = list(node["properties"])
    return copy


def load_predictor(manifest: Manifest, weights: bytes, device: str = "cpu") -> Predictor:
    """Builds a model and proves it on its own example.

    Raises:
        InvalidModel: unknown architecture, wrong digest, weights that do not fit, or an answer that is not
            the example's.
    """
    kind = architecture(manifest.architecture)
    digest = sha256(weights)
    if digest != manifest.weights_sha256:
        raise InvalidModel(f"weights: SHA-256 is {digest}; the manifest says {manifest.weights_sha256}")
    predictor = kind.predictor().load(manifest, weights, device)
    if _signature(predictor) != _signature(manifest):
        raise InvalidModel(f"{manifest.architecture}: the tensors are not those that the manifest describes")
    _check_example(manifest, predictor)
    return predictor


def _signature(owner: Predictor | Manifest) -> list[tuple[str, str, tuple[int, ...]]]:
    # Wording may change between releases, and old manifests stay loadable.
    return [(spec.name, spec.datatype, spec.shape) for spec in (*owner.inputs, *owner.outputs)]


def _check_example(manifest: Manifest, predictor: Predictor) -> None:
    example = manifest.example
    types = {spec.name: spec.datatype for spec in (*manifest.inputs, *manifest.outputs)}
    for name in (*example.inputs, *example.outputs):
        if name not in types:
            raise InvalidModel(f"example.{name}: the model has no such tensor")
    try:
        answer = predictor.predict({name: item.array(types[name]) for name, item in example.inputs.items()})
    except UserError as error:
        raise InvalidModel(f"example: {error}") from error
    for name, item in example.outputs.items():
        wanted = item.array(types[name])
        if answer[name].shape != wanted.shape or not np.allclose(
            answer[name], wanted, example.relative_tolerance, example.absolute_tolerance, equal_nan=True
        ):
            raise InvalidModel(f"example.{name}: the model answers differently from when it was made")


def _catalogue() -> _Catalogue:
    return _read_catalogue(os.environ.get(MODULES_VARIABLE, ""))


@lru_cache(maxsize=8)
def _read_catalogue(extra_modules: str) -> _Catalogue:
    found = [
        *_own_sciences(),
        *(_science_of(name.strip()) for name in extra_modules.split(",") if name.strip()),
    ]
    return _Catalogue(
        sciences=_by_name((item.name, item) for item in found),
        pipelines=_by_name((item.name, item) for science in found for item in science.pipelines),
        architectures=_by_name((item.key, item) for science in found for item in science.architectures),
    )


def _own_sciences() -> list[Science]:
    folder = guidehall.science
    names = sorted(item.name for item in pkgutil.iter_modules(folder.__path__) if item.ispkg)
    return [_science_of(f"{folder.__name__}.{name}") for name in names]


def _science_of(module_name: str) -> Science:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RegistryError(f"cannot import the science {module_name}: {error}") from error
    science = getattr(module, "SCIENCE", None)
    if not isinstance(science, Science):
        raise RegistryError(f"{module_name} has no SCIENCE")
    return science


_Item = TypeVar("_Item")


def _by_name(items: Iterable[tuple[str, _Item]]) -> dict[str, _Item]:
    named: dict[str, _Item] = {}
    for name, item in items:
        if name in named:
            raise RegistryError(f"two sciences claim the name {name}")
        named[name] = item
    return named
