"""Folders of pyreflect: its settings.yml, and the files that this names.

pyreflect keeps arrays of curves, [curves, 2, points], as `.npy`, its normalisation as a pickled object, and
its network as a torch file. Here arrays are described by their headers, and the other two are only named:
`guidehall reflectometry import-model` reads their numbers without unpickling them.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from guidehall.science.pipeline import UserError, field_errors
from guidehall.science.reflectometry.chi.params import MAX_LATENT, ChiParams
from guidehall.science.reflectometry.formats import arrays, safe_yaml
from guidehall.science.reflectometry.legacy_five_layers import legacy_probe, legacy_stack
from guidehall.science.reflectometry.params import NrSldParams, StackPrior, TrainingProbe

SETTINGS = ("settings.yaml", "settings.yml", "settings.json")
# What pyreflect keeps back from training.
_TRAINED_SHARE = 0.8
_MAX_SETTINGS_BYTES = 1 << 20
# The header of an array is far shorter.
_HEADER_BYTES = 64 << 10
_LEGACY_LAYERS = 5
_IMPORT = "guidehall reflectometry import-model WEIGHTS --statistics FILE brings it"

Kind = Literal["reflectivity", "sld", "chi", "model", "statistics"]


@dataclass(frozen=True)
class _Entry:
    """A file that settings may name: section, group and key there, and what it should be."""

    section: str
    group: str
    key: str
    kind: Kind


_ENTRIES = {
    "nr_train": _Entry("nr_predict_sld", "file", "nr_train", "reflectivity"),
    "sld_train": _Entry("nr_predict_sld", "file", "sld_train", "sld"),
    "experimental_nr": _Entry("nr_predict_sld", "file", "experimental_nr_file", "reflectivity"),
    "model": _Entry("nr_predict_sld", "models", "model", "model"),
    "normalization_stats": _Entry("nr_predict_sld", "models", "normalization_stats", "statistics"),
    "experimental_sld": _Entry("sld_predict_chi", "file", "model_experimental_sld_profile", "sld"),
    "chi_sld": _Entry("sld_predict_chi", "file", "model_sld_file", "sld"),
    "chi_params": _Entry("sld_predict_chi", "file", "model_chi_params_file", "chi"),
}
# The name that some projects use.
_OTHER_KEYS = {"experimental_nr_file": "experimental_nr"}


@dataclass(frozen=True)
class ProjectFile:
    """A file that the settings name.

    Attributes:
        role: such as "nr_train"; the same for every project.
        name: as the settings have it.
        path: where it is; None when it is missing or outside the folder.
        shape: of its array; empty for other files.
        description: what it holds, such as "float32 [50000, 2, 308]".
        problem: why it cannot be used; empty when it can.
    """

    role: str
    kind: Kind
    name: str
    path: Path | None
    shape: tuple[int, ...] = ()
    description: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Project:
    """What a folder of pyreflect holds.

    Attributes:
        settings: the document as it was read.
        files: what it names, found or not.
        problems: what is wrong with the settings themselves.
    """

    settings_file: Path
    settings: Mapping[str, Any]
    files: tuple[ProjectFile, ...]
    problems: tuple[str, ...] = field(default=())

    def datasets(self) -> tuple[ProjectFile, ...]:
        """The arrays that can be uploaded."""
        return tuple(
            file for file in self.files if not file.problem and file.kind in ("reflectivity", "sld", "chi")
        )

    def params(self, model_name: str) -> NrSldParams:
        """Parameters of `reflectometry.nr_sld` that train for the film of these settings.

        Five layers without further words are the polymer film built into pyreflect; any other number means
        its automatic bounds, with an oxide on silicon. The network is our own, so of the settings for
        training only the length and the size of the steps count. Where pyreflect goes through one set of
        curves several times, this makes fresh ones, as many in each epoch.

        Raises:
            UserError: names the setting that cannot be used.
        """
        models = _mapping(_mapping(self.settings, "nr_predict_sld"), "models")
        layers = _count(models, "num_film_layers", _LEGACY_LAYERS, 37)
        batch = _count(models, "batch_size", 32, 8192)
        curves = _count(models, "num_curves", 50_000, 10_000_000)
        training = {
            "epochs": _count(models, "epochs", 10, 10_000),
            "steps_per_epoch": math.ceil(_TRAINED_SHARE * curves / batch),
            "batch_size": batch,
        }
        stack = legacy_stack() if layers == _LEGACY_LAYERS else _automatic_stack(layers)
        fields = {"model_name": model_name, "stack": stack, "probe": _probe(), "training": training}
        try:
            return NrSldParams.model_validate(fields)
        except ValidationError as error:
            path, reason = field_errors(error)[0]
            raise UserError(f"nr_predict_sld.models, as {path}", "values of the settings", reason) from None

    def chi_params(self, model_name: str) -> ChiParams | None:
        """Parameters of `reflectometry.sld_chi` by these settings; None where they say nothing of it.

        Raises:
            UserError: names the setting that cannot be used.
        """
        section = "sld_predict_chi"
        models = _mapping(_mapping(self.settings, section), "models")
        own = ChiParams()
        batch = _count(models, "batch_size", own.autoencoder.batch_size, 4096, section)
        epochs = {
            part: _count(models, key, default.epochs, 10_000, section)
            for part, key, default in (
                ("autoencoder", "ae_epochs", own.autoencoder),
                ("perceptron", "mlp_epochs", own.perceptron),
            )
        }
        latent = _count(models, "latent_dim", own.latent_dim, MAX_LATENT, section)
        if not models.keys() & {"latent_dim", "batch_size", "ae_epochs", "mlp_epochs"}:
            return None
        fields = {part: {"epochs": count, "batch_size": batch} for part, count in epochs.items()}
        try:
            return ChiParams.model_validate({"model_name": model_name, "latent_dim": latent, **fields})
        except ValidationError as error:
            path, reason = field_errors(error)[0]
            raise UserError(f"{section}.models, as {path}", "values of the settings", reason) from None


def read_project(path: Path) -> Project:
    """Looks at a folder of pyreflect, or at its settings file.

    Files are looked for below the folder of the settings, as pyreflect does; one that lies elsewhere, be it
    by its path or by a link, is not opened.

    Raises:
        UserError: there are no settings, or they are no YAML.
    """
    settings_file = path
    if path.is_dir():
        found = [path / name for name in SETTINGS if (path / name).is_file()]
        if not found:
            raise UserError("folder", str(path), f"must hold one of {', '.join(SETTINGS)}")
        settings_file = found[0]
    settings = _settings(settings_file)
    problems = []
    if not {"nr_predict_sld", "sld_predict_chi"} & settings.keys():
        problems.append("has neither nr_predict_sld nor sld_predict_chi: these are no settings of pyreflect")
    files = []
    for role, entry in _ENTRIES.items():
        try:
            group = _mapping(_mapping(settings, entry.section), entry.group)
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
            continue
        name = group.get(entry.key, group.get(_OTHER_KEYS.get(entry.key, entry.key)))
        if name is None:
            continue
        if not isinstance(name, str):
            problems.append(f"{entry.section}.{entry.group}.{entry.key} must be the path of a file")
            continue
        files.append(_look_at(settings_file.parent, role, entry.kind, name))
    return Project(settings_file, settings, _paired(files), tuple(problems))


def _settings(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_SETTINGS_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError("settings", file, f"must be a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError("settings", file, "must be UTF-8 text") from None
    documents = safe_yaml.load_all(text, file.name)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UserError("settings", file, "must be one YAML mapping")
    return documents[0]


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of the settings; empty when there is none."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"settings.{key}", type(value).__name__, "must be a mapping")
    return value


def _count(
    models: Mapping[str, Any], key: str, default: int, largest: int, section: str = "nr_predict_sld"
) -> int:
    value = models.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise UserError(f"{section}.models.{key}", value, f"must be a whole number from 1 to {largest}")
    return value


def _look_at(folder: Path, role: str, kind: Kind, name: str) -> ProjectFile:
    """Describes a file without reading more than its beginning."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
        there = inside and path.is_file()
    except (OSError, ValueError, RuntimeError):
        # A name with a zero byte, one that is too long, a link to itself.
        return ProjectFile(role, kind, name, None, problem="is no path that can be used")
    if not inside:
        return ProjectFile(role, kind, name, None, problem="lies outside the folder of the settings")
    if not there:
        return ProjectFile(role, kind, name, None, problem="is not there")
    file = ProjectFile(role, kind, name, path)
    try:
        return _model(file, path) if kind == "model" else _array(file, path)
    except OSError as error:
        return replace(file, problem=f"cannot be read: {error.strerror}")


