"""Pipeline `reflectometry.plan`: what a measurement would tell, before there is beam time.

Curves of the film that is expected are calculated as the instrument would see them, for each counting time.
The derivatives of a curve by the parameters, over its error bars, give the information of a measurement
(Fisher's). The inverse of that and the prior's gives the error bars of a fit (the bound of Cramer and Rao).
Fits of drawn measurements check that.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from guidehall.science.pipeline import Context, UserError, raise_if_cancelled
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.fit import CurveTarget, LogTarget, Search, search
from guidehall.science.reflectometry.infer_params import probe_of
from guidehall.science.reflectometry.params import grid, sigma_of
from guidehall.science.reflectometry.plan_params import PlannedTime, PlanParams, PlanResult
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import orders, resolution
from guidehall.science.reflectometry.watched import Watched

# As many starts as `reflectometry.infer` takes by default.
_SEARCH = Search(starts=24)


def run(params: PlanParams, context: Context) -> PlanResult:
    """Calculates the expected errors and checks them by fits."""
    prior = Prior(params.stack, probe_of(params.instrument))
    names = [free.name for free in prior.free]
    truth = _truth(prior, params.expected)
    measurement, instrument = params.measurement, params.instrument
    q = grid(measurement.q_min, measurement.q_max, measurement.points, "log")
    sigma = sigma_of(instrument.resolution, instrument.resolution_convention) * q
    order = orders(q, sigma, prior.features, exact=True)
    found = prior.linearise(resolution(q, sigma, instrument.resolution_mode, order), truth)
    r, slopes = found.r[0], found.slopes[0]
    # Of the values, by the places in the unit cube.
    step = torch.full_like(truth, 1e-6)
    stretch = ((prior.values(truth + step) - prior.values(truth - step)) / 2e-6)[0]
    generator = torch.Generator().manual_seed(context.seed)
    times = []
    for place, seconds in enumerate(measurement.seconds):
        raise_if_cancelled(context)
        counts = measurement.counts_per_second * seconds
        # No point is known better than by one neutron.
        dr = ((measurement.relative_error * r) ** 2 + r / counts + counts**-2).sqrt()
        weighted = slopes / dr
        # 12 is the inverse variance of the unit interval: the prior.
        information = weighted @ weighted.T + 12.0 * torch.eye(len(names), dtype=torch.float64)
        errors = torch.linalg.inv(information).diagonal().sqrt()
        drawn = r + dr * torch.randn(params.checks, len(q), generator=generator, dtype=torch.float64)
        scatter: dict[str, float] = {}
        if params.checks:
            target = CurveTarget(
                prior,
                q,
                drawn.numpy(),
                dr.expand(params.checks, -1).numpy(),
                sigma,
                instrument.resolution_mode,
                exact=True,
            )
            # From anywhere, as a measurement whose answer nobody knows: begun at the truth, a fit would stay
            # there even where the data say nothing.
            anywhere = torch.empty(params.checks, 0, len(names), dtype=torch.float64)
            watched, smoother = (
                Watched(one, lambda: raise_if_cancelled(context)) for one in (target, LogTarget(target))
            )
            modes = search(watched, smoother, anywhere, context.seed, _SEARCH)
            best = torch.from_numpy(np.stack([found[0].unit for found in modes]))
            missed = (prior.values(best) - prior.values(truth)).square().mean(0).sqrt()
            scatter = dict(zip(names, missed.tolist(), strict=True))
        times.append(
            PlannedTime(
                seconds=seconds,
                standard_errors=dict(zip(names, (errors * stretch).tolist(), strict=True)),
                share_of_prior=dict(zip(names, (errors * 12.0**0.5).tolist(), strict=True)),
                scatter=scatter,
            )
        )
        context.progress(place + 1, len(measurement.seconds), phase="plan")
    expected = dict(zip(names, prior.values(truth)[0].tolist(), strict=True))
    buffer = io.BytesIO()
    np.save(buffer, np.stack([q, r.numpy(), dr.numpy(), sigma], axis=1), allow_pickle=False)
    context.artifact("expected-curve.npy", buffer.getvalue(), "application/x-npy")
    plots.attach(context, "errors", _picture(times))
    return PlanResult(expected=expected, times=times)


def _truth(prior: Prior, expected: Mapping[str, float]) -> Tensor:
    """The expected film in the unit cube, [1, P].

    Raises:
        UserError: a name or a value that the prior does not have.
    """
    names = [free.name for free in prior.free]
    unit = torch.full((1, len(names)), 0.5, dtype=torch.float64)
    values = prior.values(unit)
    for name, value in expected.items():
        if name not in names:
            raise UserError(f"expected.{name}", value, f"the free parameters are {', '.join(names)}")
        free = prior.free[names.index(name)]
        if not free.lower <= value <= free.upper:
            raise UserError(f"expected.{name}", value, f"must be between {free.lower:g} and {free.upper:g}")
        values[0, names.index(name)] = value
    return prior.unit(values)


def _picture(times: Sequence[PlannedTime]) -> Figure:
    """Error bars as a share of what is known beforehand, against counting time."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    seconds = [item.seconds for item in times]
    for name in times[0].share_of_prior:
        axes.plot(seconds, [item.share_of_prior[name] for item in times], "o-", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="Counting time of a point (s)",
        ylabel="Error bar / spread of the prior",
    )
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return figure
