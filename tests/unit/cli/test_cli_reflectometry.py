"""`guidehall reflectometry`, as far as it needs no platform."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import refnx
import yaml

from guidehall.cli._app import run
from guidehall.cli._result import show
from guidehall.science.reflectometry.chi.params import ChiParams
from guidehall.science.reflectometry.formats.read import read_curves
from guidehall.science.reflectometry.infer_params import InferResult
from guidehall.science.reflectometry.params import NrSldParams

SETTINGS = """
nr_predict_sld:
    file: {nr_train: nr.npy, sld_train: gone.npy, experimental_nr_file: ../../secret}
    models: {num_film_layers: 2, num_curves: 320, epochs: 3, batch_size: 16}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Old Project"
    folder.mkdir()
    (folder / "settings.yml").write_text(SETTINGS)
    np.save(folder / "nr.npy", np.ones((5, 2, 308), dtype=np.float32))
    return folder


def test_prints_parameters_and_what_becomes_of_each_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reflectometry", "import-settings", str(folder), "--model-name", "old", "--dry-run"]) == 0
    text = capsys.readouterr().out
    params = NrSldParams.model_validate(yaml.safe_load(text))
    assert (params.model_name, params.training.epochs, params.training.steps_per_epoch) == ("old", 3, 16)
    assert len(params.stack.layers) == 3
    assert "# nr_train: nr.npy (float32 [5, 2, 308]): can be uploaded" in text
    assert "# sld_train: gone.npy: is not there" in text
    assert "# experimental_nr: ../../secret: lies outside the folder" in text


def test_writes_parameters_into_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "film.yml"
    settings = folder / "settings.yml"
    command = ["reflectometry", "import-settings", str(settings), "--output", str(output), "--dry-run"]
    assert run(command) == 0
    assert capsys.readouterr().out == f"datasets uploaded: 0; parameters written to {output}\n"
    NrSldParams.model_validate(yaml.safe_load(output.read_text()))


def test_a_dry_run_uploads_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reflectometry", "import-settings", str(folder), "--dry-run", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [file["dataset"] for file in answer["files"]] == [None, None, None]
    assert NrSldParams.model_validate(answer["params"]).training.batch_size == 16