def _model(file: ProjectFile, path: Path) -> ProjectFile:
    problem = f"is a network of pyreflect, in pickled form: {_IMPORT}"
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = [item.file_size for item in archive.infolist() if "/data/" in item.filename]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return replace(file, description="no torch archive", problem=problem)
    description = f"torch archive, {len(tensors)} tensors, {sum(tensors)} bytes"
    return replace(file, description=description, problem=problem)


def _array(file: ProjectFile, path: Path) -> ProjectFile:
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    if not start.startswith(arrays.MAGIC):
        return replace(file, problem="is no .npy file")
    try:
        header = arrays.read_header(start, file.name)
    except UserError as error:
        problem = error.allowed
        if file.kind == "statistics":
            problem = f"is pickled and belongs to the network: {_IMPORT}"
        return replace(file, description=str(error.value), problem=problem)
    described = replace(file, shape=header.shape, description=f"{header.dtype} {list(header.shape)}")
    if header.dtype.kind not in "fiu":
        return replace(described, problem="must be an array of numbers")
    if header.data_bytes != path.stat().st_size - header.data_offset:
        return replace(described, problem="is not as long as its header says")
    return replace(described, problem=_wrong_shape(file.kind, header.shape))


def _wrong_shape(kind: Kind, shape: tuple[int, ...]) -> str:
    if kind in ("reflectivity", "sld") and not (len(shape) in (2, 3) and shape[-2] == 2 and shape[-1] > 1):
        return "must be of shape [curves, 2, points]"
    if kind == "chi" and len(shape) != 2:
        return "must be of shape [curves, parameters]"
    return ""


