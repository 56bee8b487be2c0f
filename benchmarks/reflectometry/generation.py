"""Curves and profiles per CPU second, ours beside the field's engines, on the five layers of pyreflect.

R is a curve of 308 points, blurred unless a row says sharp; SLD is a profile of 900 points. Each engine draws
or is given films of the same bounds, and all are run in turn in one process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyreflect.input.reflectivity_data_generator import ReflectivityDataGenerator
from refl1d.profile import _build_profiles_backend
from refl1d.sample.reflectivity import convolve, reflectivity_amplitude
from refnx.reflect.reflect_model import reflectivity as refnx_reflectivity
from refnx.reflect.structure import sld_profile as refnx_profile
from torch import Tensor

from benchmarks.reflectometry import five_layers
from benchmarks.rows import Row, at_least, interleaved_cpu_seconds, single_thread
from guidehall.science.reflectometry import engine, kernel
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_POINTS,
    LEGACY_PROFILE_POINTS,
    LEGACY_RELATIVE_SIGMA,
    legacy_q,
)

_SEED = 1
_OURS, _PYREFLECT, _CORE = "ours R+SLD", "pyreflect R+SLD", "refl1d core R"
_SHARP, _CUDA_WHOLE = "C engine R, sharp", "CUDA torch kernel R+SLD"
_MEASURED_FOR_MEMORY = (_OURS, "torch kernel R+SLD", _PYREFLECT, "refl1d core R+SLD", "refnx R+SLD")
# Two processes run side by side for so many seconds each.
_SECONDS = 4.0


def run(quick: bool, *, curves: int | None = None) -> list[Row]:
    """Rates of all engines, and the two ratios that are promised."""
    with single_thread():
        rates = _rates(curves or (32 if quick else 256), 3 if quick else 9)
        two = _in_two_processes(0.5 if quick else _SECONDS)
        memory = _memory((_OURS, _PYREFLECT) if quick else _MEASURED_FOR_MEMORY, 32 if quick else 256)
        cuda = _cuda_rates() if torch.cuda.is_available() else {}
    rows = [Row(name, rate, "curves/CPU-s") for name, rate in rates.items()]
    for name, rate in cuda.items():
        if name == _CUDA_WHOLE:
            rows.append(at_least(name, rate, "curves/s", 3e6))
        else:
            rows.append(Row(name, rate, "curves/s"))
    rows += [
        Row(f"{name}: peak memory of a process", peak, "MB", note=f"{before:.4g} MB of them before any curve")
        for name, (before, peak) in memory.items()
    ]
    pair = rates[_OURS] / rates[_PYREFLECT]
    alone = rates[_SHARP] / rates[_CORE]
    note = f"engine {engine.name()}"
    return [
        *rows,
        at_least("R+SLD, ours / pyreflect, one process", pair, "times", 30, note),
        at_least(
            "R+SLD, ours / pyreflect, two processes",
            two[_OURS] / two[_PYREFLECT],
            "times",
            30,
            f"per CPU second: ours {two[_OURS]:.4g}, pyreflect {two[_PYREFLECT]:.4g}",
        ),
        at_least("R, sharp, ours / refl1d core", alone, "times", 8, note),
        at_least(
            "R, sharp, ours / refl1d core, two processes",
            two[_SHARP] / two[_CORE],
            "times",
            8,
            f"per CPU second: ours {two[_SHARP]:.4g}, refl1d {two[_CORE]:.4g}",
        ),
        Row("R, blurred, ours / refl1d core (sharp)", rates["C engine R"] / rates[_CORE], "times", note=note),
    ]


def _films(count: int) -> Media:
    """Air first."""
    prior = five_layers.prior()
    return prior.films(prior.values(five_layers.films(count, _SEED)))


def _rates(count: int, rounds: int) -> dict[str, float]:
    runs = _runs(count)
    seconds = interleaved_cpu_seconds(rounds, {name: run.call for name, run in runs.items()})
    return {name: runs[name].curves / spent for name, spent in seconds.items()}


@dataclass(frozen=True)
class _Run:
    """Makes so many curves."""

    curves: int
    call: Callable[[], object]


def _runs(count: int) -> dict[str, _Run]:
    """The slow ones make fewer curves in each round."""
    films, few = _films(count), max(count // 8, 4)
    q, seen = torch.from_numpy(legacy_q()), five_layers.seen()
    runs = {
        _OURS: _Run(count, _ours(count)),
        "C engine R": _Run(count, lambda: engine.blur(seen, engine.reflectivity(q, films))),
        _SHARP: _Run(count, lambda: engine.reflectivity(q, films)),
        "torch kernel R+SLD": _Run(
            count,
            lambda: (
                seen.apply(kernel.reflectivity(q, films)),
                kernel.sampled_profile(films.reversed(), films.reversed().sld, LEGACY_PROFILE_POINTS),
            ),
        ),
        "torch kernel R, sharp": _Run(count, lambda: kernel.reflectivity(q, films)),
        _PYREFLECT: _Run(few, _pyreflect(few)),
        "refl1d core R+SLD": _Run(few, _refl1d(films, few, whole=True)),
        _CORE: _Run(few, _refl1d(films, few, whole=False)),
        "refnx R+SLD": _Run(few, _refnx(films, few, whole=True)),
        "refnx R, sharp": _Run(few, _refnx(films, few, whole=False)),
    }
    if importlib.util.find_spec("reflectorch") is not None:
        runs["reflectorch R, sharp, float32"] = _Run(few, _reflectorch(films, few))
    return runs


def _ours(count: int) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Films drawn anew in each call, as pyreflect does."""
    prior, seen = five_layers.prior(), five_layers.seen()
    generator = torch.Generator().manual_seed(_SEED)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        unit = torch.rand(count, len(prior.free), generator=generator, dtype=torch.float64)
        values = prior.values(unit)
        film = prior.films(values).reversed()
        z, sld = engine.sampled_profile(film, film.sld, LEGACY_PROFILE_POINTS)
        return prior.curves(seen, values), z, sld

    return call


