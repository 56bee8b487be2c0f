"""Projects of pyreflect."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.formats.project import Project, read_project
from guidehall.science.reflectometry.legacy_five_layers import legacy_stack
from guidehall.science.reflectometry.params import StackPrior
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution

SETTINGS = """
root: .
sld_predict_chi:
    file:
        model_experimental_sld_profile: data/mod_expt.npy
        model_sld_file: data/mod_sld.npy
        model_chi_params_file: data/mod_params.npy
    models: {latent_dim: 2, batch_size: 16, ae_epochs: 20, mlp_epochs: 20}
nr_predict_sld:
    file:
        experimental_nr_file: data/measured.npy
        nr_train: data/curves/nr_train.npy
        sld_train: data/curves/sld_train.npy
    models:
        model: data/model.pth
        num_film_layers: 5
        num_curves: 1000
        epochs: 7
        batch_size: 32
        layers: 12
        dropout: 0.5
        normalization_stats: data/stats.npy
"""


BOMB = "a: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [{f'*b{i - 1},' * 9}]\n" for i in range(1, 10))


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    data = folder / "data"
    (data / "curves").mkdir(parents=True)
    (folder / "settings.yml").write_text(SETTINGS)
    np.save(data / "mod_expt.npy", np.ones((2, 900)))
    np.save(data / "mod_sld.npy", np.ones((4, 2, 900)))
    np.save(data / "mod_params.npy", np.ones((4, 3)))
    np.save(data / "measured.npy", np.ones((1, 2, 308)))
    np.save(data / "curves/nr_train.npy", np.ones((9, 2, 308), dtype=np.float32))
    np.save(data / "curves/sld_train.npy", np.ones((9, 2, 900), dtype=np.float32))
    harm = Touch(tmp_path / "harm")
    np.save(data / "stats.npy", np.array({"nr": harm}, dtype=object), allow_pickle=True)
    with zipfile.ZipFile(data / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(harm))
        archive.writestr("model/data/0", bytes(40))
        archive.writestr("model/data/1", bytes(2))
    return folder


def found(project: Project) -> dict[str, tuple[str, str]]:
    return {file.role: (file.description, file.problem) for file in project.files}


@pytest.mark.parametrize("name", [".", "settings.yml"])
def test_says_what_is_there_and_unpickles_nothing(folder: Path, name: str) -> None:
    project = read_project(folder / name)
    files = found(project)
    assert files["nr_train"] == ("float32 [9, 2, 308]", "")
    assert files["sld_train"] == ("float32 [9, 2, 900]", "")
    assert files["experimental_nr"] == ("float64 [1, 2, 308]", "")
    assert files["experimental_sld"] == ("float64 [2, 900]", "")
    assert files["chi_sld"] == ("float64 [4, 2, 900]", "")
    assert files["chi_params"] == ("float64 [4, 3]", "")
    assert files["model"][0] == "torch archive, 2 tensors, 42 bytes"
    for role in ("model", "normalization_stats"):
        assert "guidehall reflectometry import-model WEIGHTS --statistics FILE" in files[role][1]
    assert [file.role for file in project.datasets()] == [
        "nr_train",
        "sld_train",
        "experimental_nr",
        "experimental_sld",
        "chi_sld",
        "chi_params",
    ]
    assert project.problems == ()
    assert not (folder.parent / "harm").exists()


def test_five_layers_are_the_film_built_into_pyreflect(folder: Path) -> None:
    params = read_project(folder).params("old-film")
    assert params.model_name == "old-film"
    assert params.stack == legacy_stack()
    assert (params.training.epochs, params.training.batch_size) == (7, 32)
    # 80 % of 1000 curves are trained on.
    assert params.training.steps_per_epoch == 25
    assert (params.probe.q_min, params.probe.q_max) == (0.008101436040354381, 0.1975709062238298)


def test_other_numbers_of_layers_have_the_bounds_that_pyreflect_makes(folder: Path) -> None:
    settings = folder / "settings.yml"
    settings.write_text(SETTINGS.replace("num_film_layers: 5", "num_film_layers: 2"))
    stack = read_project(folder).params("film").stack
    assert [layer.name for layer in stack.layers] == ["film2", "film1", "oxide"]
    film, oxide = stack.layers[0], stack.layers[2]
    assert (film.thickness.max, film.sld.max, film.roughness.max) == (300, 6.4, 150)
    assert (oxide.thickness.min, oxide.sld.min, oxide.roughness.max) == (10, 3, 10)
    assert (stack.fronting.sld.max, stack.backing.sld.max, stack.backing.roughness.max) == (0, 2.07, 5)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../outside.npy", "lies outside the folder"),
        ("/etc/passwd", "lies outside the folder"),
        ("data/link.npy", "lies outside the folder"),
        ("data/gone.npy", "is not there"),
        ("data", "is not there"),
        ('"a\\0b"', "is no path"),
        ("x" * 5000, "is no path"),
        ("data/text.npy", "is no .npy file"),
        ("data/short.npy", "is not as long as its header says"),
        ("data/words.npy", "must be an array of numbers"),
        ("data/flat.npy", r"must be of shape [curves, 2, points]"),
        ("data/object.npy", "nothing is unpickled"),
    ],
)
def test_names_what_cannot_be_used(folder: Path, name: str, problem: str) -> None:
    data = folder / "data"
    np.save(folder.parent / "outside.npy", np.ones((9, 2, 3)))
    (data / "link.npy").symlink_to(folder.parent / "outside.npy")
    (data / "text.npy").write_text("0.01 1\n")
    (data / "short.npy").write_bytes((data / "mod_sld.npy").read_bytes()[:-8])
    np.save(data / "words.npy", np.array([["a"]]))
    np.save(data / "flat.npy", np.ones(9))
    np.save(data / "object.npy", np.array([Touch(folder.parent / "harm")]), allow_pickle=True)
    text = SETTINGS.replace("data/curves/nr_train.npy", name)
    (folder / "settings.yml").write_text(text)
    project = read_project(folder)
    assert problem in found(project)["nr_train"][1]
    assert "nr_train" not in [file.role for file in project.datasets()]
    assert not (folder.parent / "harm").exists()


def test_pairs_must_have_as_many_curves(folder: Path) -> None:
    np.save(folder / "data/curves/sld_train.npy", np.ones((8, 2, 900)))
    assert found(read_project(folder))["sld_train"][1] == "has 8 curves, but nr_train has 9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be one YAML mapping"),
        ("", "must be one YAML mapping"),
        ("a: [\n", "not plain YAML"),
        ("a: !!python/object/apply:os.mkdir [harm]\n", "not plain YAML"),
        (BOMB, "YAML of more than 20000 values"),
        ("a: " + "[" * 3000, "nested too deep"),
        ("#" * (1 << 21), "characters of YAML"),
        ("a: 0x" + "f" * 5000, "a whole number of 5002 characters; at most 40 are allowed.*line 1, column 4"),
        ("a: " + "7" * 5000, "a whole number of 5000 characters"),
        ("a: 1" + ":1" * 3000, "a whole number of 6001 characters"),
        ("\xff", "must be UTF-8"),
    ],
    ids=range(11),
)  # fmt: skip
def test_refuses_settings(folder: Path, text: str, message: str) -> None:
    (folder / "settings.yml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_project(folder)


def test_refuses_a_folder_without_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold one of settings.yaml, settings.yml, settings.json"):
        read_project(tmp_path)


def test_says_what_is_wrong_with_the_settings(folder: Path) -> None:
    (folder / "settings.yml").write_text("root: .\n")
    project = read_project(folder)
    assert "no settings of pyreflect" in project.problems[0]
    assert project.files == ()
    (folder / "settings.yml").write_text("nr_predict_sld: {file: [a], models: {model: 3}}\n")
    assert set(read_project(folder).problems) == {
        "settings.file: got list; must be a mapping",
        "nr_predict_sld.models.model must be the path of a file",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_film_layers", 0),
        ("num_film_layers", 99),
        ("epochs", "ten"),
        ("batch_size", True),
        ("num_curves", 1.5),
    ],
)
def test_refuses_numbers_that_make_no_training(folder: Path, key: str, value: object) -> None:
    settings = yaml.safe_load(SETTINGS)
    settings["nr_predict_sld"]["models"][key] = value
    (folder / "settings.yml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        UserError, match=rf"nr_predict_sld\.models\.{key}: got {value}; must be a whole number"
    ):
        read_project(folder).params("film")


def test_refuses_a_training_that_is_too_large(folder: Path) -> None:
    (folder / "settings.yml").write_text(SETTINGS.replace("batch_size: 32", "batch_size: 8192"))
    with pytest.raises(UserError, match=r"nr_predict_sld\.models, as training\.batch_size"):
        read_project(folder).params("film")


def test_films_of_automatic_bounds_do_not_reflect_far_more_than_all(folder: Path) -> None:
    """Rough interfaces of thin layers would, were the roughness not cut."""
    settings = folder / "settings.yml"
    settings.write_text(SETTINGS.replace("num_film_layers: 5", "num_film_layers: 3"))
    params = read_project(folder).params("film")
    assert params.stack.max_roughness_share == 0.4
    q = params.probe.q()
    blur = resolution(q, 0.0 * q)

    def largest(stack: StackPrior) -> float:
        prior = Prior(stack, params.probe)
        generator = torch.Generator().manual_seed(1)
        values = prior.values(torch.rand(2048, len(prior.free), generator=generator, dtype=torch.float64))
        for place, parameter in enumerate(prior.free):
            if parameter.name in ("scale", "background"):
                values[:, place] = 1.0 if parameter.name == "scale" else 0.0
        return float(prior.curves(blur, values).max())

    assert largest(params.stack) < 1.001
    assert largest(params.stack.model_copy(update={"max_roughness_share": None})) > 10.0


def test_settings_of_a_training_to_chi(folder: Path) -> None:
    params = read_project(folder).chi_params("old-chi")
    assert params is not None
    assert (params.model_name, params.latent_dim) == ("old-chi", 2)
    assert (params.autoencoder.epochs, params.autoencoder.batch_size) == (20, 16)
    assert (params.perceptron.epochs, params.perceptron.batch_size) == (20, 16)
    settings = yaml.safe_load(SETTINGS)
    settings["sld_predict_chi"]["models"]["latent_dim"] = 0
    (folder / "settings.yml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"sld_predict_chi\.models\.latent_dim: got 0"):
        read_project(folder).chi_params("old-chi")
    del settings["sld_predict_chi"]
    (folder / "settings.yml").write_text(yaml.safe_dump(settings))
    assert read_project(folder).chi_params("old-chi") is None