def _paired(files: list[ProjectFile]) -> tuple[ProjectFile, ...]:
    """The files, with a problem where two that belong together have not as many curves."""
    by_role = {file.role: file for file in files if not file.problem}
    for one, other in (("nr_train", "sld_train"), ("chi_sld", "chi_params")):
        if one in by_role and other in by_role:
            expected, got = by_role[one].shape[0], by_role[other].shape[0]
            if expected != got:
                problem = f"has {got} curves, but {one} has {expected}"
                by_role[other] = replace(by_role[other], problem=problem)
    return tuple(by_role.get(file.role, file) for file in files)


def _automatic_stack(layers: int) -> StackPrior:
    """The bounds that pyreflect makes for any number of layers, air first."""

    def bounds(thickness: tuple[int, int], sld: tuple[float, float], roughness: tuple[int, int]) -> Any:
        ranges = {"thickness": thickness, "sld": sld, "roughness": roughness}
        return {name: {"min": low, "max": high} for name, (low, high) in ranges.items()}

    film, oxide = bounds((10, 300), (0.0, 6.4), (0, 150)), bounds((10, 25), (3.0, 3.9), (1, 10))
    return StackPrior.model_validate(
        {
            "fronting": {"name": "air", "sld": 0},
            "layers": [
                *({"name": f"film{number}", **film} for number in range(layers, 0, -1)),
                {"name": "oxide", **oxide},
            ],
            "backing": {"name": "silicon", "sld": 2.07, "roughness": {"min": 0, "max": 5}},
            # Its bounds allow a layer of 10 angstrom with a roughness of 150, and so curves with R of 40.
            # Cut at half a layer, one or two films in a thousand would still be above 1, by a percent.
            "max_roughness_share": 0.4,
        }
    )


def _probe() -> TrainingProbe:
    """Its q and resolution, but with the scale, background and grid of real measurements."""
    legacy = legacy_probe()
    return TrainingProbe(
        q_min=legacy.q_min,
        q_max=legacy.q_max,
        resolution=legacy.resolution,
        resolution_convention=legacy.resolution_convention,
    )
