"""Curves and fitted models as files of others: ORSO text, CSV, `.npy`, and scripts for refl1d and refnx.

The scripts are plain Python that needs nothing of ours: whoever runs one sees the same reflectivity and the
same chi-square calculated by somebody else's program, and can go on with it.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.params import FWHM_PER_SIGMA, Layer, Medium, Stack

if TYPE_CHECKING:
    from orsopy.fileio import Orso, OrsoDataset
    from orsopy.fileio.model_language import SampleModel

    from guidehall.science.reflectometry.analysis import Analysis, Band, Explanation, Parameter

_UNIT = 1e-6
# More points of refl1d's own grid per measured one: so many that it is exact.
_OVERSAMPLING = 101


@dataclass(frozen=True)
class _Slab:
    """A medium as the beam meets it; its roughness is that of the interface towards the beam."""

    name: str
    thickness: float
    sld: float
    isld: float
    roughness: float
    # Whose roughness of ours that is.
    roughness_name: str


def to_npy(curve: Curve) -> bytes:
    """The curve as an array [points, 2 to 4]: q, R, dR, dq, in 1/angstrom and standard deviations.

    Columns that are not known are left out; dq without dR is too, for there is no place for it.
    """
    columns = [curve.q, curve.r]
    if curve.dr is not None:
        columns.append(curve.dr)
        dq = curve.sigma
        columns += [] if dq is None else [dq]
    buffer = io.BytesIO()
    np.save(buffer, np.stack(columns, axis=1), allow_pickle=False)
    return buffer.getvalue()


def to_csv(curve: Curve, calculated: np.ndarray | None = None, band: Band | None = None) -> bytes:
    """The curve with a line of column names, in 1/angstrom and standard deviations.

    Args:
        curve: N points.
        calculated: [N], the model's curve.
        band: of that.
    """
    columns = {
        "q (1/angstrom)": curve.q,
        "R": curve.r,
        "dR": curve.dr,
        "dq_sigma (1/angstrom)": curve.sigma,
        "R_model": calculated,
        **_band_columns("R_model", band),
    }
    return _csv({name: values for name, values in columns.items() if values is not None})


def profile_csv(analysis: Analysis) -> bytes:
    """The profile and its bands, with a line of column names: depth from the fronting medium on."""
    columns = {
        "z (angstrom)": analysis.z,
        "sld (1e-6/angstrom^2)": analysis.sld,
        "isld (1e-6/angstrom^2)": analysis.isld,
        **_band_columns("sld", analysis.sld_band),
    }
    return _csv(columns)


def samples_csv(parameters: Sequence[Parameter], samples: np.ndarray) -> bytes:
    """Samples of the posterior, [S, P], a line each: how parameters depend on each other."""
    return _csv(dict(zip((item.name for item in parameters), samples.T, strict=True)))


def explanations_csv(parameters: Sequence[Parameter], films: Sequence[Explanation]) -> bytes:
    """The films that explain a curve, the best first: a line each, chi-square last."""
    table = np.array([[*film.values, film.chi_square] for film in films])
    return _csv(dict(zip([*(item.name for item in parameters), "chi_square"], table.T, strict=True)))


def _band_columns(name: str, band: Band | None) -> dict[str, np.ndarray]:
    if band is None:
        return {}
    return {
        f"{name}_low_95": band.lower_95,
        f"{name}_low_68": band.lower_68,
        f"{name}_high_68": band.upper_68,
        f"{name}_high_95": band.upper_95,
    }


def _csv(columns: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(np.stack(list(columns.values()), axis=1).tolist())
    return buffer.getvalue().encode()


def parameters_csv(parameters: Sequence[Parameter]) -> bytes:
    """A line for each parameter: value, one standard deviation, intervals, bounds; empty where not known."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    names = (
        "parameter unit value standard_error low_68 high_68 low_95 high_95 lower_bound upper_bound at_bound"
    )
    lines.writerow(names.split())
    for item in parameters:
        ends = [*(item.interval_68 or ("", "")), *(item.interval_95 or ("", ""))]
        known = (item.name, item.unit, item.value, item.standard_error)
        lines.writerow([*known, *ends, item.lower, item.upper, item.at_bound])
    return buffer.getvalue().encode()


