"""Files for other programs: what they read in them, and what the scripts calculate, compared with ours."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refnx
import torch
from orsopy.fileio import load_orso
from refnx.dataset import ReflectDataset
from refnx.reflect import ReflectModel, Structure

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.export import (
    refl1d_script,
    refnx_script,
    sample_model,
    to_csv,
    to_npy,
    to_ort,
)
from guidehall.science.reflectometry.formats import read_curves
from guidehall.science.reflectometry.kernel import reflectivity
from guidehall.science.reflectometry.params import Stack
from guidehall.science.reflectometry.simulate import media_of

MEASURED = Path(refnx.__file__).parent / "analysis/tests/e361r.txt"
SCALE, BACKGROUND = 0.97, 2e-6


def stack(beam: str = "fronting", **more: Any) -> Stack:
    """A film under water that no mirror image and no exchange of roughnesses leaves as it is."""
    return Stack.model_validate(
        {
            "fronting": {"name": "silicon", "sld": 2.07, "isld": 0.01},
            "layers": [
                {"name": "oxide", "thickness": 12, "sld": 3.47, "roughness": 3},
                {"name": "film", "thickness": 210, "sld": -0.4, "isld": 0.02, "roughness": 5, **more},
            ],
            "backing": {"name": "heavy water", "sld": 6.2, "roughness": 7},
            "beam": beam,
        }
    )


def calculated(film: Stack, q: np.ndarray, dq: np.ndarray | None = None) -> np.ndarray:
    """Scaled, blurred by a fine sum over a Gaussian and with background, from our kernel."""
    media = media_of(film)
    media = media.reversed() if film.beam == "backing" else media
    if dq is None:
        return SCALE * reflectivity(torch.from_numpy(q), media)[0].numpy() + BACKGROUND
    nodes = np.linspace(-4, 4, 801)
    weights = np.exp(-0.5 * nodes**2)
    spread = (q[:, None] + dq[:, None] * nodes).ravel()
    sharp = reflectivity(torch.from_numpy(spread), media)[0].numpy().reshape(len(q), -1)
    return SCALE * (sharp @ weights) / weights.sum() + BACKGROUND


def measured(film: Stack, with_dq: bool = False) -> tuple[Curve, np.ndarray]:
    q = np.geomspace(0.008, 0.25, 90)
    dq = 0.02 * q if with_dq else None
    r = calculated(film, q, dq)
    dr = 0.03 * r + 1e-7
    return Curve(q, r + dr * np.random.default_rng(3).normal(size=len(q)), dr, dq), r


def run(script: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "script.py"
    path.write_text(script)
    return runpy.run_path(str(path))


def reflectivity_of(names: dict[str, Any]) -> np.ndarray:
    if "experiment" in names:
        return np.asarray(names["experiment"].reflectivity()[1])
    return np.asarray(names["objective"].generative())


SCRIPTS = pytest.mark.parametrize("script", [refl1d_script, refnx_script])


@SCRIPTS
@pytest.mark.parametrize("beam", ["fronting", "backing"])
def test_scripts_calculate_what_we_do(script: Any, beam: str, tmp_path: Path) -> None:
    film = stack(beam)
    curve, ours = measured(film)
    assert curve.dr is not None
    names = run(script(curve, film, scale=SCALE, background=BACKGROUND), tmp_path)
    np.testing.assert_allclose(reflectivity_of(names), ours, rtol=1e-10)
    chi_square = np.sum(((curve.r - ours) / curve.dr) ** 2)
    assert names["chi_square"] == pytest.approx(chi_square, rel=1e-9)


@SCRIPTS
def test_scripts_blur_as_we_do(script: Any, tmp_path: Path) -> None:
    film = stack()
    curve, ours = measured(film, with_dq=True)
    assert curve.dr is not None
    names = run(script(curve, film, scale=SCALE, background=BACKGROUND), tmp_path)
    # refl1d ends its Gaussian at 3.7 standard deviations, refnx at 3.5, this at 4.
    np.testing.assert_allclose(reflectivity_of(names), ours, rtol=4e-3)
    chi_square = np.sum(((curve.r - ours) / curve.dr) ** 2)
    assert names["chi_square"] == pytest.approx(chi_square, rel=3e-3)
    # A resolution that is a part of q is the same.
    assert curve.dq is not None
    relative = Curve(curve.q, curve.r, curve.dr, relative_dq=0.02)
    assert script(relative, film) == script(curve, film)


@SCRIPTS
def test_scripts_of_a_measured_film(script: Any, tmp_path: Path) -> None:
    """With one standard deviation of five per cent FWHM, of which refnx's own model takes the FWHM."""
    data = ReflectDataset(MEASURED)
    fwhm = 2.0 * np.sqrt(2.0 * np.log(2.0))
    curve = Curve(data.x, data.y, data.y_err, relative_dq=0.05 / fwhm)
    film = stack()
    theirs = ReflectModel(Structure.from_orso(sample_model(film)), dq=5.0, bkg=BACKGROUND, scale=SCALE)
    names = run(script(curve, film, scale=SCALE, background=BACKGROUND), tmp_path)
    # Its constant dq/q is a coarser sum; a resolution wrong by 2.355 would be off by 1.
    np.testing.assert_allclose(np.log(reflectivity_of(names)), np.log(theirs(data.x)), atol=0.04)


