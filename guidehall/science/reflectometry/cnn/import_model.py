"""Pipeline `reflectometry.import_model`: models of the package pyreflect become models of this platform."""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from guidehall.science.pipeline import Context, UserError, field_errors, raise_if_cancelled
from guidehall.science.reflectometry.chi import predictor as chi
from guidehall.science.reflectometry.chi.network import (
    autoencoder_shape,
    empty_chi_network,
    perceptron_outputs,
)
from guidehall.science.reflectometry.chi.params import MAX_LATENT, MAX_PROFILE_POINTS, ChiStatistics
from guidehall.science.reflectometry.cnn import predictor as cnn
from guidehall.science.reflectometry.cnn.files import (
    fit_weights,
    read_document,
    read_statistics,
    read_weights,
)
from guidehall.science.reflectometry.cnn.network import empty_network, shape_of
from guidehall.science.reflectometry.cnn.params import ImportModelParams, ImportModelResult
from guidehall.science.reflectometry.params import grid

PIPELINE = "reflectometry.import_model"
CHI_STATISTICS_ALLOWED = (
    'allowed: JSON such as {"chi": [{"min": 0.07, "max": 0.12}]}, one for each chi in turn'
)


def run(params: ImportModelParams, context: Context) -> ImportModelResult:
    """Reads the files of the job and publishes a model."""
    raise_if_cancelled(context)
    found: cnn.CnnPredictor | chi.ChiPredictor
    if params.kind == "cnn":
        found, architecture = read_cnn(params, context), cnn.ARCHITECTURE
        cnn.publish(context, params.model_name, PIPELINE, found, {})
    else:
        found, architecture = read_chi(context), chi.ARCHITECTURE
        chi.publish(context, params.model_name, PIPELINE, found, {})
    context.progress(1, 1, phase="import")
    weights = sum(tensor.numel() for tensor in found.network.state_dict().values())
    return ImportModelResult(model_name=params.model_name, architecture=architecture, weights=weights)


def read_chi(context: Context) -> chi.ChiPredictor:
    """The networks in the roles weights and perceptron, on the CPU; nobody measured their errors.

    Raises:
        UserError: says which file is wrong, and what is allowed.
    """
    path = context.dataset("statistics")
    document = read_document(path, "inputs.statistics", CHI_STATISTICS_ALLOWED)
    try:
        statistics = ChiStatistics.model_validate(document)
    except ValidationError as error:
        where, reason = field_errors(error, "inputs.statistics")[0]
        raise UserError(where, reason, CHI_STATISTICS_ALLOWED) from None
    autoencoder = read_weights(context.dataset("weights"))
    perceptron = read_weights(context.dataset("perceptron"), "inputs.perceptron")
    points, latent = autoencoder_shape(autoencoder, "inputs.weights")
    outputs = perceptron_outputs(perceptron, "inputs.perceptron")
    if not (2 <= points <= MAX_PROFILE_POINTS and 1 <= latent <= MAX_LATENT):
        allowed = f"2 to {MAX_PROFILE_POINTS} points and 1 to {MAX_LATENT} latent dimensions"
        raise UserError("inputs.weights", f"{points} and {latent}", allowed)
    if outputs != len(statistics.chi):
        allowed = f"must be {outputs}, one for each output of the perceptron"
        raise UserError("inputs.statistics.chi", f"{len(statistics.chi)} limits", allowed)
    network = empty_chi_network(points, latent, outputs)
    for part, files, field in (
        (network.autoencoder, autoencoder, "inputs.weights"),
        (network.perceptron, perceptron, "inputs.perceptron"),
    ):
        part.load_state_dict(fit_weights(files, part.state_dict(), field), assign=True)
    arguments = chi.ChiArguments(
        profile_points=points, latent_dim=latent, profiles=statistics.sld, chi=statistics.chi
    )
    return chi.ChiPredictor(arguments, network)


def read_cnn(params: ImportModelParams, context: Context) -> cnn.CnnPredictor:
    """The network in the roles weights and statistics, on the CPU.

    Raises:
        UserError: says which file is wrong, and what is allowed.
    """
    normalisation = read_statistics(context.dataset("statistics"))
    ends = normalisation.nr.x
    if not 0 < ends.min < ends.max <= 5:
        allowed = "q of the training curves: min above 0, and max between that and 5 1/angstrom"
        raise UserError("inputs.statistics.nr.x", f"{ends.min:g} to {ends.max:g}", allowed)
    found = read_weights(context.dataset("weights"))
    shape = shape_of(found)
    for name, limit in (("width", 512), ("kernel", 101), ("points", 4096), ("profile_points", 4096)):
        value: int = getattr(shape, name)
        if not 1 <= value <= limit:
            raise UserError("inputs.weights", f"{name}: {value}", f"must be between 1 and {limit}")
    network = empty_network(shape)
    network.load_state_dict(fit_weights(found, network.state_dict()), assign=True)
    q = np.asarray(grid(ends.min, ends.max, shape.points, params.q_spacing))
    arguments = cnn.CnnArguments(
        layers=shape.layers,
        width=shape.width,
        kernel=shape.kernel,
        q=tuple(q.tolist()),
        profile_points=shape.profile_points,
        normalisation=normalisation,
    )
    return cnn.CnnPredictor(arguments, network)
