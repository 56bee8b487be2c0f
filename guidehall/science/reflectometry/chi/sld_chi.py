"""Pipeline `reflectometry.sld_chi`: train on profiles and their chi, test, publish, predict."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from guidehall.science.pipeline import Context, UserError
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.assessment import Stopwatch, channel_errors, metrics_of
from guidehall.science.reflectometry.chi.params import (
    MAX_CHI,
    MAX_PROFILE_POINTS,
    MAX_PROFILES,
    MIN_PROFILES,
    ChiFilter,
    ChiParams,
    ChiPoint,
    ChiPrediction,
    ChiProfile,
    ChiResult,
    ChiScatter,
)
from guidehall.science.reflectometry.chi.predictor import ChiPredictor, publish
from guidehall.science.reflectometry.chi.training import ChiSeeds, ChiTrainer
from guidehall.science.reflectometry.cnn.curves import read_pairs, refuse_wrong_sld_unit
from guidehall.science.reflectometry.epochs import Split
from guidehall.science.reflectometry.network_params import LARGEST
from guidehall.science.reflectometry.params import ChannelErrors

# Of all profiles, held back for validation, and as many for testing.
_HELD_BACK = 0.15
# Profiles and points of a scatter chart.
_MAX_PREDICTIONS, _MAX_SCATTER = 1000, 500


def run(params: ChiParams, context: Context) -> ChiResult:
    """Trains a model, publishes it, and applies it to the profiles in the role experimental_sld."""
    watch = Stopwatch()
    path = optional_dataset(context, "experimental_sld")
    profiles = (
        None if path is None else _read_profiles(path, "inputs.experimental_sld", (1, _MAX_PREDICTIONS))
    )
    data = training_set(params, context)
    watch.lap("generation")
    return train(params, context, "reflectometry.sld_chi", data, profiles, watch)


def optional_dataset(context: Context, role: str) -> Path | None:
    """The dataset in this role, if the job has one."""
    try:
        return context.dataset(role)
    except UserError:
        return None


def _read_profiles(path: Path, field: str, rows: tuple[int, int]) -> np.ndarray:
    """Profiles float32 [N, 2, L], z ascending; [2, L] is one."""
    profiles = read_pairs(path, field, rows=rows)
    refuse_wrong_sld_unit(profiles, field)
    if (np.diff(profiles[:, 0]) < 0).any():
        raise UserError(field, "z that descends", "z comes first, in angstrom, and must not descend")
    return profiles


class ChiSet(NamedTuple):
    """What there is to train with.

    Attributes:
        profiles: float32 [N, 2, M].
        chi: float64 [N, C].
        flat: how many profiles were left out because nothing varies in them.
        filtered: how many others because of the filters.
    """

    profiles: np.ndarray
    chi: np.ndarray
    flat: int
    filtered: int


def training_set(params: ChiParams, context: Context) -> ChiSet:
    """The datasets sld_curves and chi_params, without what is not to be trained with.

    Raises:
        UserError: they are none, do not belong together, or too little is left.
    """
    profiles, chi = _read_training(context)
    varies = np.ptp(profiles[:, 1], axis=1) > 0
    wanted = _wanted(chi, params.filters)
    keep = varies & wanted
    if keep.sum() < MIN_PROFILES:
        found = f"{int(keep.sum())} of {len(profiles)} profiles left"
        raise UserError("filters", found, f"at least {MIN_PROFILES} that are not flat must be left")
    flat, filtered = int((~varies).sum()), int((varies & ~wanted).sum())
    context.log(f"{flat} flat profiles and {filtered} outside the filters are left out")
    return ChiSet(profiles[keep], chi[keep], flat, filtered)


def train(
    params: ChiParams,
    context: Context,
    pipeline: str,
    data: ChiSet,
    experimental: np.ndarray | None,
    watch: Stopwatch,
    *,
    stoppable: bool = True,
) -> ChiResult:
    """Trains, and publishes in the name of `pipeline`.

    Args:
        experimental: profiles [N, 2, L] to predict.
        watch: what reading all this took.
        stoppable: whether to end early when that is desired.
    """
    profiles, chi = data.profiles, data.chi
    split = Split.of(len(profiles), _HELD_BACK, ChiSeeds.of(context.seed).split)
    trainer = ChiTrainer(params, context, profiles, chi, split, stoppable)
    stopped = trainer.run()
    watch.lap("training")
    predictor = trainer.predictor()
    channels, metrics, test, median, row = _test(predictor, profiles[split.test], chi[split.test])
    shown = profiles[split.test][row] if experimental is None else experimental[0]
    watch.lap("evaluation")
    context.log("test: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    predictions = [] if experimental is None else _predictions(predictor, experimental)
    watch.lap("inference")
    publish(context, params.model_name, pipeline, predictor, metrics)
    actual = np.array([item.actual for item in test.values()]).T
    predicted = np.array([item.predicted for item in test.values()]).T
    plots.attach(context, "chi", plots.chi(actual, predicted, list(test)))
    for name, losses in trainer.losses.items():
        plots.attach(context, f"{name}-losses", plots.loss_curve(losses))
    points = median
    if predictions:
        points = [ChiPoint(x=i + 1, predicted=c, actual=None) for i, c in enumerate(predictions[0].chi)]
    return ChiResult(
        model_name=params.model_name,
        stopped_early=stopped,
        profiles=len(profiles),
        flat_profiles=data.flat,
        filtered_profiles=data.filtered,
        metrics=metrics,
        channels=channels,
        seconds=watch.seconds(),
        provenance=context.provenance,
        autoencoder_losses=trainer.losses["autoencoder"],
        perceptron_losses=trainer.losses["perceptron"],
        chi=points,
        predictions=predictions,
        test=test,
        profile=_profile(predictor, shown),
    )


def _profile(predictor: ChiPredictor, profile: np.ndarray) -> ChiProfile:
    (z, sld), again = predictor.reconstructed(profile)
    return ChiProfile(z=z.tolist(), sld=sld.tolist(), reconstructed_sld=again.tolist())


def _read_training(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Profiles float32 [N, 2, M] and their chi float64 [N, C]."""
    field = "inputs.sld_curves"
    profiles = _read_profiles(context.dataset("sld_curves"), field, (MIN_PROFILES, MAX_PROFILES))
    if profiles.shape[2] > MAX_PROFILE_POINTS:
        raise UserError(field, f"{profiles.shape[2]} points", f"at most {MAX_PROFILE_POINTS}")
    field = "inputs.chi_params"
    allowed = (
        f"must be a .npy file of finite numbers [{len(profiles)}, 1 to {MAX_CHI}], a row for each profile"
    )
    try:
        chi = np.load(context.dataset("chi_params"), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(field, "bytes numpy cannot read", allowed) from None
    if not isinstance(chi, np.ndarray) or chi.dtype.kind not in "fiu" or chi.ndim != 2:
        raise UserError(field, "another kind of file", allowed)
    if len(chi) != len(profiles) or not 1 <= chi.shape[1] <= MAX_CHI:
        raise UserError(field, f"{chi.dtype} {list(chi.shape)}", allowed)
    values: np.ndarray = np.array(chi, dtype=np.float64)
    # NaN is not below anything.
    if not (np.abs(values) <= LARGEST).all():
        raise UserError(field, "NaN or a huge number", allowed)
    return profiles, values


def _wanted(chi: np.ndarray, filters: tuple[ChiFilter, ...]) -> np.ndarray:
    wanted = np.ones(len(chi), dtype=bool)
    for index, item in enumerate(filters):
        if item.parameter > chi.shape[1]:
            allowed = f"the dataset has {chi.shape[1]}"
            raise UserError(f"filters[{index}].parameter", item.parameter, allowed)
        column = chi[:, item.parameter - 1]
        wanted &= (column >= item.min) & (column <= item.max)
    return wanted


def _test(
    predictor: ChiPredictor, profiles: np.ndarray, chi: np.ndarray
) -> tuple[list[ChannelErrors], dict[str, float], dict[str, ChiScatter], list[ChiPoint], int]:
    """Errors of each chi in its own unit, its scatter, the test profile whose error is the median."""
    answer = predictor.answer(profiles)
    predicted = answer["chi"].astype(np.float64)
    errors = predicted - chi
    channels = [
        channel_errors(f"chi{column + 1}", "", predicted[:, column], chi[:, column])
        for column in range(chi.shape[1])
    ]
    metrics, test = metrics_of(channels, "."), {}
    for column, name in enumerate(channel.name for channel in channels):
        inside = (chi[:, column] >= answer["chi_low"][:, column]) & (
            chi[:, column] <= answer["chi_high"][:, column]
        )
        metrics[f"{name}.coverage"] = float(inside.mean())
        test[name] = ChiScatter(
            actual=chi[:_MAX_SCATTER, column].tolist(), predicted=predicted[:_MAX_SCATTER, column].tolist()
        )
    metrics["typical"] = float(answer["typical"].mean())
    spans = np.array([extent.span for extent in predictor.arguments.chi])
    row = int(np.abs(errors / spans).mean(axis=1).argsort()[len(errors) // 2])
    points = [
        ChiPoint(x=i + 1, predicted=float(pair[0]), actual=float(pair[1]))
        for i, pair in enumerate(zip(predicted[row], chi[row], strict=True))
    ]
    return channels, metrics, test, points, row


def _predictions(predictor: ChiPredictor, profiles: np.ndarray) -> list[ChiPrediction]:
    answer = predictor.answer(profiles)
    return [
        ChiPrediction(
            chi=answer["chi"][row].tolist(),
            low=answer["chi_low"][row].tolist(),
            high=answer["chi_high"][row].tolist(),
            in_range=answer["in_range"][row].tolist(),
            typical=bool(answer["typical"][row, 0]),
            latent=answer["latent"][row].tolist(),
        )
        for row in range(len(profiles))
    ]
