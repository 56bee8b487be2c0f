"""`guidehall reflectometry`: what this science needs beyond jobs, models and datasets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._curves import science_refusals
from guidehall.cli._flags import in_flags
from guidehall.cli._output import clean, emit, table, wrapped
from guidehall.cli.data import id_of

if TYPE_CHECKING:
    from guidehall.science.reflectometry.formats.project import Project
    from guidehall.science.reflectometry.library import Fit

# Fields of curves and of a fit, as the science and as this command line call them.
_FLAGS = {
    "dq_convention": "--dq",
    "dq": "--dq",
    "q_unit": "--q-unit",
    "samples": "--samples",
    "starts": "--starts",
    "instrument.resolution": "--resolution",
}

_files_argument = click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_dq_option = click.option(
    "--dq", type=click.Choice(["sigma", "fwhm"]), help="What dq is in files that do not say it themselves."
)
_q_unit_option = click.option(
    "--q-unit", type=click.Choice(["1/angstrom", "1/nm"]), help="Of files that do not say it themselves."
)


@click.group(
    epilog="""\b
Examples
  guidehall reflectometry import-settings old-project/ > film.yml
  guidehall submit reflectometry.nr_sld --from film.yml --watch
  guidehall reflectometry import-model trained.pth --statistics statistics.npy
  guidehall reflectometry join d2o.dat h2o.dat --dq fwhm --output contrasts.ort
  guidehall reflectometry fit curve.dat --stack film.yml --dq fwhm --plot fit.png
"""
)
def reflectometry() -> None:
    """Fit curves on this machine; bring work of other programs along."""


@reflectometry.command("import-settings")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the parameters into this file instead of to standard output.",
)
@click.option("--model-name", default="film", show_default=True, help="Name of the model to train.")
@click.option("--dry-run", is_flag=True, help="Look at everything, upload nothing.")
@json_option
def import_settings(path: Path, output: Path | None, model_name: str, dry_run: bool, as_json: bool) -> None:
    """Upload the arrays of a pyreflect project and write parameters for `guidehall submit`.

    PATH is the folder of a project, or its settings.yml. Nothing in it is unpickled. Networks and
    normalisation of pyreflect are named; `guidehall reflectometry import-model` brings them.
    """
    from guidehall.science.reflectometry.formats.project import read_project

    with science_refusals():
        project = read_project(path)
        if output is not None:
            named = [file.path for file in project.files if file.path]
            _keep_inputs(output, "--output", [project.settings_file, *named])
        params = _params(project, model_name)
        chi_params = _chi_params(project, model_name)
    datasets = {} if dry_run else _upload(project)
    if as_json:
        files = [
            {
                "role": file.role,
                "file": file.name,
                "holds": file.description,
                "problem": file.problem,
                "dataset": datasets.get(file.role),
            }
            for file in project.files
        ]
        emit({"files": files, "problems": project.problems, "params": params, "chi_params": chi_params})
        return
    text = _document(project, datasets, params, chi_params)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"datasets uploaded: {len(datasets)}; parameters written to {output}")


@reflectometry.command("import-model")
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--statistics",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Its normalisation: .npy as pyreflect writes it, .npz or JSON; for chi, JSON.",
)
@click.option(
    "--perceptron",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For chi, where WEIGHTS is the autoencoder: the second network.",
)
@click.option("--model-name", default="imported", show_default=True, help="Name of the model here.")
@json_option
def import_model(
    weights: Path, statistics: Path, perceptron: Path | None, model_name: str, as_json: bool
) -> None:
    """Bring a network that pyreflect trained: it is published as a model and served.

    WEIGHTS is its .pth file. Neither it nor the statistics are unpickled: both are read here for the numbers
    in them, and these are uploaded in formats that can hold nothing else. A job then publishes the model.
    """
    from guidehall.client import JobState, errors

    networks = {"weights": weights} if perceptron is None else {"weights": weights, "perceptron": perceptron}
    with TemporaryDirectory() as folder:
        files = _plain_files(networks, statistics, Path(folder))
        with connect() as client:
            versions = {
                role: client.upload_dataset(
                    file, f"{model_name}-{role}", labels={"origin": "pyreflect", "role": role}
                ).name
                for role, file in files.items()
            }
            params = {"model_name": model_name, "kind": "cnn" if perceptron is None else "chi"}
            job = client.wait(client.submit("reflectometry.import_model", params, inputs=versions).id)
            if job.state is not JobState.SUCCEEDED:
                why = job.error.message if job.error else job.state.name
                raise errors.FailedPrecondition(f"job {job.id} published no model: {why}")
            published = client.result(job.id).model_versions
    if as_json:
        emit({"job": job.name, "model_versions": list(published)})
    else:
        click.echo(f"published {', '.join(published)}")


@reflectometry.command("join")
@_files_argument
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The ORSO file (.ort) to write.",
)
@_dq_option
@_q_unit_option
@json_option
def join(
    files: tuple[Path, ...],
    output: Path,
    dq: Literal["sigma", "fwhm"] | None,
    q_unit: Literal["1/angstrom", "1/nm"] | None,
    as_json: bool,
) -> None:
    """Put the curves of several files into one, for `reflectometry.infer`.

    In the order given: contrasts of one film, or a film that changes. Each is called as its file, where
    that has one curve.
    """
    from guidehall.science.reflectometry.export import join_ort
    from guidehall.science.reflectometry.formats.read import read_files

    _distinct(files)
    _keep_inputs(output, "--output", files)
    with in_flags(_FLAGS), science_refusals():
        curves = read_files(files, dq, q_unit)
    names = [curve.metadata.data_set for curve in curves]
    notes = [f"{curve.metadata.data_set}: {note}" for curve in curves for note in curve.metadata.notes]
    output.write_bytes(join_ort(curves))
    if as_json:
        emit({"file": str(output), "curves": names, "notes": notes})
        return
    for note in notes:
        click.echo(f"note: {clean(note)}", err=True)
    click.echo(f"{len(curves)} curves written to {clean(str(output))}: {', '.join(map(clean, names))}")


@reflectometry.command(
    "fit",
    epilog="""FILM is what is known of the film, with bounds, as `guidehall submit reflectometry.infer
--from` takes it (docs/reference/stacks-and-priors.md). Several FILES are contrasts of one
film: they share all but scale, background and what `contrasts` in FILM lists.

