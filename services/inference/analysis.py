"""AnalyzeCurve and Simulate, free of transports: choose a model, run it, refine its answer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from pydantic import ValidationError

from guidehall.core.auth import Principal
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, Violation
from guidehall.science.pipeline import InvalidModel, field_errors
from guidehall.science.reflectometry.analysis import MAX_CUT, Analysis, analyse, refine
from guidehall.science.reflectometry.params import MediumPrior, Note, SimulateParams, SimulateResult
from guidehall.science.reflectometry.predictor import ARCHITECTURE, PhysicalArguments, PhysicalPredictor
from guidehall.science.reflectometry.simulate import simulate
from services.inference.curves import MeasuredMedium, Measurement
from services.inference.dataplane import DataPlane, UnusableAnswer
from services.inference.execution import Engine, Turns
from services.inference.refinement import RefinementPool
from services.inference.versions import ModelKey, Published, Reference

_log = logging.getLogger(__name__)

# Tables of scattering length densities differ by about this, in 1e-6 per square angstrom.
_SLD_TOLERANCE = 0.1
# How many models one call looks at to find those that accept its curve; more would be unpacked by every call.
_MAX_LOOKED_AT = 256


@dataclass(frozen=True)
class Refinement:
    """A fit that follows the network's answer.

    Attributes:
        samples: of the posterior, for intervals and bands; 0 draws none.
        seed: of the fit's starts and of the samples.
    """

    samples: int = 0
    seed: int = 0


@dataclass(frozen=True)
class CurveAnswer:
    """What was found, by which model.

    Attributes:
        notes: what a reader must know beside the notes of the analysis.
    """

    published: Published
    analysis: Analysis
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """What the network of a version answered."""

    published: Published
    model: PhysicalPredictor
    analysis: Analysis

    @property
    def error(self) -> float:
        """Mean |log10 R| between curve and answer; infinite where there is nothing to compare."""
        error = self.analysis.mean_abs_log10_error
        return error if math.isfinite(error) else math.inf


class ReflectometryAnalysis:
    """The use cases of ReflectometryService."""

    def __init__(
        self, plane: DataPlane, engine: Engine, refinement: RefinementPool, max_candidates: int
    ) -> None:
        self._plane, self._refinement, self._max_candidates = plane, refinement, max_candidates
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
        refinement: Refinement | None = None,
    ) -> CurveAnswer:
        """Physics from a measured curve.

        Args:
            reference: the model to ask; None takes, of the newest versions of the models in `project` that
                accept the curve, the one whose network explains it best.
            refinement: the fit that follows the network's answer; None leaves it out.

        Raises:
            InvalidArgument: the curve is wrong, or not one for the model.
            NotFound: no such model, or none that fits.
            FailedPrecondition: the model is none for curves.
            Unavailable, ResourceExhausted, DeadlineExceeded: see `Turns.run` and `RefinementPool.run`.
        """
        notes: tuple[Note, ...] = ()
        if reference is None:
            asked, notes = await self._best(principal, project, measurement)
        else:
            asked = await self._ask(principal, reference, measurement)
        analysis = asked.analysis
        if refinement is not None:
            fit = partial(refine, samples=refinement.samples, seed=refinement.seed)
            analysis = await self._refinement.run(
                fit, asked.model.arguments, measurement.curve, analysis.unit
            )
            if refinement.samples and analysis.effective_samples is None:
                message = "the curve has no dr, so the posterior was not sampled: no intervals, no bands"
                notes = (*notes, Note("NOT_SAMPLED", message))
        return CurveAnswer(asked.published, analysis, notes)

    async def _best(
        self, principal: Principal, project: str, measurement: Measurement
    ) -> tuple[_Asked, tuple[Note, ...]]:
        """The model whose network explains the curve best, and what to say of the choice."""
        accepted: list[_Asked] = []
        misfits: list[str] = []
        seen: set[ModelKey] = set()
        asked = 0
        for candidate in self._plane.candidates(principal):
            key = candidate.key
            # Of each model only its newest version: an older one was replaced for a reason.
            if candidate.architecture != ARCHITECTURE or key.project != project or key in seen:
                continue
            seen.add(key)
            try:
                await asyncio.to_thread(_check_candidate, candidate, measurement)
                asked += 1
                accepted.append(await self._ask(principal, Reference(key, candidate.version), measurement))
            except (InvalidArgument, FailedPrecondition, Unavailable, NotFound) as error:
                # Another one may fit, or load; a full queue, on the other hand, ends the search.
                misfits.append(f"{candidate.name}: {error.message}")
            except UnusableAnswer:
                # Of no use to anybody, and no reason to withhold what the others say.
                _log.exception("a model cannot be compared", extra={"model": candidate.name})
                misfits.append(f"{candidate.name}: its answer is of no use")
            # Those that fail count too, or one call could have everything loaded.
            if (
                len(accepted) == self._max_candidates
                or asked == 2 * self._max_candidates
                or len(seen) == _MAX_LOOKED_AT
            ):
                break
        if not accepted:
            raise _nobody(project, misfits)
        # The first of equals is the newest.
        best = min(accepted, key=lambda asked: asked.error)
        if len(accepted) == 1:
            return best, ()
        compared = ", ".join(f"{_short(asked.published)} {asked.error:.3g}" for asked in accepted)
        message = f"{_short(best.published)} explains the curve best; mean |log10 R| of those compared: "
        return best, (Note("MODELS_COMPARED", message + compared),)

    async def _ask(self, principal: Principal, reference: Reference, measurement: Measurement) -> _Asked:
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
        return _Asked(published, model, analysis)


def _nobody(project: str, misfits: list[str]) -> NotFound | InvalidArgument:
    """Why no model answers, after each said why it does not."""
    if not misfits:
        return NotFound(f"projects/{project} has no model for reflectivity curves", reason="NO_MODEL")
    return InvalidArgument(
        f"none of {len(misfits)} models fits this curve; the newest says: {misfits[0]}",
        reason="NO_MODEL_FITS",
        metadata={f"model_{index}": text[:200] for index, text in enumerate(misfits[:5])},
        violations=[Violation("model", "name one, to be told what does not fit")],
    )


def _short(published: Published) -> str:
    """Such as "film@3"."""
    return f"{published.key.model}@{published.version}"


def _check_candidate(published: Published, measurement: Measurement) -> None:
    _check_fit(_arguments(published), measurement)


@lru_cache(maxsize=_MAX_LOOKED_AT)
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
