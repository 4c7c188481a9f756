"""Options of the commands: built from the fields of configurations, `--config`, `--set`. No torch.

`StudyConfig` and `RunOptions` declare each option once; `takes` adds the flags to a command.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from kdsearch.documents import parse_json
from kdsearch.errors import SpecError, did_you_mean, printable
from kdsearch.space import Value
from kdsearch.study.config import StudyConfig
from kdsearch.study.options import OUTPUT, Option, RunOptions, flag, options_of

OUT = Path("results")
CONFIG = tuple(options_of(StudyConfig))
RUN = tuple(options_of(RunOptions))
_POINT = re.compile(r"^([-+]?)\.(?=\d)")
_OWN_FLAGS = {"method": ("alpha", "weight", "temperature", "mapping"), "student": ()}
_SIDE = re.compile(r"[1-9][0-9]{0,8}")


def _parameter(name: str, declared: Option, kind: Any, default: object) -> inspect.Parameter:
    """Return the parameter of a command for a declared option; its default None: not given."""
    parse, read = declared.parse, None
    default = declared.default or default
    if parse is not None:
        kind = str

        def read(text: object) -> object:
            return parse(str(text), flag(name))

    elif kind == tuple[str, ...]:
        kind = list[str]
    shown = typer.Option(
        help=declared.help + (f" Default: {default}." if default else ""),
        metavar=declared.metavar,
        parser=read,
        rich_help_panel=declared.panel,
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, shown]
    )


_PARAMETERS = {
    name: _parameter(name, declared, hints[name], getattr(defaults, name))
    for defaults in (StudyConfig(), RunOptions())
    for hints in (get_type_hints(type(defaults)),)
    for name, declared in options_of(type(defaults)).items()
}


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show where an internal error arose.")],
)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add declared options and --debug, which `main` reads, to a command.

    The command gets the value of an option in its parameter of that name, None where the user gave
    none. Options without such a parameter come in its parameter `given`, those that the user gave.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        collected = [name for name in names if name not in own]

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            values.pop("debug")
            _combine(values, context)
            found = {name: values.pop(name) for name in collected}
            if "given" in own:
                values["given"] = {k: v for k, v in found.items() if v is not None}
            command(**values)

        kept = [p for name, p in own.items() if name not in (*names, "given")]
        first = [p for p in kept if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        added = [_PARAMETERS[name] for name in names]
        parameters = [*first, _CONTEXT, _DEBUG, *added, *kept[len(first) :]]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return add


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Take the flags that a YAML file gives as defaults: the command line wins."""
    if path is None:
        return None
    known = {
        option.removeprefix("--").replace("-", "_"): str(parameter.name)
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help")
    }
    flags = {str(p.name) for p in context.command.params if getattr(p, "is_flag", False)}
    values = {key.replace("-", "_"): value for key, value in _read_config(path).items()}
    unknown = [key for key in values if key not in known]
    if unknown:
        hints = ", ".join(f"{key!r}{did_you_mean(key, known)}" for key in unknown)
        raise SpecError(f"--config {path}: unknown {hints}; known: {', '.join(sorted(known))}")
    defaults = {known[key]: value for key, value in values.items() if value is not None}
    for name, value in defaults.items():
        if isinstance(value, bool) and name not in flags:
            raise SpecError(f"--config {path}: {name} is a truth value; write a text in quotes")
        if value == "":
            raise SpecError(f"--config {path}: {name} is empty; leave it out for its default")
    if isinstance(settings := defaults.get("set"), Mapping):
        defaults["set"] = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _combine(values: dict[str, Any], context: typer.Context) -> None:
    """Combine, in place, the flags of a configuration with those of the command line.

    `--set` adds to the configuration's knobs and wins over equal ones. Another method or student
    leaves out the configuration's knobs of its own, and a line says so.
    """
    file = context.default_map or {}
    sources = {name: context.get_parameter_source(name) for name in values}
    typed = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    knobs = [str(knob) for knob in file.get("set", ())]
    for owner, flags in _OWN_FLAGS.items():
        if owner not in typed or values[owner] == file.get(owner, values[owner]):
            continue
        own = [name for name in flags if name in file and name not in typed]
        gone = [knob for knob in knobs if knob.startswith(f"{owner}.")]
        values |= dict.fromkeys(own)
        knobs = [knob for knob in knobs if knob not in gone]
        if names := [*own, *(knob.partition("=")[0] for knob in gone)]:
            left_out = f"--config: {', '.join(names)} left out, only for {owner} {file[owner]}"
            typer.echo(printable(left_out), err=True)
    if knobs or "set" in file:
        values["set"] = [*knobs, *(values["set"] if "set" in typed else ())]