def _pyreflect(count: int) -> Callable[[], None]:
    with contextlib.redirect_stdout(io.StringIO()):
        generator = ReflectivityDataGenerator(num_layers=5)

    def call() -> None:
        # A generator also returns the curves of earlier calls; its progress bar would be timed too.
        generator.model._refl_array, generator.model._smooth_array = [], []
        quiet = io.StringIO()
        hushed = contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet)
        with hushed[0], hushed[1], warnings.catch_warnings():
            # refl1d warns of how pyreflect calls it.
            warnings.simplefilter("ignore")
            generator.generate(count)

    return call


def _refl1d(films: Media, count: int, *, whole: bool) -> Callable[[], None]:
    """The compiled functions of refl1d by themselves, on arrays made beforehand."""
    q, width = legacy_q(), five_layers.sigma()
    sld, roughness = films.sld.numpy()[:count], films.roughness.numpy()[:count]
    depth = np.pad(films.thickness.numpy()[:count], ((0, 0), (1, 1)))
    absorption = np.zeros(sld.shape[1])

    def call() -> None:
        for one_depth, one_sld, one_roughness in zip(depth, sld, roughness, strict=True):
            amplitude = reflectivity_amplitude(q / 2, one_depth, one_sld[None], absorption, one_roughness)
            r = np.abs(amplitude) ** 2
            if whole:
                convolve(q, r, q, width)
                _refl1d_profile(one_depth[::-1], one_sld[::-1], one_roughness[::-1])

    return call


def _refl1d_profile(depth: np.ndarray, sld: np.ndarray, roughness: np.ndarray) -> np.ndarray:
    """From the substrate on: at every 0.1 angstrom, then at 900 points, as pyreflect asks for it."""
    places = np.cumsum(depth[:-1])
    first = min(-10.0, float((places - 3 * roughness).min()))
    last = max(places[-1] + 10.0, float((places + 3 * roughness).max()))
    z = np.arange(first, last + 0.05, 0.1)
    profile = _build_profiles_backend(z, places, roughness, sld[None].copy())[0]
    sampled: np.ndarray = np.interp(np.linspace(z[0], z[-1], LEGACY_PROFILE_POINTS), z, profile)
    return sampled