@SCRIPTS
def test_scripts_know_segments_and_the_offset_of_q(script: Any, tmp_path: Path) -> None:
    film, offset, scales = stack(), 2e-4, [0.97, 1.08]
    q = np.geomspace(0.008, 0.25, 90)
    # Two angles that overlap, sorted as a curve is.
    segment = np.where(q < 0.03, 0, np.where(q > 0.05, 1, np.arange(90) % 2))
    sharp = (calculated(film, q + offset) - BACKGROUND) / SCALE
    ours = np.array(scales)[segment] * sharp + np.array([BACKGROUND, 3e-6])[segment]
    dr = 0.03 * ours + 1e-7
    curve = Curve(q, ours + dr * np.random.default_rng(3).normal(size=90), dr, segment=segment)
    options = {"scale": scales, "background": [BACKGROUND, 3e-6], "q_offset": offset}
    free = {"scale": (0.9, 1.1), "scale[2]": (1.0, 1.2), "background[2]": (0, 1e-5), "q_offset": (0, 1e-3)}
    names = run(script(curve, film, **options, free=free), tmp_path)
    expected = np.sum(((curve.r - ours) / dr) ** 2)
    assert names["chi_square"] == pytest.approx(expected, rel=1e-9)
    if script is refl1d_script:
        got = [(item.value, *item.bounds) for item in names["problem"]._parameters]
    else:
        varying = names["objective"].varying_parameters()
        got = [(item.value, item.bounds.lb, item.bounds.ub) for item in varying]
    values = {"scale": 0.97, "scale[2]": 1.08, "background[2]": 3e-6, "q_offset": offset}
    fitted = [name for name in free if name != "q_offset" or script is refnx_script]
    np.testing.assert_allclose(sorted(got), sorted((values[name], *free[name]) for name in fitted))
    with pytest.raises(UserError, match=r"curve\.segment: got 2 segments; there must be one for each of 3"):
        script(curve, film, scale=[1.0, 1.0, 1.0], background=[0.0, 0.0, 0.0])


FREE = {
    "oxide.roughness": (0.0, 8.0),
    "film.thickness": (150.0, 300.0),
    "film.sld": (-1.0, 1.0),
    "heavy water.roughness": (1.0, 9.0),
    "scale": (0.8, 1.2),
    "background": (0.0, 1e-4),
}


@pytest.mark.parametrize("beam", ["fronting", "backing"])
def test_what_is_free_has_its_bounds_and_value(beam: str, tmp_path: Path) -> None:
    film = stack(beam)
    curve, _ = measured(film)
    values = {
        "oxide.roughness": 3.0,
        "film.thickness": 210.0,
        "film.sld": -0.4,
        "heavy water.roughness": 7.0,
        "scale": SCALE,
        "background": BACKGROUND,
    }
    options = {"scale": SCALE, "background": BACKGROUND, "free": FREE}
    expected = sorted((values[name], *FREE[name]) for name in FREE)
    refl1d = run(refl1d_script(curve, film, **options), tmp_path)["problem"]
    got = [(item.value, *item.bounds) for item in refl1d._parameters]
    np.testing.assert_allclose(sorted(got), expected)
    objective = run(refnx_script(curve, film, **options), tmp_path)["objective"]
    got = [(item.value, item.bounds.lb, item.bounds.ub) for item in objective.varying_parameters()]
    np.testing.assert_allclose(sorted(got), expected)


@pytest.mark.slow
def test_the_refnx_script_fits(tmp_path: Path) -> None:
    film = stack()
    curve, _ = measured(film)
    path = tmp_path / "script.py"
    path.write_text(refnx_script(curve, stack(thickness=205), scale=SCALE, background=BACKGROUND, free=FREE))
    answer = subprocess.run([sys.executable, path, "fit"], capture_output=True, text=True, check=True)
    assert "of 90 points" in answer.stdout
    assert "thick" in answer.stdout


