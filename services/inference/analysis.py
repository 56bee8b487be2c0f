"""AnalyzeCurve and Simulate, free of transports: choose a model, run it, refine its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from guidehall.core.auth import Principal
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, Violation
from guidehall.science.pipeline import InvalidModel, field_errors
from guidehall.science.reflectometry.analysis import MAX_CUT, Analysis, analyse, refine
from guidehall.science.reflectometry.params import MediumPrior, SimulateParams, SimulateResult
from guidehall.science.reflectometry.predictor import ARCHITECTURE, PhysicalArguments, PhysicalPredictor
from guidehall.science.reflectometry.simulate import simulate
from services.inference.curves import MeasuredMedium, Measurement
from services.inference.dataplane import DataPlane, UnusableAnswer
from services.inference.execution import Engine, Turns
from services.inference.refinement import RefinementPool
from services.inference.versions import ModelKey, Published, Reference

# Tables of scattering length densities differ by about this, in 1e-6 per square angstrom.
_SLD_TOLERANCE = 0.1


@dataclass(frozen=True)
class CurveAnswer:
    """What was found, by which model."""

    published: Published
    analysis: Analysis


class ReflectometryAnalysis:
    """The use cases of ReflectometryService."""

    def __init__(self, plane: DataPlane, engine: Engine, refinement: RefinementPool) -> None:
        self._plane, self._refinement = plane, refinement
        self._simulations = Turns(engine)

    async def simulate(self, params: Mapping[str, Any]) -> tuple[SimulateParams, SimulateResult]:
        """The curve and the profile of a known stack.

        Raises:
            InvalidArgument: with a violation for each field that is wrong.
        """
        try:
            valid = SimulateParams.model_validate(params)
        except ValidationError as error:
            faults = [Violation(path, reason) for path, reason in field_errors(error, "params")]
            message = "; ".join(f"{fault.field}: {fault.description}" for fault in faults[:3])
            raise InvalidArgument(message, violations=faults) from error
        return valid, await self._simulations.run(simulate, valid)

    async def analyse(
        self,
        principal: Principal,
        reference: Reference | None,
        project: str,
        measurement: Measurement,
        *,
        refined: bool,
    ) -> CurveAnswer:
        """Physics from a measured curve.

        Args:
            reference: the model to ask; None takes the newest in `project` that fits the curve.
            refined: whether a fit follows the network's answer.

        Raises:
            InvalidArgument: the curve is wrong, or not one for the model.
            NotFound: no such model, or none that fits.
            FailedPrecondition: the model is none for curves.
            Unavailable, ResourceExhausted, DeadlineExceeded: see `Turns.run` and `RefinementPool.run`.
        """
        if reference is None:
            published, model, network = await self._newest_that_fits(principal, project, measurement)
        else:
            published, model, network = await self._ask(principal, reference, measurement)
        analysis = network
        if refined:
            analysis = await self._refinement.run(refine, model.arguments, measurement.curve, network.unit)
        return CurveAnswer(published, analysis)

    async def _newest_that_fits(
        self, principal: Principal, project: str, measurement: Measurement
    ) -> tuple[Published, PhysicalPredictor, Analysis]:
        misfits: list[str] = []
        seen: set[ModelKey] = set()
        for candidate in self._plane.candidates(principal):
            key = candidate.key
            # Of each model only its newest version: an older one was replaced for a reason.
            if candidate.architecture != ARCHITECTURE or key.project != project or key in seen:
                continue
            seen.add(key)
            try:
                await asyncio.to_thread(_check_candidate, candidate, measurement)
                return await self._ask(principal, Reference(key, candidate.version), measurement)
            except (InvalidArgument, FailedPrecondition, Unavailable, NotFound) as error:
                # The next one may fit, or load; a full queue, on the other hand, ends the search.
                misfits.append(f"{candidate.name}: {error.message}")
        if not misfits:
            raise NotFound(f"projects/{project} has no model for reflectivity curves", reason="NO_MODEL")
        raise InvalidArgument(
            f"none of {len(misfits)} models fits this curve; the newest says: {misfits[0]}",
            reason="NO_MODEL_FITS",
            metadata={f"model_{index}": text[:200] for index, text in enumerate(misfits[:5])},
            violations=[Violation("model", "name one, to be told what does not fit")],
        )

    async def _ask(
        self, principal: Principal, reference: Reference, measurement: Measurement
    ) -> tuple[Published, PhysicalPredictor, Analysis]:
        published, served = await self._plane.acquire(principal, reference)
        model = served.predictor
        if not isinstance(model, PhysicalPredictor):
            raise FailedPrecondition(
                f"{published.name} is {published.architecture}; curves need {ARCHITECTURE}",
                reason="WRONG_ARCHITECTURE",
            )
        _check_fit(model.arguments, measurement)
        analysis = await served.run(analyse, model, measurement.curve)
        if not bool(np.isfinite(analysis.unit).all()):
            raise UnusableAnswer(f"{published.name} answered a curve with numbers that are not finite")
        return published, model, analysis


def _check_candidate(published: Published, measurement: Measurement) -> None:
    _check_fit(_arguments(published), measurement)


@lru_cache(maxsize=256)
def _arguments(published: Published) -> PhysicalArguments:
    """What a version was trained for, known without loading it."""
    try:
        return PhysicalArguments.model_validate(published.read_manifest().arguments)
    except (InvalidModel, ValidationError) as error:
        raise FailedPrecondition(f"{published.name} cannot be read", reason="MODEL_UNREADABLE") from error


def _check_fit(arguments: PhysicalArguments, measurement: Measurement) -> None:
    """What can be told without running the model.

    Raises:
        InvalidArgument: the curve is of another kind of sample, or mostly outside the trained range.
    """
    stack, probe, curve = arguments.stack, arguments.probe, measurement.curve
    if curve.beam_side not in (None, stack.beam):
        allowed = f"{stack.beam}, the side that the model was trained for"
        raise InvalidArgument.field("curve.beam_side", curve.beam_side, allowed)
    for name, medium in measurement.media.items():
        _check_medium(name, medium, getattr(stack, name))
    outside = int(np.sum((curve.q < probe.q_min * (1 - 1e-4)) | (curve.q > probe.q_max * (1 + 1e-4))))
    if outside > MAX_CUT * len(curve.q):
        allowed = f"at most {MAX_CUT:.0%} outside {probe.q_min:g} to {probe.q_max:g} 1/angstrom"
        raise InvalidArgument.field("curve.q", f"{outside} of {len(curve.q)} points outside", allowed)


def _check_medium(name: str, medium: MeasuredMedium, prior: MediumPrior) -> None:
    for part in ("sld", "isld"):
        value, trained = getattr(medium, part), getattr(prior, part)
        if not trained.min - _SLD_TOLERANCE <= value <= trained.max + _SLD_TOLERANCE:
            allowed = f"{trained.min:g} to {trained.max:g}, what the model was trained for ({prior.name})"
            raise InvalidArgument.field(f"curve.{name}.{part}", value, allowed)