def _refnx(films: Media, count: int, *, whole: bool) -> Callable[[], None]:
    q = legacy_q()
    slabs = np.zeros((count, films.sld.shape[1], 4))
    slabs[:, 1:-1, 0] = films.thickness[:count]
    slabs[:, :, 1] = films.sld[:count]
    slabs[:, 1:, 3] = films.roughness[:count]
    # In percent at half maximum, which refnx takes for the same at all points.
    width = 100.0 * 2.3548 * LEGACY_RELATIVE_SIGMA if whole else 0.0
    z = np.linspace(-250.0, 900.0, LEGACY_PROFILE_POINTS)

    def call() -> None:
        for film in slabs:
            refnx_reflectivity(q, film, dq=width, threads=1)
            if whole:
                refnx_profile(film, z)

    return call


def _reflectorch(films: Media, count: int) -> Callable[[], Tensor]:
    # Not among what ./run installs: its row is there where somebody installed it.
    abeles = importlib.import_module("reflectorch.data_generation.reflectivity").abeles
    q = torch.from_numpy(legacy_q()).float().expand(count, LEGACY_POINTS)
    parts = [part[:count].float() for part in (films.thickness, films.roughness, films.sld)]
    # It takes the SLD of the fronting medium for 0.
    parts[2] = parts[2][:, 1:]
    found: Callable[[], Tensor] = lambda: abeles(q, *parts)  # noqa: E731
    return found


def _in_two_processes(seconds: float) -> dict[str, float]:
    """Curves per CPU second of each engine where two processes of one make them at the same time."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rates = {
            name: float(np.mean(pool.starmap(_steady_rate, [(name, seconds)] * 2, chunksize=1)))
            for name in (_OURS, _PYREFLECT, _SHARP, _CORE)
        }
        pool.close()
        pool.join()
    return rates


def _steady_rate(name: str, seconds: float) -> float:
    torch.set_num_threads(1)
    count, call = _runs(128)[name].curves, _runs(128)[name].call
    call()
    done, start, until = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        call()
        done += count
    return done / (time.process_time() - start)


def _memory(names: tuple[str, ...], count: int) -> dict[str, tuple[float, float]]:
    """By engine, the most MB in memory of a process of its own: after importing, and after its curves."""
    found = {}
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(_own_memory, (name, count))
            pool.close()
            pool.join()
    return found


def _own_memory(name: str, count: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    run_once = _runs(count)[name]
    before = _peak_megabytes()
    run_once.call()
    return before, _peak_megabytes()


def _peak_megabytes() -> float:
    """The most that this process had in memory.

    What `getrusage` tells is no less than what the process had that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _cuda_rates(count: int = 4096, rounds: int = 5) -> dict[str, float]:
    """The torch kernel on a GPU, in wall seconds."""
    films = _films(count)
    there = Media(*(part.cuda() for part in (films.sld, films.isld, films.thickness, films.roughness)))
    q, seen = torch.from_numpy(legacy_q()).cuda(), five_layers.seen().to("cuda")
    reverse = there.reversed()
    runs: dict[str, Callable[[], object]] = {
        "CUDA torch kernel R": lambda: seen.apply(kernel.reflectivity(q, there)),
        _CUDA_WHOLE: lambda: (
            seen.apply(kernel.reflectivity(q, there)),
            kernel.sampled_profile(reverse, reverse.sld, LEGACY_PROFILE_POINTS),
        ),
    }
    rates = {}
    for name, call in runs.items():
        spent = []
        for _ in range(rounds + 1):
            torch.cuda.synchronize()
            start = time.monotonic()
            call()
            torch.cuda.synchronize()
            spent.append(time.monotonic() - start)
        rates[name] = count / float(np.median(spent[1:]))
    return rates
