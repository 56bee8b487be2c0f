"""Pipeline `reflectometry.import_model`: models of the package pyreflect become models of this platform."""

from __future__ import annotations

import numpy as np

from guidehall.science.pipeline import Context, UserError, raise_if_cancelled
from guidehall.science.reflectometry.cnn import predictor as cnn
from guidehall.science.reflectometry.cnn.files import fit_weights, read_statistics, read_weights
from guidehall.science.reflectometry.cnn.network import empty_network, shape_of
from guidehall.science.reflectometry.cnn.params import ImportModelParams, ImportModelResult
from guidehall.science.reflectometry.params import grid

PIPELINE = "reflectometry.import_model"


def run(params: ImportModelParams, context: Context) -> ImportModelResult:
    """Reads the files of the job and publishes a model."""
    raise_if_cancelled(context)
    predictor = read_cnn(params, context)
    context.progress(1, 1, phase="import")
    cnn.publish(context, params.model_name, PIPELINE, predictor, {})
    weights = sum(tensor.numel() for tensor in predictor.network.state_dict().values())
    return ImportModelResult(model_name=params.model_name, architecture=cnn.ARCHITECTURE, weights=weights)


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
