"""`guidehall models` and `guidehall datasets`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import age, emit, number, pairs, short, size, table

if TYPE_CHECKING:
    from guidehall.client.types import Model


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall models
  guidehall models show film@3
  guidehall models download film out/
  guidehall models tag film production 3
  guidehall models pin film@production
""",
)
@json_option
@click.option(
    "--filter", "filter_", default="", help="Terms joined by AND over architecture, owner, labels.KEY."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@click.pass_context
def models(ctx: click.Context, filter_: str, limit: int, as_json: bool) -> None:
    """List models; show, download, tag or pin one."""
    if ctx.invoked_subcommand is not None:
        return
    with connect() as client:
        found = list(client.models(filter_, limit))
    if as_json:
        emit(found)
        return
    rows = [
        (model.id, model.latest_version, _tags(model), model.owner, age(model.update_time)) for model in found
    ]
    table(("MODEL", "VERSION", "TAGS", "OWNER", "UPDATED"), rows, empty="no models")


def _tags(model: Model) -> str:
    return ", ".join(f"{tag}={version}" for tag, version in sorted(model.tags.items()))


@models.command("show")
@click.argument("model")
@json_option
def show_model(model: str, as_json: bool) -> None:
    """Show MODEL (such as film, film@3 or film@production) and its tensors."""
    with connect() as client:
        version = client.model_version(model)
    if as_json:
        emit(version)
        return
    pairs(
        {
            "model": version.name,
            "tags": ", ".join(version.tags),
            "pinned": "yes" if version.pinned else "",
            "architecture": version.architecture,
            "owner": version.owner,
            "job": short(version.job) if version.job else "",
            "made": f"{age(version.create_time)} ago",
            "weights": f"{size(version.weights.size_bytes)}, sha256 {version.weights.sha256}",
            **{name: number(value) for name, value in sorted(version.metrics.items())},
        }
    )
    rows = [
        (direction, spec.name, spec.datatype, "x".join(map(str, spec.shape)), spec.unit, spec.description)
        for direction, specs in (("in", version.inputs), ("out", version.outputs))
        for spec in specs
    ]
    table(("", "TENSOR", "TYPE", "SHAPE", "UNIT", "MEANING"), rows)


@models.command("tag")
@click.argument("model")
@click.argument("tag")
@click.argument("version", type=click.IntRange(min=1))
@json_option
def tag_model(model: str, tag: str, version: int, as_json: bool) -> None:
    """Make TAG (such as production) of MODEL point to VERSION: it is MODEL@TAG from then on."""
    with connect() as client:
        changed = client.set_model_tag(model, tag, version)
    if as_json:
        emit(changed)
    else:
        click.echo(f"{changed.id}@{tag} is version {version}")


@models.command("untag")
@click.argument("model")
@click.argument("tag")
@json_option
def untag_model(model: str, tag: str, as_json: bool) -> None:
    """Take TAG of MODEL away; the version that it points to stays."""
    with connect() as client:
        changed = client.delete_model_tag(model, tag)
    if as_json:
        emit(changed)
    else:
        click.echo(f"{changed.id} has no tag {tag}")


@models.command("pin")
@click.argument("model", metavar="MODEL@VERSION")
@json_option
def pin_model(model: str, as_json: bool) -> None:
    """Keep MODEL@VERSION in memory where models are served; MODEL cannot be deleted then. For operators."""
    with connect() as client:
        version = client.pin_model(model)
    if as_json:
        emit(version)
    else:
        click.echo(f"{version.name} is pinned")


@models.command("unpin")
@click.argument("model", metavar="MODEL@VERSION")
@json_option
def unpin_model(model: str, as_json: bool) -> None:
    """Pin MODEL@VERSION no longer. For operators."""
    with connect() as client:
        version = client.unpin_model(model)
    if as_json:
        emit(version)
    else:
        click.echo(f"{version.name} is not pinned")


@models.command("download")
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
def download_model(model: str, folder: Path, as_json: bool) -> None:
    """Write model.safetensors and manifest.json of MODEL into FOLDER."""
    with connect() as client:
        version = client.download_model(model, folder)
    if as_json:
        emit(version)
    else:
        click.echo(f"{version.name} written to {folder}")


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall datasets upload curves.npy --id training-curves
  guidehall datasets create films --from-result 0a1b2c3d
  guidehall datasets download training-curves@2 out/
""",
)
@json_option
@click.option("--filter", "filter_", default="", help="Terms joined by AND over owner, labels.KEY.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@click.pass_context
def datasets(ctx: click.Context, filter_: str, limit: int, as_json: bool) -> None:
    """List datasets; upload or download one, or make some of a result."""
    if ctx.invoked_subcommand is not None:
        return
    with connect() as client:
        found = list(client.datasets(filter_, limit))
    if as_json:
        emit(found)
        return
    rows = [
        (item.id, item.latest_version, item.owner, age(item.update_time), item.description) for item in found
    ]
    table(("DATASET", "VERSION", "OWNER", "UPDATED", "ABOUT"), rows, empty="no datasets")


@datasets.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "dataset_id", help="Dataset to add a version to; without it, one named like the file.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A word to find it by; may repeat."
)
@json_option
def upload(file: Path, dataset_id: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Add FILE as a new version of a dataset."""
    with connect() as client:
        version = client.upload_dataset(file, dataset_id or id_of(file), labels=key_values(labels, "--label"))
    if as_json:
        emit(version)
    else:
        click.echo(f"{version.name} ({size(version.object.size_bytes)}, sha256 {version.object.sha256})")


@datasets.command("create")
@click.argument("name")
@click.option("--from-result", "job", required=True, metavar="JOB", help="The job that left the files.")
@click.option(
    "--file", "files", multiple=True, help="One of its files; may repeat. Without it, every array (.npy)."
)
@json_option
def create_datasets(name: str, job: str, files: tuple[str, ...], as_json: bool) -> None:
    """Make files of a result datasets that jobs can read: NAME-nr-train of nr_train.npy, and so on."""
    with connect() as client:
        left = [artifact.filename for artifact in client.result(job).artifacts]
        chosen = files or tuple(file for file in left if file.endswith(".npy"))
        if not chosen:
            raise click.UsageError(f"the result has no arrays (.npy); name files of it with --file: {left}")
        versions = [
            client.dataset_from_result(job, file, id_of(Path(f"{name}-{Path(file).stem.replace('_', '-')}")))
            for file in chosen
        ]
    if as_json:
        emit(versions)
        return
    for version in versions:
        click.echo(f"{version.name} ({size(version.object.size_bytes)}, sha256 {version.object.sha256})")


@datasets.command("download")
@click.argument("dataset")
@click.argument("path", type=click.Path(path_type=Path), default=".")
@json_option
def download_dataset(dataset: str, path: Path, as_json: bool) -> None:
    """Write DATASET (such as curves, or curves@2) to PATH, a file or a folder."""
    with connect() as client:
        written = client.download_dataset(dataset, path)
    if as_json:
        emit({"path": written})
    else:
        click.echo(str(written))


def id_of(file: Path) -> str:
    """A dataset id made of a file's name."""
    text = re.sub(r"[^a-z0-9_.-]+", "-", file.stem.lower()).strip("-._")[:63]
    if not text:
        raise click.UsageError(f"{file.name} makes no id; give one with --id")
    return text


def key_values(items: tuple[str, ...], flag: str) -> dict[str, str]:
    """`("a=1",)` as `{"a": "1"}`."""
    pairs_ = [item.partition("=") for item in items]
    for key, equals, _ in pairs_:
        if not key or not equals:
            raise click.BadParameter(f"{key!r} is not KEY=VALUE", param_hint=flag)
    return {key: value for key, _, value in pairs_}


COMMANDS = (models, datasets)
