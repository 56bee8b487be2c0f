"""`guidehall.fit`: the science as a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import refnx

import guidehall
from guidehall.science.pipeline import UserError
from tests.unit.science.reflectometry.test_infer import FILM

MEASURED = Path(refnx.__file__).parent / "analysis/tests"


@pytest.fixture(scope="module")
def answer() -> object:
    return guidehall.fit(MEASURED / "e361r.txt", FILM, samples=100, starts=8)


def test_a_film_is_found_and_shown(answer: Any, tmp_path: Path) -> None:
    assert answer["film.thickness"].value == pytest.approx(211, abs=1)
    assert answer.chi_square < 151
    assert len(answer.plot().subfigs) == 2
    page = answer._repr_html_()
    assert "film.thickness" in page
    assert "data:image/png;base64," in page
    assert "film.thickness" in str(answer)
    assert f"Guidehall {guidehall.__version__}" in answer.cite()
    written = answer.save(tmp_path)
    assert {"curve-1.ort", "curve-1-refnx.py"} <= {path.name for path in written}
    with pytest.raises(KeyError, match=r"film\.thickness"):
        answer["film.thicknes"]


def test_three_liquids_share_one_film() -> None:
    curves = [
        guidehall.fit(MEASURED / f"{name}.txt", FILM, samples=0, starts=1).curves[0].curve
        for name in ("e361r", "e365r")
    ]
    own = [{"water.sld": {"min": 5.9, "max": 6.4}}, {"water.sld": {"min": 1.5, "max": 4.0}}]
    found = guidehall.fit(curves, FILM, own=own, samples=0, starts=12)
    names = [parameter.name for parameter in found.parameters]
    assert names.count("film.thickness") == 1
    assert {"1: water.sld", "2: water.sld"} <= set(names)
    assert len(found.analyses) == 2


@pytest.mark.parametrize(
    ("data", "model", "field"),
    [
        ("nowhere.ort", FILM, "data"),
        (MEASURED / "e361r.txt", {"layers": []}, "model.fronting"),
        (MEASURED / "e361r.txt", "nowhere.yml", "model"),
    ],
)
def test_what_is_wrong_is_named(data: object, model: object, field: str) -> None:
    with pytest.raises(UserError) as caught:
        guidehall.fit(data, model)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"), [({"samples": -1}, "samples"), ({"starts": 0}, "starts"), ({"data": []}, "data")]
)
def test_impossible_arguments_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        guidehall.fit(**{"data": MEASURED / "e361r.txt", "model": FILM, **changes})
    assert caught.value.field == field


def test_the_client_alone_does_not_load_the_science() -> None:
    import subprocess
    import sys

    code = "import sys, guidehall.client; assert 'torch' not in sys.modules and 'numpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