\b
Examples
  guidehall reflectometry fit curve.dat --stack film.yml --dq fwhm --plot fit.png
  guidehall reflectometry fit d2o.ort h2o.ort --stack film.yml --save answer/
""",
)
@_files_argument
@click.option(
    "--stack",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILM",
    required=True,
    help="File of the film and its bounds (YAML or JSON).",
)
@_dq_option
@_q_unit_option
@click.option(
    "--resolution",
    type=float,
    metavar="DQ/Q",
    help="Of files without dq, in place of FILM's; what it is says --dq, else FILM, else it is fwhm.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    help="Of the posterior, for intervals and bands; 0 draws none. [default: FILM's, else 500]",
)
@click.option("--starts", type=click.IntRange(1), help="Of the search. [default: FILM's, else 24]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**53 - 1),
    default=0,
    show_default=True,
    help="The same, the same answer.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw fit, residuals, profile and bands into this file (.png, .pdf, .svg).",
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write everything into it: curves, profiles, pictures, scripts for refl1d and refnx.",
)
@json_option
def fit(
    files: tuple[Path, ...],
    stack: Path,
    dq: Literal["sigma", "fwhm"] | None,
    q_unit: Literal["1/angstrom", "1/nm"] | None,
    resolution: float | None,
    samples: int | None,
    starts: int | None,
    seed: int,
    plot: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Find the film behind the curves in FILES on this machine, without a platform.

    It is the fit of the pipeline `reflectometry.infer`: the same parameters, intervals and notes.
    """
    import guidehall

    _distinct(files)
    if plot is not None:
        from guidehall.cli._plot import check_plot

        check_plot(plot)
        _require_writable(plot.absolute().parent, "--plot")
        _keep_inputs(plot, "--plot", (*files, stack))
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        _require_writable(save, "--save")
        for file in (*files, stack):
            # Files are replaced in there, and may be called as those of an earlier answer.
            if file.absolute().parent.samefile(save):
                message = f"{save} holds {file.name}, which is read; name another folder"
                raise click.BadParameter(message, param_hint="--save")
    with in_flags(_FLAGS), science_refusals():
        found = guidehall.fit(
            files,
            stack,
            dq=dq,
            q_unit=q_unit,
            resolution=resolution,
            samples=samples,
            starts=starts,
            seed=seed,
        )
    # Before the files are written: what cannot be written costs no answer.
    _tell(found, as_json)
    if plot is not None:
        found.plot().savefig(plot, dpi=160)
        click.echo(f"written: {clean(str(plot))}", err=as_json)
    if save is not None:
        count = len(found.save(save))
        click.echo(f"written: {count} files in {clean(str(save))}", err=as_json)


def _tell(found: Fit, as_json: bool) -> None:
    if not as_json:
        for line in str(found).splitlines():
            click.echo(wrapped(clean(line)))
        return
    parameters = [
        {
            "name": parameter.name,
            "value": parameter.value,
            "unit": parameter.unit,
            "standard_error": parameter.standard_error,
            "interval_68": parameter.interval_68,
            "interval_95": parameter.interval_95,
            "at_bound": parameter.at_bound,
        }
        for parameter in found.parameters
    ]
    emit(
        {
            "chi_square": found.chi_square,
            "reduced_chi_square": found.reduced_chi_square,
            "mean_abs_log10_error": found.mean_abs_log10_error,
            "points": found.points,
            "parameters": parameters,
            "notes": [{"code": note.code, "message": note.message} for note in found.notes],
        }
    )