def _read_config(path: Path) -> dict[str, object]:
    """Return the values of a configuration; a number is its text, as on the command line."""
    import yaml

    from kdsearch.documents import DocumentError, compose, read_text, values_of

    try:
        node = compose(read_text(path))
        values = values_of(node)
    except OSError as error:
        raise SpecError(f"--config {path}: {error.strerror}") from error
    except DocumentError as error:
        where = f":{error.line}" if error.line else ""
        raise SpecError(f"--config {path}{where}: not plain YAML: {error.reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SpecError(f"--config {path}: expected a mapping of flags to values")
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if value.tag.endswith((":int", ":float")):
            values[key.value] = value.value
    return values


Config = Annotated[
    Path | None,
    typer.Option(
        callback=_configure, is_eager=True, help="YAML file of flags; the command line wins."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the studies and their cache.")]
Name = Annotated[
    str | None, typer.Option(help="Name of the study; an existing name resumes that study.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
License = Annotated[
    str | None,
    typer.Option(
        help="Licence of the weights for the model card, as apache-2.0.", rich_help_panel=OUTPUT
    ),
]
Author = Annotated[
    str | None, typer.Option(help="Author for the model card.", rich_help_panel=OUTPUT)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(help="A knob, as student.width=0.5, method.beta=2 or train.lr=0.1; repeatable."),
]


def announce_data(given: Mapping[str, object], *, quiet: bool) -> None:
    """Print the first line of a command that reads images, before the slow imports."""
    if not quiet:
        named = given.get("data")
        typer.echo("Reading the images" + (f" of {named!r}" if named else ""))


def require_positive(**flags: float | None) -> None:
    """Raise SpecError for a flag that is given and not above 0."""
    for name, value in flags.items():
        if value is not None and not value > 0:
            raise SpecError(f"{flag(name)} {value:g}: expected a number above 0")


def read_settings(
    settings: list[str] | None, *, student: str | None, method: str | None
) -> dict[str, Value]:
    """Read `student.width=0.5` into the names that a walked space would have.

    student, method: whose knobs these are; None where the command names none. Raises SpecError.
    """
    owners = {} if student is None else {"student": f"student.{student}."}
    owners |= {} if method is None else {"method": f"method.{method}."}
    owners["train"] = "train."
    params: dict[str, Value] = {}
    for text in settings or ():
        name, equals, value = text.partition("=")
        section, dot, knob = name.partition(".")
        if not (equals and dot and knob) or section not in owners:
            known = " or ".join(f"{owner}.KNOB=VALUE" for owner in owners)
            hint = "" if student else "; a student's knobs need --student"
            raise SpecError(f"--set {text!r}: expected {known}{hint}")
        params[owners[section] + knob] = _value(text, value)
    return params


def read_names(settings: list[str]) -> dict[str, Value]:
    """Read `student.width=0.5` as it stands. Raises SpecError."""
    params: dict[str, Value] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise SpecError(f"--set {text!r}: expected NAME=VALUE, as student.family=resnet")
        params[name] = _value(text, value)
    return params


def _value(text: str, value: str) -> Value:
    """Read a number, a truth value or a word, as JSON writes them; bare words need no quotes.

    A number may begin with its point, as in `.5`.
    """
    try:
        read = parse_json(_POINT.sub(r"\g<1>0.", value))
    except ValueError:  # no JSON, or a number of too many digits
        read = value
    if not isinstance(read, bool | int | float | str) or not value:
        raise SpecError(f"--set {text!r}: {value!r} is not a number, a truth value or a word")
    return read


def shape_of(text: str) -> tuple[int, int, int]:
    """Read `3x224x224`. Raises SpecError."""
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(_SIDE.fullmatch(side) for side in sides):
        raise SpecError(f"--input {text!r}: expected channels x height x width, as 3x224x224")
    channels, height, width = map(int, sides)
    return channels, height, width