def test_settings_without_a_training_give_no_parameters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "settings.yml").write_text("sld_predict_chi: {file: {}}\n")
    assert run(["reflectometry", "import-settings", str(folder)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) is None


def test_a_name_cannot_leave_its_comment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "settings.yml").write_text('nr_predict_sld: {file: {nr_train: "a\\nmodel_name: b\\e[2J"}}\n')
    assert run(["reflectometry", "import-settings", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "model_name" not in yaml.safe_load(text)


def test_refusals_name_the_setting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "settings.yml").write_text("nr_predict_sld: {models: {epochs: none}}\n")
    assert run(["reflectometry", "import-settings", str(folder)]) == 2
    assert "nr_predict_sld.models.epochs: got" in capsys.readouterr().err
    (folder / "settings.yml").unlink()
    assert run(["reflectometry", "import-settings", str(folder)]) == 2
    assert "must hold one of settings.yaml" in capsys.readouterr().err
    assert run(["reflectometry", "import-settings", str(folder / "gone")]) == 2


CHI = "sld_predict_chi: {models: {latent_dim: 2, ae_epochs: 20, mlp_epochs: 30}}\n"


def test_a_training_to_chi_comes_along(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As comments beside the other training, as the document where there is no other."""
    (folder / "settings.yml").write_text(SETTINGS + CHI)
    assert run(["reflectometry", "import-settings", str(folder), "--dry-run"]) == 0
    text = capsys.readouterr().out
    NrSldParams.model_validate(yaml.safe_load(text))
    assert "#   latent_dim: 2\n" in text
    (folder / "settings.yml").write_text(CHI)
    assert run(["reflectometry", "import-settings", str(folder), "--model-name", "old"]) == 0
    params = ChiParams.model_validate(yaml.safe_load(capsys.readouterr().out))
    assert (params.model_name, params.latent_dim, params.perceptron.epochs) == ("old-chi", 2, 30)


@pytest.fixture
def measured(tmp_path: Path) -> list[Path]:
    """Two files of text without units, whose q look like 1/nm, the second with its resolution in percent."""
    q = np.linspace(0.1, 3.0, 12)
    r = 1e-3 / q
    paths = [tmp_path / "d2o.txt", tmp_path / "h2o.txt"]
    np.savetxt(paths[0], np.stack([q, r, 0.1 * r], axis=1), header="q R dR")
    columns = np.stack([q, r, 0.1 * r, np.full(12, 2.0)], axis=1)
    np.savetxt(paths[1], columns, header="q, R, dR, dq (%)", delimiter=",")
    return paths


def test_join_says_how_each_file_was_read(
    measured: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "all.ort"
    command = ["reflectometry", "join", *map(str, measured), "--dq", "sigma", "--output", str(output)]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert shown.out == f"2 curves written to {output}: d2o, h2o\n"
    lines = shown.err.splitlines()
    assert all(line.startswith(("note: d2o: ", "note: h2o: ")) for line in lines)
    assert [line.split(": ")[1] for line in lines if "1/angstrom was taken" in line] == ["d2o", "h2o"]
    assert any(line.startswith("note: h2o: dq is in percent of q") for line in lines)
    assert run([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["curves"] == ["d2o", "h2o"]
    assert [f"note: {note}" for note in answer["notes"]] == lines


def test_join_takes_the_unit_of_q(
    measured: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "all.ort"
    command = ["reflectometry", "join", str(measured[0]), "--q-unit", "1/nm", "--output", str(output)]
    assert run(command) == 0
    assert "1/angstrom was taken" not in capsys.readouterr().err
    (curve,) = read_curves(output.read_bytes(), output.name)
    np.testing.assert_allclose(curve.q, np.linspace(0.01, 0.3, 12))


def test_join_refuses_a_file_named_twice_and_an_output_that_is_an_input(
    measured: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = measured[0].read_bytes()
    other = measured[0].with_name("other.ort")
    os.link(measured[0], other)
    for files, output, said in (
        ([measured[0], measured[0]], measured[0].with_name("all.ort"), "is named twice"),
        ([measured[0], other], measured[0].with_name("all.ort"), "is named twice"),
        (measured, measured[0], "is one of the files that are read"),
        # By another name it is the same file.
        (measured, other, "is one of the files that are read"),
    ):
        command = ["reflectometry", "join", *map(str, files), "--dq", "sigma", "--output", str(output)]
        assert run(command) == 2
        assert said in capsys.readouterr().err
    assert measured[0].read_bytes() == before
    assert not measured[0].with_name("all.ort").exists()


def test_fit_writes_over_nothing_that_it_reads(
    measured: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Path(__file__).parents[3] / "examples/infer.yml"
    curve = tmp_path / "curve-1.csv"
    curve.write_bytes(measured[0].read_bytes())
    (tmp_path / "fit.png").symlink_to(curve)
    command = ["reflectometry", "fit", str(curve), "--stack", str(stack)]
    for words, said in (
        (("--save", str(tmp_path)), "--save: " + f"{tmp_path} holds curve-1.csv, which is read"),
        (("--plot", str(tmp_path / "fit.png")), "fit.png is one of the files that are read"),
    ):
        assert run([*command, *words]) == 2
        shown = capsys.readouterr()
        assert said.removeprefix("--save: ") in shown.err
        assert words[0] in shown.err
        # Refused before the work.
        assert not shown.out
    assert curve.read_bytes() == measured[0].read_bytes()


def test_imported_settings_do_not_write_over_the_project(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = folder / "settings.yml"
    before = settings.read_bytes()
    command = ["reflectometry", "import-settings", str(folder), "--dry-run", "--output", str(settings)]
    assert run(command) == 2
    assert "is one of the files that are read" in capsys.readouterr().err
    assert settings.read_bytes() == before


def test_a_refusal_names_the_flag_that_is_missing(
    measured: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(measured[0].with_name("all.ort"))
    assert run(["reflectometry", "join", str(measured[1]), "--output", output]) == 2
    assert "--dq" in capsys.readouterr().err


def test_fit_finds_a_film_without_a_platform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(refnx.__file__).parent / "analysis/tests/e361r.txt"
    stack = Path(__file__).parents[3] / "examples/infer.yml"
    picture, folder = tmp_path / "fit.png", tmp_path / "answer"
    command = ["reflectometry", "fit", str(file), "--stack", str(stack), "--samples", "0", "--starts", "8"]
    assert run([*command, "--plot", str(picture), "--save", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "film.thickness" in shown
    assert shown.startswith("chi-square ")
    assert "for 99 points" in shown
    count = len(list(folder.iterdir()))
    assert shown.splitlines()[-2:] == [f"written: {picture}", f"written: {count} files in {folder}"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (folder / "answer.txt").exists()
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chi_square"] < 151
    found = {item["name"]: item for item in document["parameters"]}
    assert found["film.thickness"]["value"] == pytest.approx(211, abs=1)
    assert found["water.sld"]["at_bound"] == "at upper bound"
    assert document["points"] == 99
    assert run(["reflectometry", "fit", str(file), str(file), "--stack", str(stack)]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert run([*command, "--resolution", "0.5"]) == 2
    assert "--resolution: got 0.5" in capsys.readouterr().err


def test_results_mark_values_at_a_bound_and_tell_notes_below_the_name_of_their_curve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: dict[str, object] = {"name": "film.sld", "unit": "", "lower": 1.0, "upper": 2.0}
    curve: dict[str, object] = {"points": 80, "explanations": []}
    names = ("D2O", "H2O")
    curves = [
        {
            "label": f"curve-{place}",
            "name": name,
            "parameters": [{**found, "value": value, "at_bound": at}],
            "notes": [{"code": "POOR_FIT", "message": f"of {name}"}],
            **curve,
        }
        for place, (name, value, at) in enumerate(
            zip(names, (1.0, 1.5), ("at lower bound", ""), strict=True), start=1
        )
    ]
    show({"curves": curves}, InferResult.model_json_schema())
    first, second = capsys.readouterr().out.split("Curve 2 of 2")
    for said, name in ((first, "D2O"), (second, "H2O")):
        assert said.index(name) < said.index(f"of {name}")
    assert "at lower bound" in first
    assert "at lower bound" not in second


def test_materials_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reflectometry", "materials"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MATERIAL", "FORMULA", "DENSITY", "SLD", "ISLD"]
    assert ["gold", "Au", "19.3", "4.6617", "0.0162"] in [row.split() for row in rows]