def to_ort(curve: Curve, calculated: np.ndarray | None = None, stack: Stack | None = None) -> bytes:
    """The curve as an ORSO text file; its header goes on where that of the file it came from ended.

    Args:
        curve: N points. Where dR or dq is not known, its column is NaN if another follows it.
        calculated: [N], the model's curve: a column more.
        stack: the model, in ORSO's language of samples. That has no word for scale and background.
    """
    return _orso_file([_orso_set(curve, calculated, stack)])


def join_ort(curves: Sequence[Curve]) -> bytes:
    """Curves as the sets of one ORSO text file; `metadata.data_set` names each, which none shares.

    Points are in the order of their segments, from which a reader tells these.
    """
    sets = []
    for curve in curves:
        if curve.segment is not None:
            order = np.argsort(curve.segment, kind="stable")
            known = {name: getattr(curve, name) for name in ("q", "r", "dr", "dq")}
            ordered: dict[str, Any] = {
                name: column[order] for name, column in known.items() if column is not None
            }
            curve = replace(curve, **ordered)
        found = _orso_set(curve, None, None)
        found.info.data_set = curve.metadata.data_set
        sets.append(found)
    return _orso_file(sets)


def _orso_file(sets: list[OrsoDataset]) -> bytes:
    from orsopy.fileio import save_orso

    buffer = io.StringIO()
    save_orso(sets, buffer)
    return buffer.getvalue().encode()


def _orso_set(curve: Curve, calculated: np.ndarray | None, stack: Stack | None) -> OrsoDataset:
    # It changes how PyYAML reads dates and writes tags in this process: only who writes such a file pays.
    from orsopy.fileio import Column, ErrorColumn, OrsoDataset

    missing = np.full(len(curve.q), np.nan)
    dq = curve.sigma
    arrays = [curve.q, curve.r, missing if curve.dr is None else curve.dr, missing if dq is None else dq]
    columns: list[Any] = [
        Column("Qz", "1/angstrom", physical_quantity="normal wavevector transfer"),
        Column("R", None, physical_quantity="reflectivity"),
        ErrorColumn("R", error_type="uncertainty", value_is="sigma"),
        ErrorColumn("Qz", error_type="resolution", value_is="sigma"),
    ]
    if calculated is not None:
        arrays.append(calculated)
        columns.append(Column("R_model", None, physical_quantity="reflectivity of the model"))
    else:
        kept = 4 if dq is not None else 3 if curve.dr is not None else 2
        arrays, columns = arrays[:kept], columns[:kept]
    header = _orso_header(curve)
    header.columns = columns
    if stack is not None:
        header.data_source.sample.model = sample_model(stack)
    return OrsoDataset(header, np.stack(arrays, axis=1))


def sample_model(stack: Stack) -> SampleModel:
    """The stack in ORSO's language of samples: from the side of the beam, all numbers written out."""
    from orsopy.fileio import ComplexValue, Value
    from orsopy.fileio.model_language import Layer as OrsoLayer
    from orsopy.fileio.model_language import Material, ModelParameters, SampleModel

    layers = {}
    for slab in _from_the_beam(stack):
        # That language parts names from thicknesses at blanks, and knows layers by their names.
        name = base = slab.name.replace(" ", "_")
        number = 1
        while name in layers:
            number += 1
            name = f"{base}_{number}"
        layers[name] = OrsoLayer(
            thickness=Value(slab.thickness, "angstrom"),
            roughness=Value(slab.roughness, "angstrom"),
            material=Material(sld=ComplexValue(slab.sld * _UNIT, slab.isld * _UNIT, "1/angstrom^2")),
        )
    return SampleModel(
        stack=" | ".join(layers),
        layers=layers,
        globals=ModelParameters(length_unit="angstrom", sld_unit="1/angstrom^2"),
    )