@SCRIPTS
def test_scripts_refuse_what_they_cannot_say(script: Any) -> None:
    film = stack()
    curve, _ = measured(film)
    with pytest.raises(
        UserError, match=r"free\.film\.colour: got film\.colour; must be one of scale, background"
    ):
        script(curve, film, free={"film.colour": (0, 1)})
    with pytest.raises(UserError, match=r"free\.film\.sld: got film\.sld; must name one medium"):
        script(curve, film.model_copy(update={"layers": film.layers[1:] * 2}), free={"film.sld": (0, 1)})
    with pytest.raises(UserError, match=r"curve\.dr: got nothing"):
        script(Curve(curve.q, curve.r), film)


@pytest.mark.parametrize("beam", ["fronting", "backing"])
def test_refnx_reads_the_sample_in_an_orso_header(beam: str, tmp_path: Path) -> None:
    film = stack(beam)
    curve, ours = measured(film)
    path = tmp_path / "fit.ort"
    path.write_bytes(to_ort(curve, ours, film))
    (item,) = load_orso(str(path))
    model = ReflectModel(
        Structure.from_orso(item.info.data_source.sample.model), scale=SCALE, bkg=BACKGROUND, dq=0.0
    )
    np.testing.assert_allclose(model(curve.q), ours, rtol=1e-10)
    np.testing.assert_array_equal(item.data[:, 4], ours)
    assert [column.name for column in item.info.columns] == ["Qz", "R", "sR", "sQz", "R_model"]
    theirs = ReflectDataset(path)
    np.testing.assert_array_equal(theirs.y_err, curve.dr)


def test_media_of_one_name_stay_apart() -> None:
    film = stack().model_copy(update={"layers": stack().layers[1:] * 3})
    model = sample_model(film)
    assert model.stack == "silicon | film | film_2 | film_3 | heavy_water"
    layers = model.resolve_to_layers()
    assert [layer.thickness.as_unit("angstrom") for layer in layers] == [0, 210, 210, 210, 0]
    assert layers[4].material.get_sld() * 1e6 == pytest.approx(6.2)


@pytest.mark.parametrize("with_dq", [False, True])
def test_what_is_written_is_read_back(with_dq: bool) -> None:
    curve, ours = measured(stack(), with_dq)
    for data in (to_ort(curve), to_ort(curve, ours, stack()), to_csv(curve), to_csv(curve, ours)):
        (back,) = read_curves(data)
        for name in ("q", "r", "dr", "dq"):
            np.testing.assert_array_equal(getattr(back, name), getattr(curve, name))
    (back,) = read_curves(to_npy(curve), dq="sigma")
    np.testing.assert_array_equal(back.q, curve.q)
    np.testing.assert_array_equal(back.dq, curve.dq)


def test_only_what_is_known_is_written() -> None:
    curve = Curve(np.array([0.01, 0.02]), np.array([1.0, -1e-7]), relative_dq=0.02)
    assert to_csv(curve).decode().splitlines()[0] == "q (1/angstrom),R,dq_sigma (1/angstrom)"
    assert np.load(io.BytesIO(to_npy(curve))).shape == (2, 2)
    (back,) = read_curves(to_ort(curve))
    assert back.dr is None
    np.testing.assert_allclose(back.dq, 0.02 * curve.q)
    plain = Curve(curve.q, curve.r)
    assert load_orso(io.StringIO(to_ort(plain).decode()))[0].data.shape == (2, 2)


def test_the_header_of_a_file_goes_on() -> None:
    """Also to somebody else's program, and with dates."""
    import orsopy

    path = Path(orsopy.__file__).parent / "fileio/tests/test_example2.ort"
    curve = read_curves(path.read_bytes(), path.name)[1]
    (back,) = read_curves(to_ort(curve, curve.r, stack()))
    for name in ("sample", "instrument", "proposal", "run", "owner", "start", "polarization", "data_set"):
        assert getattr(back.metadata, name) == getattr(curve.metadata, name) != ""
    text = Curve(curve.q, curve.r, curve.dr)
    assert read_curves(to_ort(text))[0].metadata.sample == ""


def test_facts_of_other_formats_go_into_the_header() -> None:
    data = b"# instrument: D17\n# sample: a film\n# run: 4711\n# date: 2026-01-02\n0.01 1\n0.02 1\n"
    (curve,) = read_curves(data)
    (back,) = read_curves(to_ort(curve))
    facts = back.metadata
    assert (facts.instrument, facts.sample, facts.run) == ("D17", "a film", "4711")
    assert facts.start.startswith("2026-01-02")
