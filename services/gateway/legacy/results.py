"""The result document of the old web app, made of the documents that the pipelines leave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from services.gateway.legacy.films import PROFILE_POINTS
from services.gateway.legacy.translation import APPLY, BOTH, CHI, CNN, PHYSICAL

Json = dict[str, Any]
Numbers = Sequence[float]

_MIB = 1 << 20


def response(pipeline: str, document: Mapping[str, Any]) -> Json:
    """What the charts and metrics show; without name, model and timing.

    Curves and profiles are those of one film that training never saw, or of the first measured curve. Metrics
    are those of all films of the test: mean squared and absolute error and R² of the SLD in 1e-6/angstrom^2,
    or, where there is no such network, of chi.
    """
    return _MAKERS[pipeline](document)


def timing(pipeline: str, document: Mapping[str, Any]) -> Json | None:
    """Seconds of each part; None where nobody measured them."""
    if pipeline == APPLY:
        return {
            "generation": 0.0,
            "training": 0.0,
            "inference": document["seconds"],
            "total": document["seconds"],
        }
    if pipeline == BOTH:
        parts = [part["seconds"] for part in (document["cnn"], document["chi"]) if part]
    else:
        parts = [document["seconds"]]
    names = {"generation": "generation", "training": "training", "inference": "evaluation", "total": "total"}
    return {name: sum(part[own] for part in parts) for name, own in names.items()}


def megabytes(size_bytes: int) -> float:
    """A size as the old app tells it."""
    return round(size_bytes / _MIB, 2)


def _physical(document: Mapping[str, Any]) -> Json:
    example = document["example"]
    # From the substrate upwards and from 0 on, as evenly as before.
    z = [example["z"][-1] - value for value in reversed(example["z"])]
    even = [z[-1] * place / (PROFILE_POINTS - 1) for place in range(PROFILE_POINTS)]
    return {
        "nr": _nr(example["q"], example["reflectivity"], example["predicted_reflectivity"]),
        "sld": {
            "z": even,
            "groundTruth": at(even, z, example["sld"][::-1]),
            "predicted": at(even, z, example["predicted_sld"][::-1]),
        },
        "training": _training(document["losses"]),
        "chi": [],
        "metrics": _metrics(document["metrics"]),
    }


def _cnn(document: Mapping[str, Any]) -> Json:
    example = document["example"]
    highest = list(accumulate(example["predicted_z"], max))
    return {
        "nr": _nr(example["q"], example["reflectivity"], example["predicted_reflectivity"]),
        "sld": {
            "z": example["z"],
            "groundTruth": example["sld"],
            "predicted": at(example["z"], highest, example["predicted_sld"]),
        },
        "training": _training(document["losses"]),
        "chi": [],
        "metrics": _metrics(document["metrics"]),
    }


def _applied(document: Mapping[str, Any]) -> Json:
    return {
        **_curve(document["answers"][0]),
        "training": _training([]),
        "chi": [],
        "metrics": dict.fromkeys(("mse", "r2", "mae"), 0.0),
    }


def _curve(answer: Mapping[str, Any]) -> Json:
    """Of a measured curve nobody knows the film: the prediction stands for it."""
    return {
        "nr": _nr(answer["q"], answer["reflectivity"], answer["predicted_reflectivity"]),
        "sld": {"z": answer["z"], "groundTruth": answer["sld"], "predicted": answer["sld"]},
    }


def _chi(document: Mapping[str, Any]) -> Json:
    profile = document.get("profile")
    sld: Json = {"z": [], "groundTruth": [], "predicted": []}
    if profile:
        sld = {"z": profile["z"], "groundTruth": profile["sld"], "predicted": profile["reconstructed_sld"]}
    return {
        "nr": _nr([], [], []),
        "sld": sld,
        "training": _training([*document["autoencoder_losses"], *document["perceptron_losses"]]),
        "chi": _chi_points(document),
        "metrics": _chi_metrics(document["channels"]),
        "predictions": document["predictions"],
    }


def _both(document: Mapping[str, Any]) -> Json:
    chi = _chi(document["chi"])
    result = _cnn(document["cnn"]) if document["cnn"] else {**chi, "training": _training([])}
    if document.get("curve"):
        result |= _curve(document["curve"])
    return result | {"chi": chi["chi"], "predictions": chi["predictions"]}


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Json]] = {
    PHYSICAL: _physical,
    CNN: _cnn,
    APPLY: _applied,
    CHI: _chi,
    BOTH: _both,
}
# Whose results the old page can show.
PIPELINES = frozenset(_MAKERS)


def _nr(q: Numbers, measured: Numbers, calculated: Numbers | None) -> Json:
    # An answer from which no curve can be calculated has none: the measured one would look perfect.
    return {"q": q, "groundTruth": measured, "computed": [] if calculated is None else calculated}


def _training(losses: Sequence[Mapping[str, Any]]) -> Json:
    return {
        "epochs": list(range(1, len(losses) + 1)),
        "trainingLoss": [item["train_loss"] for item in losses],
        "validationLoss": [item["validation_loss"] for item in losses],
    }


def _metrics(metrics: Mapping[str, float]) -> Json:
    return {"mse": metrics["sld_rmse"] ** 2, "r2": metrics.get("sld_r2", 0.0), "mae": metrics["sld_mae"]}


def _chi_metrics(channels: Sequence[Mapping[str, Any]]) -> Json:
    return {
        "mse": fmean(channel["rmse"] ** 2 for channel in channels),
        "r2": fmean(channel["r2"] or 0.0 for channel in channels),
        "mae": fmean(channel["mae"] for channel in channels),
    }


def _chi_points(document: Mapping[str, Any]) -> list[Json]:
    """Each chi, true and predicted, of the test profile whose error is the median.

    What is predicted for measured profiles has no truth to be compared with.
    """
    points = document["chi"]
    if all(point["actual"] is not None for point in points):
        return list(points)
    # Objects come in any order; the list of channels is in that of the chi.
    columns = [document["test"][channel["name"]] for channel in document["channels"]]
    spans = [max(column["actual"]) - min(column["actual"]) or 1.0 for column in columns]
    errors = [
        fmean(
            abs(column["predicted"][row] - column["actual"][row]) / span
            for column, span in zip(columns, spans, strict=True)
        )
        for row in range(len(columns[0]["actual"]))
    ]
    median = sorted(range(len(errors)), key=errors.__getitem__)[len(errors) // 2]
    return [
        {"x": place, "predicted": column["predicted"][median], "actual": column["actual"][median]}
        for place, column in enumerate(columns, start=1)
    ]


def at(wanted: Numbers, x: Numbers, y: Numbers) -> list[float]:
    """The values of a line through points (x, y), x ascending, at other places; beyond its ends, theirs."""
    found = []
    for place in wanted:
        after = bisect_right(x, place)
        if after == 0:
            found.append(y[0])
        elif after == len(x):
            found.append(y[-1])
        else:
            left, right = x[after - 1], x[after]
            share = (place - left) / (right - left)
            found.append(y[after - 1] + share * (y[after] - y[after - 1]))
    return found
