"""What people type for a job, a model or a dataset, and the resource name that it means."""

from __future__ import annotations

import re
from collections.abc import Callable

from guidehall.client import types
from guidehall.client._config import Config
from guidehall.client._refusal import refusal
from guidehall.client._steps import Operation, collect
from guidehall.core import names
from guidehall.core.errors import InvalidArgument, NotFound

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SHORT = re.compile(r"[0-9a-f-]{4,35}")
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
    found = [candidate for candidate in candidates if candidate.id.startswith(text)]
    if not found:
        raise NotFound(
            f"no job begins with {text} among the newest {_NEWEST_JOBS}", metadata={"resource": text}
        )
    if len(found) > 1:
        several = ", ".join(candidate.id for candidate in found[:5])
        raise refusal(field, f"{len(found)} jobs begin with {text}: {several}")
    return found[0].name


def model(config: Config, text: str) -> str:
    """Name of the model, or of its version, that `text` means: a name, `film`, or `film@3`."""
    return _versioned(config, text, names.MODEL, names.MODEL_VERSION, "model")


def model_version(config: Config, text: str) -> str:
    """The same, as the name of a version; the newest where none is named."""
    return _pinned(model(config, text))


def dataset(config: Config, text: str) -> str:
    """Name of the dataset, or of its version, that `text` means: a name, `film-runs`, or `film-runs@3`."""
    return _versioned(config, text, names.DATASET, names.DATASET_VERSION, "dataset")


def dataset_version(config: Config, text: str) -> str:
    """The same, as the name of a version; the newest where none is named."""
    return _pinned(dataset(config, text))


def _versioned(config: Config, text: str, series: names.Pattern, version: names.Pattern, kind: str) -> str:
    text = text.strip()
    if "/" in text:
        (version if "/versions/" in text else series).parse(text, kind)
        return text
    name, at, number = text.partition("@")
    full = series.format(project=config.project, **{kind: name})
    if at:
        full = f"{full}/versions/{number}"
        names.version_of(version.parse(full, kind), kind)
    else:
        series.parse(full, kind)
    return full


def _pinned(name: str) -> str:
    return name if "/versions/" in name else f"{name}/versions/latest"