def refl1d_script(
    curve: Curve,
    stack: Stack,
    *,
    scale: float | Sequence[float] = 1.0,
    background: float | Sequence[float] = 0.0,
    q_offset: float = 0.0,
    free: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """A script for refl1d 1.0: `python SCRIPT` prints chi-square, `refl1d SCRIPT` goes on with the fit.

    It defines `q`, `experiment`, `problem` and `chi_square`.

    Args:
        curve: N points with dR.
        stack: the model.
        scale, background: measured = scale x reflectivity + background; of several segments, one for each.
        q_offset: the true q is the measured one plus this, in 1/angstrom. For refl1d it is no parameter: it
            stays as it is.
        free: bounds of what a fit may change, by names such as "film.thickness", "water.sld", "scale", and
            "scale[2]" of the second segment.

    Raises:
        UserError: the curve has no dR or another number of segments, or `free` names what there is not.
    """
    slabs = _from_the_beam(stack)[::-1]
    segments = _segments(curve, scale, background)
    places = _segment_places(segments, "probe", "intensity", "background")
    places |= _places(slabs, ("thickness", "material.rho", "material.irho", "interface"))
    fixed = [f"# The offset of q, {q_offset!r}, is no parameter of refl1d."] if q_offset else []
    true_q = f" + {q_offset!r}" if q_offset else ""
    return _script(
        "refl1d 1.0",
        [
            "import numpy as np",
            "from refl1d.names import SLD, Experiment, FitProblem, ProbeSet, QProbe, Slab",
        ],
        curve,
        [
            "# The beam comes through the last; interface is the roughness towards the next.",
            "slabs = [",
            *(
                f"    Slab(SLD(name={slab.name!r}, rho={slab.sld!r}, irho={slab.isld!r}), "
                f"thickness={slab.thickness!r}, interface={slab.roughness!r}),"
                for slab in slabs
            ),
            "]",
            "sample = slabs[0]",
            "for slab in slabs[1:]:",
            "    sample = sample | slab",
            *fixed,
            *_each(
                "probe",
                [
                    f"QProbe(q{part}{true_q}, dq{part}, R=r{part}, dR=dr{part}, "
                    f"intensity={factor!r}, background={constant!r})"
                    for part, factor, constant in segments
                ],
            ),
            *(["probe = ProbeSet(probes)"] if len(segments) > 1 else []),
            "if dq.any():",
            "    # Without it, refl1d blurs straight lines between the measured points.",
            f"    probe.oversample(n={_OVERSAMPLING})",
            "experiment = Experiment(sample=sample, probe=probe)",
            *(
                f"{place}.range({low!r}, {high!r})"
                for place, low, high in _free(free, places | {"q_offset": ""}, stack)
                if place
            ),
            "problem = FitProblem(experiment)",
        ],
        "float(np.sum(((experiment.reflectivity()[1] - r) / dr) ** 2))",
    )


def refnx_script(
    curve: Curve,
    stack: Stack,
    *,
    scale: float | Sequence[float] = 1.0,
    background: float | Sequence[float] = 0.0,
    q_offset: float = 0.0,
    free: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """A script for refnx 0.1: it prints chi-square, and with the word `fit` behind it goes on from there.

    It defines `q`, `model`, `objective` and `chi_square`. Arguments and errors are those of `refl1d_script`.
    """
    slabs = _from_the_beam(stack)
    quadrature = _quadrature(curve, slabs, q_offset)
    segments = _segments(curve, scale, background)
    places = _segment_places(segments, "model", "scale", "bkg") | {"q_offset": "q_offset"}
    places |= _places(slabs, ("thick", "sld.real", "sld.imag", "rough"))
    return _script(
        "refnx 0.1",
        [
            "import sys",
            "",
            "import numpy as np",
            "from refnx.analysis import CurveFitter, GlobalObjective, Objective, Parameter",
            "from refnx.dataset import Data1D",
            "from refnx.reflect import SLD, ReflectModel, Structure",
        ],
        curve,
        [
            "# The beam comes through the first; behind its thickness the roughness towards the one before.",
            "slabs = [",
            *(
                f"    SLD({complex(slab.sld, slab.isld)!r}, name={slab.name!r})"
                f"({slab.thickness!r}, {slab.roughness!r}),"
                for slab in slabs
            ),
            "]",
            "structure = Structure()",
            "for slab in slabs:",
            "    structure |= slab",
            f'q_offset = Parameter({q_offset!r}, name="q_offset")',
            "# refnx takes widths at half maximum.",
            f"columns = (q, r, dr, {FWHM_PER_SIGMA!r} * dq) if dq.any() else (q, r, dr)",
            *_each(
                "model",
                [
                    f"ReflectModel(structure, scale={factor!r}, bkg={constant!r}, dq=0.0, q_offset=q_offset)"
                    for _, factor, constant in segments
                ],
            ),
            *_each(
                "objective",
                [
                    f"Objective({name}, Data1D(tuple(column{part} for column in columns)))"
                    for name, (part, _, _) in zip(_names("model", len(segments)), segments, strict=True)
                ],
            ),
            *(f"{name}.quad_order = {quadrature}" for name in _names("model", len(segments))),
            *(["objective = GlobalObjective(objectives)"] if len(segments) > 1 else []),
            *(
                f"{place}.setp(vary=True, bounds=({low!r}, {high!r}))"
                for place, low, high in _free(free, places, stack)
            ),
        ],
        "float(objective.chisqr())",
        [
            '    if "fit" in sys.argv[1:]:',
            '        CurveFitter(objective).fit("least_squares")',
            "        print(objective)",
        ],
    )


def _quadrature(curve: Curve, slabs: Sequence[_Slab], q_offset: float) -> int:
    """As many points over the resolution as we take ourselves where we take most."""
    # These load torch: only who writes a script pays.
    from guidehall.science.reflectometry.kernel import Media
    from guidehall.science.reflectometry.resolution import Features, orders

    sigma = curve.sigma
    media = Media.of(
        sld=np.array([slab.sld for slab in slabs]),
        thickness=np.array([slab.thickness for slab in slabs[1:-1]]),
        roughness=np.array([slab.roughness for slab in slabs[1:]]),
    )
    sigma = np.zeros_like(curve.q) if sigma is None else sigma
    return int(orders(curve.q, sigma, Features.of(media, q_offset), exact=True).max())


def _script(
    program: str,
    imports: Sequence[str],
    curve: Curve,
    model: Sequence[str],
    chi_square: str,
    and_then: Sequence[str] = (),
) -> str:
    """A script for a program, of lines; `chi_square` is an expression of what the model's lines define."""
    lines = [
        f'"""A film and its measured reflectivity, for {program}. All lengths are in angstrom."""',
        "",
        *imports,
        "",
        *_data(curve),
        *model,
        f"chi_square = {chi_square}",
        "",
        'if __name__ == "__main__":',
        '    print(f"chi-square {chi_square:.6g} of {len(q)} points")',
        *and_then,
    ]
    return "\n".join(lines) + "\n"


class _Segment(NamedTuple):
    """A run of points; `part` takes it out of an array in a script, "" being all of it."""

    part: str
    scale: float
    background: float


def _segments(
    curve: Curve, scale: float | Sequence[float], background: float | Sequence[float]
) -> list[_Segment]:
    """The segments in the order of the script's points."""
    scales, backgrounds = (
        [float(value) for value in (given if isinstance(given, Sequence) else [given])]
        for given in (scale, background)
    )
    if len(scales) == 1 == len(backgrounds):
        return [_Segment("", scales[0], backgrounds[0])]
    counts = [] if curve.segment is None else np.bincount(curve.segment).tolist()
    if not len(counts) == len(scales) == len(backgrounds):
        found = f"{len(counts) or 1} segments"
        allowed = f"there must be one for each of {len(scales)} scales and {len(backgrounds)} backgrounds"
        raise UserError("curve.segment", found, allowed)
    ends = [0, *np.cumsum(counts).tolist()]
    parts = [f"[{first}:{end}]" for first, end in itertools.pairwise(ends)]
    return [_Segment(*item) for item in zip(parts, scales, backgrounds, strict=True)]


def _names(name: str, count: int) -> list[str]:
    """What a script calls each of so many: probe, or probes[0], probes[1] and so on."""
    return [name] if count == 1 else [f"{name}s[{place}]" for place in range(count)]


def _each(name: str, values: Sequence[str]) -> list[str]:
    """Lines that define them."""
    if len(values) == 1:
        return [f"{name} = {values[0]}"]
    return [f"{name}s = [", *(f"    {value}," for value in values), "]"]


def _segment_places(segments: Sequence[_Segment], name: str, scale: str, background: str) -> dict[str, str]:
    """What a script calls scale and background of each segment, by our names for them."""
    places: dict[str, str] = {}
    for number, place in enumerate(_names(name, len(segments)), start=1):
        which = f"[{number}]" if number > 1 else ""
        places |= {f"scale{which}": f"{place}.{scale}", f"background{which}": f"{place}.{background}"}
    return places


def _places(slabs: Sequence[_Slab], attributes: tuple[str, str, str, str]) -> dict[str, str]:
    """What a script calls thickness, sld, isld and roughness of each slab, by our names for them."""
    thickness, sld, isld, roughness = attributes
    places: dict[str, str] = {}
    for index, slab in enumerate(slabs):
        places |= {
            f"{slab.name}.thickness": f"slabs[{index}].{thickness}",
            f"{slab.name}.sld": f"slabs[{index}].{sld}",
            f"{slab.name}.isld": f"slabs[{index}].{isld}",
            slab.roughness_name: f"slabs[{index}].{roughness}",
        }
    return places


def _from_the_beam(stack: Stack) -> list[_Slab]:
    """The media in the order in which the beam meets them."""
    media: list[Medium] = [stack.fronting, *stack.layers, stack.backing]
    roughness = [part.roughness for part in (*stack.layers, stack.backing)]
    owners = [part.name for part in (*stack.layers, stack.backing)]
    if stack.beam == "backing":
        media, roughness, owners = media[::-1], roughness[::-1], owners[::-1]
    return [
        _Slab(
            name=medium.name,
            thickness=medium.thickness if isinstance(medium, Layer) else 0.0,
            sld=medium.sld,
            isld=medium.isld,
            roughness=roughness[index - 1] if index else 0.0,
            roughness_name=f"{owners[index - 1]}.roughness" if index else "",
        )
        for index, medium in enumerate(media)
    ]


def _data(curve: Curve) -> list[str]:
    """Lines that define q, r, dr and dq, segment after segment."""
    if curve.dr is None:
        raise UserError("curve.dr", "nothing", "the script compares by chi-square, which needs dR")
    dq = curve.sigma
    rows = np.stack([curve.q, curve.r, curve.dr, np.zeros_like(curve.q) if dq is None else dq], axis=1)
    if curve.segment is not None:
        rows = rows[np.argsort(curve.segment, kind="stable")]
    return [
        "# q in 1/angstrom, R, and one standard deviation of R and of q.",
        "q, r, dr, dq = np.array(",
        "    [",
        *(f"        [{', '.join(repr(float(value)) for value in row)}]," for row in rows),
        "    ]",
        ").T",
    ]


def _free(
    free: Mapping[str, tuple[float, float]] | None, places: Mapping[str, str], stack: Stack
) -> Iterator[tuple[str, float, float]]:
    """What the script calls each free parameter, and its bounds."""
    names = [part.name for part in (stack.fronting, *stack.layers, stack.backing)]
    for name, (low, high) in (free or {}).items():
        if name not in places or not name:
            raise UserError(f"free.{name}", name, f"must be one of {', '.join(filter(None, places))}")
        if names.count(name.rpartition(".")[0]) > 1:
            raise UserError(f"free.{name}", name, "must name one medium: several are called so")
        yield places[name], float(low), float(high)


def _orso_header(curve: Curve) -> Orso:
    """The header that the curve came with, or one of what is known."""
    from orsopy.fileio import Orso

    known = curve.metadata
    if "data_source" in known.header:
        return Orso.from_dict(deepcopy(dict(known.header)))
    header = Orso.empty()
    source = header.data_source
    source.owner.name = known.owner or None
    source.sample.name = known.sample or None
    experiment = source.experiment
    experiment.title, experiment.instrument = known.title or None, known.instrument or None
    experiment.facility, experiment.proposalID = known.facility or None, known.proposal or None
    experiment.start_date, experiment.probe = known.start or None, known.radiation or "neutron"
    source.measurement.data_files = [known.run or known.filename] if known.run or known.filename else []
    return header
