"""The one translation of what the old web app asks for into a job of the platform."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guidehall.core.errors import InvalidArgument
from services.gateway.legacy import films
from services.gateway.legacy.requests import Architecture, GenerateRequest, exceeded, wrong_bounds
from services.gateway.settings import LimitSettings

Json = dict[str, Any]

PHYSICAL, CNN = "reflectometry.nr_sld", "reflectometry.pyreflect_cnn"
APPLY, CHI, BOTH = "reflectometry.pyreflect_predict", "reflectometry.sld_chi", "reflectometry.nr_sld_chi"
# The least that can be divided into curves for training, validation and testing.
MIN_CURVES = 10
# Of the made curves, trained with; the others are held back.
_TRAINED_SHARE = 0.8
# Of a physical network, tested with at most so many.
_MOST_HELD_BACK = 512
# The old app trains with films whose first chi lies here, and leaves out the others.
_FIRST_CHI = (0.07, 0.12)
# Roles of pipelines by those of the old app.
_CHI_ROLES = {
    "sld_curves": "sld_chi_model_sld_file",
    "chi_params": "sld_chi_model_chi_params_file",
    "experimental_sld": "sld_chi_experimental_profile",
}
_TRAIN_ROLES = {"nr_train": "nr_train", "sld_train": "sld_train"}
_APPLY_ROLES = {
    "weights": "nr_sld_model",
    "statistics": "normalization_stats",
    "experimental_nr": "experimental_nr",
}


@dataclass(frozen=True)
class Run:
    """A job to be: its pipeline, parameters, and datasets by the pipeline's roles."""

    pipeline: str
    params: Json
    inputs: dict[str, str] = field(default_factory=dict)


def check(request: GenerateRequest, limits: LimitSettings) -> None:
    """Refuses what goes beyond a limit, and bounds that make no sense.

    Raises:
        InvalidArgument: says all that is wrong.
    """
    problem = exceeded(request, limits) or wrong_bounds(request)
    if problem:
        raise InvalidArgument(problem)


def run_of(request: GenerateRequest, model_id: str, usual: Architecture, files: Mapping[str, str]) -> Run:
    """The job that a request asks for.

    Args:
        request: within its limits.
        model_id: of the model that is to be.
        usual: the network of who names none.
        files: dataset versions by the old app's roles, of a run on measured data.

    Raises:
        InvalidArgument: it is impossible, or a file is missing.
    """
    architecture = request.training.architecture or usual
    if request.is_real:
        return _real(request, model_id, files)
    if architecture == "physical":
        return Run(PHYSICAL, _physical(request, model_id))
    return Run(CNN, _cnn(request, model_id))


def _cnn(request: GenerateRequest, model_id: str) -> Json:
    curves = request.generator.num_curves
    if curves < MIN_CURVES:
        raise InvalidArgument.field("generator.numCurves", curves, f"at least {MIN_CURVES} for this network")
    return {
        **_cnn_training(request, model_id),
        "curves": curves,
        "stack": _film(request),
        "probe": films.probe(),
        "profile_points": films.PROFILE_POINTS,
    }


def _cnn_training(request: GenerateRequest, model_id: str) -> Json:
    training = request.training
    return {
        "model_name": model_id,
        "network": {"layers": training.layers, "dropout": training.dropout},
        "training": {"epochs": training.epochs, "batch_size": training.batch_size},
    }


def _physical(request: GenerateRequest, model_id: str) -> Json:
    curves, training = request.generator.num_curves, request.training
    return {
        "model_name": model_id,
        "stack": _film(request),
        "probe": films.probe(),
        # The old app's curves have no noise; so little is none.
        "noise": {"relative_error": 0.0, "counts": {"min": 1e15, "max": 1e15}},
        "training": {
            "epochs": training.epochs,
            "batch_size": training.batch_size,
            "steps_per_epoch": math.ceil(_TRAINED_SHARE * curves / training.batch_size),
            "fixed_curves": curves,
            "validation_curves": min(max(curves // 10, 1), _MOST_HELD_BACK),
        },
    }


def _film(request: GenerateRequest) -> Json:
    film = films.stack(request)
    if films.is_fixed(film):
        raise InvalidArgument.field(
            "generator.layerBound", "only fixed values", "at least one parameter between two values"
        )
    return film


def _real(request: GenerateRequest, model_id: str, files: Mapping[str, str]) -> Run:
    if request.training.architecture == "physical":
        raise InvalidArgument.field(
            "training.architecture", "physical", "pyreflect_cnn, the one that files of curves can train"
        )
    infer = request.mode == "infer"
    if request.workflow == "nr_sld" and infer:
        return Run(APPLY, {}, _inputs(files, _APPLY_ROLES))
    if request.workflow == "nr_sld":
        params = {**_cnn_training(request, model_id), "curves_from_datasets": True}
        return Run(CNN, params, _inputs(files, _TRAIN_ROLES))
    if request.workflow == "sld_chi":
        return Run(CHI, _chi(request, model_id), _inputs(files, _CHI_ROLES))
    chi_roles = {role: file for role, file in _CHI_ROLES.items() if role != "experimental_sld"}
    if infer:
        params = {"cnn": None, "chi": _chi(request, f"{model_id}-chi")}
        return Run(BOTH, params, _inputs(files, {**chi_roles, **_APPLY_ROLES}))
    cnn = {**_cnn_training(request, model_id), "curves_from_datasets": True}
    inputs = _inputs(files, {**chi_roles, **_TRAIN_ROLES})
    if "experimental_nr" in files:
        inputs["experimental_nr"] = files["experimental_nr"]
    return Run(BOTH, {"cnn": cnn, "chi": _chi(request, f"{model_id}-chi")}, inputs)


def _chi(request: GenerateRequest, model_name: str) -> Json:
    training = request.training
    low, high = _FIRST_CHI
    return {
        "model_name": model_name,
        "latent_dim": training.latent_dim,
        "filters": [{"parameter": 1, "min": low, "max": high}],
        "autoencoder": {"epochs": training.ae_epochs, "batch_size": training.batch_size},
        "perceptron": {"epochs": training.mlp_epochs, "batch_size": training.batch_size},
    }


def _inputs(files: Mapping[str, str], roles: Mapping[str, str]) -> dict[str, str]:
    missing = [role for role in roles.values() if role not in files]
    if missing:
        raise InvalidArgument(f"files are missing: {', '.join(missing)}; upload them first")
    return {role: files[name] for role, name in roles.items()}
