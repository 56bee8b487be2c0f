"""Environment variables as the values of a settings model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_COLLECTIONS = (tuple, list, dict, set, frozenset)
_MAX_VALUE_BYTES = 64 << 10


class SettingsError(Exception):
    """The environment does not make valid settings. The message names variables, never values of secrets."""


def _group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that an annotation means: `Group` or `Group | None`."""
    alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for candidate in (annotation, *alternatives):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where each single value lies, such as ("grpc", "tls", "cert_file")."""
    found = []
    for name, field in model.model_fields.items():
        group = _group_in(field.annotation)
        found += [(*above, name)] if group is None else paths(group, (*above, name))
    return found


def field_at(model: type[BaseModel], path: tuple[str, ...]) -> FieldInfo:
    """The declaration of the value at `path`."""
    field = model.model_fields[path[0]]
    group = _group_in(field.annotation)
    return field if group is None else field_at(group, path[1:])


def default_at(model: type[BaseModel], path: tuple[str, ...]) -> Any:
    """The value that counts when nobody sets it: that of the outermost group that says so."""
    value: Any = model.model_fields[path[0]].get_default(call_default_factory=True, validated_data={})
    group = _group_in(model.model_fields[path[0]].annotation)
    if group is None:
        return value
    if not isinstance(value, BaseModel):
        return default_at(group, path[1:])
    for part in path[1:]:
        value = getattr(value, part)
    return value


def type_name(annotation: Any) -> str:
    """A type as people write it."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def resolve(environ: Mapping[str, str], prefix: str, known: set[str]) -> dict[str, str]:
    """The values of the variables below `prefix`: given directly, or in the file that `…_FILE` names.

    Raises:
        SettingsError: a variable that is not known, given twice, or whose file cannot be read.
    """
    resolved: dict[str, str] = {}
    for name, text in sorted((name.upper(), text) for name, text in environ.items() if text):
        if not name.startswith(prefix):
            continue
        base = name.removesuffix("_FILE")
        if name in known:
            variable, value = name, text
        elif base in known:
            variable, value = base, _read_value(name, Path(text))
        else:
            after_prefix = [candidate.removeprefix(prefix) for candidate in known]
            close = difflib.get_close_matches(name.removeprefix(prefix), after_prefix, n=3)
            close = [prefix + candidate for candidate in close]
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise SettingsError(f"{name} is not a setting{hint}")
        if variable in resolved:
            raise SettingsError(f"{variable} is given twice, or both directly and as a file")
        resolved[variable] = value
    return resolved


def _read_value(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_VALUE_BYTES + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{name}: cannot read the file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: the file holds no text") from None
    if not text or len(content) > _MAX_VALUE_BYTES:
        raise SettingsError(f"{name}: the file must hold 1 to {_MAX_VALUE_BYTES} bytes")
    return text


def decode(variable: str, text: str, annotation: Any) -> Any:
    """Lists, tuples and the like are given as JSON; everything else as it stands."""
    kinds = [get_origin(candidate) or candidate for candidate in (annotation, *get_args(annotation))]
    if not any(kind in _COLLECTIONS for kind in kinds):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise SettingsError(f'{variable}: must be JSON, such as ["one", "two"]') from None
