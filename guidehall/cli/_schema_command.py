"""A command whose flags are the parameters of a pipeline, made from the JSON Schema that the server gives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli import _schema
from guidehall.cli._context import connect
from guidehall.cli._flags import renamed
from guidehall.cli._schema import Field, Kind

if TYPE_CHECKING:
    from guidehall.core.errors import AppError

_OPTIONS = "guidehall.schema.options"
_FIELDS = "guidehall.schema.fields"
_VALUES = "guidehall.schema.values"
_UNREACHED = "guidehall.schema.unreached"
_LARGEST_FILE = 8 << 20

# Of what goes beside the parameters; "inputs.curves" becomes "--input curves".
_FLAGS = {
    "device_class": "--device-class",
    "display_name": "--name",
    "group": "--group",
    "inputs": "--input",
    "labels": "--label",
    "notifications": "--notify",
    "notify": "--notify",
    "pool": "--pool",
    "priority": "--priority",
    "seed": "--seed",
    "sweep": "--sweep",
    "timeout_seconds": "--timeout",
}

_METAVARS = {
    Kind.INTEGER: "INTEGER",
    Kind.NUMBER: "NUMBER",
    Kind.TEXT: "TEXT",
    Kind.LIST: "A,B,…",
    Kind.JSON: "JSON",
}


@dataclass(frozen=True)
class _Given:
    """A value from the command line; JSON's null is one too."""

    value: Any