def _distinct(files: Sequence[Path]) -> None:
    """Refuses a file that is named twice, by whatever name: its curve would count twice."""
    for place, file in enumerate(files):
        if any(file.samefile(before) for before in files[:place]):
            raise click.BadParameter(f"{file} is named twice", param_hint="FILES")


def _keep_inputs(output: Path, flag: str, inputs: Iterable[Path]) -> None:
    """Refuses to write over what is read, by whatever name."""
    if output.exists() and any(output.samefile(file) for file in inputs):
        raise click.BadParameter(f"{output} is one of the files that are read", param_hint=flag)


def _require_writable(folder: Path, flag: str) -> None:
    """Refuses a folder that nothing can be written into, before the work."""
    if not os.access(folder, os.W_OK):
        raise click.BadParameter(f"nothing can be written into {folder}", param_hint=flag)


def _plain_files(networks: dict[str, Path], statistics: Path, folder: Path) -> dict[str, Path]:
    """By role, files that hold the same numbers and cannot hold anything else."""
    import safetensors.torch

    from guidehall.science.reflectometry.cnn.files import read_statistics, read_weights

    files = {}
    with science_refusals():
        for role, path in networks.items():
            files[role] = folder / f"{role}.safetensors"
            tensors = {name: value.contiguous() for name, value in read_weights(path, role).items()}
            safetensors.torch.save_file(tensors, files[role])
        files["statistics"] = folder / "statistics.json"
        if "perceptron" in networks:
            files["statistics"].write_bytes(statistics.read_bytes())
        else:
            files["statistics"].write_text(read_statistics(statistics, "statistics").model_dump_json())
    return files


def _params(project: Project, model_name: str) -> dict[str, Any] | None:
    """Parameters of a training, where the settings are of one."""
    if "nr_predict_sld" not in project.settings:
        return None
    return project.params(model_name).model_dump(mode="json", exclude_defaults=True)


def _chi_params(project: Project, model_name: str) -> dict[str, Any] | None:
    """Parameters of a training from profiles to chi, where the settings are of one."""
    params = project.chi_params(f"{model_name[:59]}-chi")
    return None if params is None else params.model_dump(mode="json", exclude_defaults=True)


def _upload(project: Project) -> dict[str, str]:
    """Name of the dataset version for each role."""
    arrays = project.datasets()
    if not arrays:
        return {}
    folder = project.settings_file.resolve().parent.name
    versions = {}
    with connect() as client:
        for file in arrays:
            assert file.path is not None  # noqa: S101 (for the type checker)
            labels = {"origin": "pyreflect", "role": file.role}
            version = client.upload_dataset(
                file.path, id_of(Path(f"{folder}-{file.role}.npy")), labels=labels
            )
            versions[file.role] = version.name
    return versions


def _document(
    project: Project,
    datasets: dict[str, str],
    params: dict[str, Any] | None,
    chi_params: dict[str, Any] | None,
) -> str:
    """What was found, as comments, and the parameters for `guidehall submit`.

    One file is of one training: those of chi are comments where it is of the training from reflectivity.
    """
    import yaml

    def written(document: dict[str, Any]) -> str:
        return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))

    lines = [f"# From {project.settings_file}, settings of pyreflect."]
    for file in project.files:
        fate = file.problem or datasets.get(file.role, "can be uploaded")
        holds = f" ({file.description})" if file.description else ""
        lines.append(f"# {file.role}: {file.name}{holds}: {fate}")
    lines += [f"# problem: {problem}" for problem in project.problems]
    if params is None:
        lines.append("# There are no settings of a training from reflectivity to SLD.")
    else:
        lines.append("# guidehall submit reflectometry.nr_sld --from THIS-FILE")
    if chi_params is not None and params is None:
        lines.append("# guidehall submit reflectometry.sld_chi --from THIS-FILE")
    elif chi_params is not None:
        lines.append("# For guidehall submit reflectometry.sld_chi --from, in a file of their own:")
        lines += [f"#   {line}" for line in written(chi_params).splitlines()]
    # A name in the settings must not end its comment.
    text = "".join(f"{clean(line)}\n" for line in lines)
    document = chi_params if params is None else params
    return text if document is None else text + written(document)


@reflectometry.command("materials")
@json_option
def materials(as_json: bool) -> None:
    """List common materials: density in g/cm^3, scattering length density in 1e-6 per square angstrom."""
    from guidehall.science.reflectometry.materials import MATERIALS

    if as_json:
        emit({"materials": MATERIALS})
        return
    rows = [(each.name, each.formula, each.density, each.sld, each.isld) for each in MATERIALS]
    table(("MATERIAL", "FORMULA", "DENSITY", "SLD", "ISLD"), rows)


COMMANDS = (reflectometry,)
