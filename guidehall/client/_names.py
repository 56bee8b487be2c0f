"""What people type for a job, a model or a dataset, and the resource name that it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from guidehall.client import types
from guidehall.client._config import Config
from guidehall.client._refusal import refusal
from guidehall.client._steps import Operation, collect
from guidehall.core import names
from guidehall.core.errors import InvalidArgument, NotFound

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SHORT = re.compile(r"[0-9a-f-]{4,35}")
# Of what is listed as a whole: its ids need not be hexadecimal.
_BEGINNING = re.compile(r"[A-Za-z0-9_-]{4,128}")
# How many of the newest jobs a shortened id is looked for in.
_NEWEST_JOBS = 1000


def job(
    config: Config, text: str, newest: Callable[[int], Operation[None]], field: str = "job"
) -> Operation[str]:
    """Name of the job that `text` means: its name, its id, or the first four or more signs of its id.

    Args:
        newest: makes the operation that emits so many of the newest jobs.

    Raises:
        InvalidArgument: no such form, or several jobs begin like that.
        NotFound: no job among the newest begins like that.
    """
    text = text.strip()
    if "/" in text:
        names.JOB.parse(text, field)
        return text
    text = text.lower()
    if _UUID.fullmatch(text):
        return names.JOB.format(project=config.project, job=text)
    if not _SHORT.fullmatch(text):
        raise InvalidArgument.field(
            field, text, "a job's name, its id, or the first 4 or more signs of its id"
        )
    candidates: list[types.Job] = yield from collect(newest(_NEWEST_JOBS))
    return _only(text, candidates, field, "job", f" among the newest {_NEWEST_JOBS}")


def listed(text: str, pattern: names.Pattern, kind: str, everything: Operation[list[Any]]) -> Operation[str]:
    """Name of the one of `everything` that `text` means: its name, its id, or the first four or more signs
    of its id.

    Raises:
        InvalidArgument: no such form, or several begin like that.
        NotFound: none begins like that.
    """
    text = text.strip()
    if "/" in text:
        pattern.parse(text, kind)
        return text
    if not _BEGINNING.fullmatch(text):
        raise InvalidArgument.field(
            kind, text, f"a {kind}'s name, its id, or the first 4 or more signs of its id"
        )
    return _only(text, (yield from everything), kind, kind)


def _only(text: str, candidates: Sequence[Any], field: str, kind: str, where: str = "") -> str:
    found = [candidate for candidate in candidates if candidate.id.startswith(text)]
    if not found:
        raise NotFound(f"no {kind} begins with {text}{where}", metadata={"resource": text})
    if len(found) > 1:
        several = ", ".join(candidate.id for candidate in found[:5])
        raise refusal(field, f"{len(found)} {kind}s begin with {text}: {several}")
    name: str = found[0].name
    return name


def pool(text: str) -> str:
    """Name of the pool that `text` means: its name or its id."""
    text = text.strip()
    name = text if "/" in text else names.POOL.format(pool=text)
    names.POOL.parse(name, "pool")
    return name


def model(config: Config, text: str) -> str:
    """Name of the model, or of its version, that `text` means: a name, `film`, `film@3`, `film@tag`."""
    return _versioned(config, text, names.MODEL, names.MODEL_VERSION, "model", names.model_version_of)


def model_version(config: Config, text: str) -> str:
    """The same, as the name of a version; the newest where none is named."""
    return _pinned(model(config, text))


def dataset(config: Config, text: str) -> str:
    """Name of the dataset, or of its version, that `text` means: a name, `film-runs`, or `film-runs@3`."""
    return _versioned(config, text, names.DATASET, names.DATASET_VERSION, "dataset", names.version_of)


def dataset_version(config: Config, text: str) -> str:
    """The same, as the name of a version; the newest where none is named."""
    return _pinned(dataset(config, text))


def model_series(config: Config, text: str) -> str:
    """Name of the model that `text` means, without a version.

    Raises:
        InvalidArgument: no such form, or one of its versions.
    """
    name = model(config, text)
    if "/versions/" in name:
        raise InvalidArgument.field("model", text, "a model without a version")
    return name


def _versioned(
    config: Config,
    text: str,
    series: names.Pattern,
    version: names.Pattern,
    kind: str,
    version_of: Callable[[dict[str, str], str], object],
) -> str:
    text = text.strip()
    if "/" in text:
        (version if "/versions/" in text else series).parse(text, kind)
        return text
    name, at, number = text.partition("@")
    full = series.format(project=config.project, **{kind: name})
    if at:
        full = f"{full}/versions/{number}"
        version_of(version.parse(full, kind), kind)
    else:
        series.parse(full, kind)
    return full


def _pinned(name: str) -> str:
    return name if "/versions/" in name else f"{name}/versions/latest"


def user(text: str) -> str:
    """Name of the user that `text` means: its name or its id.

    Raises:
        InvalidArgument: no such form.
    """
    name = names.USER.format(user=text.removeprefix("users/"))
    names.USER.parse(name, "user")
    return name


def group(text: str) -> str:
    """Name of the group that `text` means: its name or its id.

    Raises:
        InvalidArgument: no such form.
    """
    name = names.GROUP.format(group=text.removeprefix("groups/"))
    names.GROUP.parse(name, "group")
    return name


def number(enum: Any, field: str, text: str) -> Any:
    """The value of an enum of the contracts that `text` means, such as "scientist" of `Role`.

    Raises:
        InvalidArgument: there is none of this name.
    """
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    known = [value.name.removeprefix(prefix) for value in enum.DESCRIPTOR.values[1:]]
    if text.upper() not in known:
        raise InvalidArgument.field(field, text, ", ".join(known))
    return enum.Value(f"{prefix}{text.upper()}")