class _FieldType(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.3
    def __init__(self, field: Field) -> None:
        self.name = field.kind.value
        self._field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Given:
        try:
            return _Given(_schema.parse(self._field, value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _FieldOption(click.Option):
    """The flag of one field; what it is given goes into `_VALUES`, in the order of the command line."""

    def __init__(self, number: int, field: Field, flag: str) -> None:
        boolean = field.kind is Kind.BOOLEAN
        super().__init__(
            [f"field_{number}", f"--{flag}/--no-{flag}" if boolean else f"--{flag}"],
            type=None if boolean else _FieldType(field),
            default=None,
            expose_value=False,
            callback=self._keep,
            help=_schema.describe(field),
            metavar=_metavar(field),
        )
        self.field = field

    def _keep(self, ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            given = value.value if isinstance(value, _Given) else value
            ctx.meta.setdefault(_VALUES, []).append((self, given))


def _metavar(field: Field) -> str | None:
    if field.kind is Kind.CHOICE:
        return "CHOICE"
    return _METAVARS.get(field.kind)


class SchemaCommand(click.Command):
    """Asks the server for the pipeline's schema before it reads its arguments."""

    def __init__(self, *args: Any, pipeline: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = pipeline
        self._own_flags = {flag for param in self.params for flag in param.opts} | {"--help"}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        # Both --batch_size, as the field is called, and --batch-size, as flags are.
        extra.setdefault("token_normalize_func", lambda flag: flag.replace("-", "_"))
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Adds the flags, then reads the arguments."""
        from guidehall.client.errors import AppError, DeadlineExceeded, Unavailable

        try:
            with connect(ctx) as client:
                pipeline = client.pipeline(self.pipeline)
        except AppError as error:
            asked = any(flag in args for flag in ctx.help_option_names)
            if asked and isinstance(error, (Unavailable, DeadlineExceeded)):
                ctx.meta[_UNREACHED] = error.message
                # Flags of the pipeline would be refused before the help is shown.
                return super().parse_args(ctx, ["--help"])
            # While the shell completes a word there is nobody to tell.
            if not ctx.resilient_parsing:
                raise
            return super().parse_args(ctx, args)
        known = _schema.fields(pipeline.params_schema)
        ctx.meta[_FIELDS] = known
        ctx.meta[_OPTIONS] = self._options(known, args)
        self.help = self.help or f"{pipeline.title}.\n\n{pipeline.description}"
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options and those of the schema."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the command's own options, then the parameters in groups."""
        own = [param.get_help_record(ctx) for param in super().get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for record in own if record is not None])
        for heading, lines in self._help_groups(ctx.meta.get(_FIELDS, [])).items():
            with formatter.section(heading):
                formatter.write_dl(lines)
        if any(_schema.ITEM in field.path for field in ctx.meta.get(_FIELDS, [])):
            with formatter.section("Lists"):
                formatter.write_text(
                    "N stands for the number of a list's entry, from 0. "
                    "A whole list or object may be given in JSON."
                )
        if reason := ctx.meta.get(_UNREACHED):
            with formatter.section("Parameters"):
                formatter.write_text(
                    f"those of {self.pipeline} are told by a running platform only: {reason}"
                )

    def _options(self, known: Sequence[Field], args: Sequence[str]) -> list[_FieldOption]:
        """A flag for each field, and for each that `args` names inside a list."""
        plain = [field for field in known if _schema.ITEM not in field.path]
        named = {field.path: field for arg in args if (field := self._named(known, arg)) is not None}
        wanted = {field.path: field for field in plain} | named
        return [_FieldOption(number, field, self.flag(field)) for number, field in enumerate(wanted.values())]

    def _named(self, known: Sequence[Field], arg: str) -> Field | None:
        path = arg.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_").split(".")
        return _schema.find(known, path) if arg.startswith("--") else None

    def flag(self, field: Field) -> str:
        """The field's flag without its dashes; `params.` goes in front of what the command calls its own."""
        taken = (
            f"--{field.dotted}".replace("_", "-") in self._own_flags or f"--{field.dotted}" in self._own_flags
        )
        return f"params.{field.dotted}" if taken else field.dotted

    def _help_groups(self, known: Sequence[Field]) -> dict[str, list[tuple[str, str]]]:
        groups: dict[str, list[tuple[str, str]]] = {"Parameters": []}
        for field in known:
            is_list = field.composite and any(other.path == (*field.path, _schema.ITEM) for other in known)
            if field.composite and not is_list:
                if len(field.path) == 1:
                    groups[_heading(field)] = []
                continue
            group = next(
                (
                    heading
                    for heading in groups
                    if len(field.path) > 1 and heading.split(":")[0] == field.path[0]
                ),
                "Parameters",
            )
            groups[group].append((self._usage(field), _schema.describe(field)))
        return {heading: lines for heading, lines in groups.items() if lines}

    def _usage(self, field: Field) -> str:
        flag = self.flag(field)
        return f"--{flag} / --no-{flag}" if field.kind is Kind.BOOLEAN else f"--{flag} {_metavar(field)}"

    def params_from(self, ctx: click.Context, file: Path | None) -> dict[str, Any]:
        """The parameters: what is in `file`, then what the flags say.

        Raises:
            UsageError: a flag does not fit what is there.
        """
        params = {} if file is None else read_document(file)
        for option, value in ctx.meta.get(_VALUES, []):
            try:
                _schema.assign(params, option.field.path, value)
            except ValueError as error:
                raise click.BadParameter(f"{error}.", ctx, option) from None
        return params

    def sweep_from(self, ctx: click.Context, texts: Sequence[str]) -> dict[str, list[Any]]:
        """The values of `--sweep` by the paths of their parameters.

        Raises:
            UsageError: no such parameter, or a value that it does not take.
        """
        axes = {}
        for text in texts:
            try:
                field, listed = _schema.setting(ctx.meta.get(_FIELDS, []), text)
                axes[field.indexed] = _schema.values(field, listed)
            except ValueError as error:
                raise click.BadParameter(
                    f"{error}.", param_hint=f"--sweep {text.partition('=')[0]}"
                ) from None
        return axes

    def in_flags(self, error: AppError, swept: Sequence[str] = ()) -> AppError:
        """`error` with the names of flags in the place of the names of fields.

        Args:
            swept: paths of a sweep's parameters.
        """
        return renamed(error, lambda field: self._flag_of(field, swept))

    def _flag_of(self, field: str, swept: Sequence[str]) -> str:
        field = field.removeprefix("sweep.template.")
        if axis := re.fullmatch(r"sweep\.axes\[(\d+)\](?:\.values\[(\d+)\])?(?:\.path)?(.*)", field):
            number, place, rest = axis.groups()
            nth = f", value {int(place) + 1}" if place else ""
            return f"--sweep {swept[int(number)]}{rest}{nth}"
        if not field.startswith("params."):
            head, _, rest = field.partition(".")
            return f"{_FLAGS[head]} {rest}".rstrip() if head in _FLAGS else field
        path = field.removeprefix("params.").replace("[", ".").replace("]", "").split(".")
        return f"--{self.flag(Field(tuple(path), Kind.JSON))}"


def _heading(field: Field) -> str:
    about = field.title or field.description
    return f"{field.path[0]}: {about.rstrip('.')}" if about else field.path[0]


def read_document(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        InvalidArgument: no such thing in it.
    """
    import yaml

    from guidehall.client.errors import InvalidArgument
    from guidehall.core.plain_yaml import load

    with file.open("rb") as stream:
        data = stream.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise InvalidArgument.field("--from", str(file), f"at most {_LARGEST_FILE >> 20} MiB")
    try:
        document = load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file.name} line {mark.line + 1}" if mark is not None else file.name
        problem = getattr(error, "problem", None) or "this is no text"
        raise InvalidArgument(f"{where}: {problem}; a YAML or JSON document is needed") from None
    if not isinstance(document, Mapping):
        raise InvalidArgument.field("--from", str(file), "a mapping of parameters in YAML or JSON")
    return dict(document)
