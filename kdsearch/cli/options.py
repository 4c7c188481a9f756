"""The flags that commands share, and how they are read: types, `--config`, `--set`. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.space import Value

OUT = Path("results")
ENGINES = ("local", "ray")
MAX_CONFIG_BYTES = 1_000_000
_SIDE = re.compile(r"[1-9][0-9]{0,8}")
_COUNT = re.compile(r"[1-9][0-9]{0,3}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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
    values = {key.replace("-", "_"): value for key, value in _read_config(path).items()}
    unknown = [key for key in values if key not in known]
    if unknown:
        hints = ", ".join(f"{key!r}{did_you_mean(key, known)}" for key in unknown)
        raise SpecError(f"--config {path}: unknown {hints}; known: {', '.join(sorted(known))}")
    defaults = {known[key]: value for key, value in values.items() if value is not None}
    if isinstance(settings := defaults.get("set"), Mapping):
        defaults["set"] = [f"{name}={_yaml(value)}" for name, value in settings.items()]
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _read_config(path: Path) -> dict[str, object]:
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise SpecError(f"--config {path}: larger than {MAX_CONFIG_BYTES} bytes")
        values = yaml.safe_load(content.decode())
    except OSError as error:
        raise SpecError(f"--config {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"--config {path}{where}: not plain YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SpecError(f"--config {path}: expected a mapping of flags to values")
    return values


def _yaml(value: object) -> str:
    return json.dumps(value)


Config = Annotated[
    Path | None,
    typer.Option(
        callback=_configure, is_eager=True, help="YAML file of flags; the command line wins."
    ),
]
Out = Annotated[Path, typer.Option(help="Where studies and the cache are kept.")]
Name = Annotated[str | None, typer.Option(help="Name of the study; the same name goes on with it.")]
Data = Annotated[
    str | None,
    typer.Option(help="digits, a torchvision set by name, a folder (train/CLASS/*) or Parquet."),
]
ImageSize = Annotated[int | None, typer.Option(help="Side of the stored images in pixels.")]
Subset = Annotated[
    int | None,
    typer.Option(help="Train on that many images, stratified; 0: on all, whatever --config says."),
]
Flip = Annotated[bool | None, typer.Option(help="Whether training views are mirrored.")]
Teacher = Annotated[
    str | None,
    typer.Option(help="auto, cifar_resnet56, timm:NAME, torchvision:NAME or FILE.py:FACTORY."),
]
TeacherWeights = Annotated[str | None, typer.Option(help="The teacher's weights file.")]
TeacherEpochs = Annotated[int | None, typer.Option(help="Fine-tune the teacher on the data.")]
Space = Annotated[str | None, typer.Option(help="A built-in space or a YAML file.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of each training.")]
Seed = Annotated[int | None, typer.Option(help="Of splits, views, order, weights and sampler.")]
Stopping = Annotated[
    str | None,
    typer.Option(help="End trials that cannot reach the front: off (the default), safe or tight."),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="What draws trials: tpe (the default) or random; nsga2 or gp where no option owns "
        "dimensions, as in --space resnet-kd."
    ),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(help="Validation accuracy, as 0.9, below which no student is shipped."),
]
FromStudy = Annotated[
    str | None,
    typer.Option(help="A study, by name or folder, whose best recipes are tried first."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="What latency is measured on: cpu (the default), torch, openvino, cuda, tensorrt, or "
        "cmd:COMMAND, which gets the ONNX file and prints milliseconds.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads of the target (1).")]
Batch = Annotated[int | None, typer.Option(help="Images in a batch on the target (1).")]
Workers = Annotated[
    str,
    typer.Option(help="Trials at a time; auto: one a core, or what is fastest on a GPU."),
]
TrialTimeout = Annotated[
    str | None,
    typer.Option(
        help="Seconds, or 30m or 2h, after which a trial fails, alone. Trials then run in "
        "processes that can be ended, on a GPU too, where they take turns, which is slower."
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Where trials are kept: an SQLAlchemy URL, as postgresql://user@host/database; by "
        "default study.db (SQLite) in the study's folder. A password belongs into PGPASSWORD."
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(help="Time after which no further trial begins: 2h, 30m, 90s or seconds."),
]
StopWhenFlat = Annotated[
    bool,
    typer.Option("--stop-when-flat", help="End once 20 complete trials have not raised the front."),
]
FlatAfter = Annotated[
    int | None,
    typer.Option(help="The same with so many complete trials instead of 20; 0: never."),
]
RefitCount = Annotated[
    int | None,
    typer.Option("--refit", help="Candidates of the front to train again under several seeds (0)."),
]
Seeds = Annotated[int | None, typer.Option(help="How many seeds each has, with --refit (3).")]
RefitEpochs = Annotated[
    int | None, typer.Option(help="Epochs of these trainings, with --refit; as in the search.")
]
CallbackPath = Annotated[
    str | None,
    typer.Option(help="MODULE:FUNCTION or FILE.py:FUNCTION, called with (study, record)."),
]
Log = Annotated[
    list[str] | None,
    typer.Option(help="tensorboard, mlflow, wandb or FILE.py:CLASS; repeatable."),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="The same as --log tensorboard.")]
Engine = Annotated[
    str, typer.Option(help="Where trials run: local, or ray (pip install kdsearch\\[ray]).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="none: a Ray of our own here (the default); auto or HOST:PORT: a cluster."),
]
GpusPerTrial = Annotated[
    float | None, typer.Option(help="Share of a GPU that each trial on Ray has (1).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an internal error arose.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(help="A knob, as student.width=0.5, method.beta=2 or train.lr=0.1; repeatable."),
]


def only_given(**flags: object) -> dict[str, object]:
    """Return the flags that have a value."""
    return {name: value for name, value in flags.items() if value is not None}


def require_positive(**flags: float | None) -> None:
    """Raise SpecError for a flag that is given and not above 0."""
    for name, value in flags.items():
        if value is not None and not value > 0:
            flag = name.replace("_", "-")
            raise SpecError(f"--{flag} {value:g}: expected a number above 0")


def read_workers(text: str) -> int | None:
    """Read `--workers`: a number, or None for `auto`. Raises SpecError."""
    if text == "auto":
        return None
    if not _COUNT.fullmatch(text):
        raise SpecError(f"--workers {text!r}: expected a number above 0, or auto")
    return int(text)


def read_engine(name: str, **for_ray: object) -> bool:
    """Read `--engine`: whether it is Ray, whose flags are refused without it. Raises SpecError."""
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES)
        raise SpecError(f"--engine {name!r}{hint}: expected {' or '.join(ENGINES)}")
    given = only_given(**for_ray)
    if name != "ray" and given:
        flag = min(given).replace("_", "-")
        raise SpecError(f"--{flag} is for trials on Ray: give --engine ray too, or leave it out")
    return name == "ray"


def require_refit(refit: int | None, **beside: int | None) -> None:
    """Raise SpecError for a flag about refits where none are asked for."""
    given = only_given(**beside)
    if not refit and given:
        name = min(given)
        flag = name.replace("_", "-")
        raise SpecError(
            f"--{flag} {given[name]} is for refits: give --refit 3 too, or leave it out"
        )


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
    """Read a number, a truth value or a word, as JSON writes them; bare words need no quotes."""
    try:
        read = json.loads(value)
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
    if height != width:
        raise SpecError(f"--input {text!r}: students take square images")
    return channels, height, width


def read_duration(text: str, flag: str) -> float:
    """Read seconds, or a number with a unit: `90`, `90s`, `30m`, `2h`, `1.5d`. Raises SpecError."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not seconds > 0:
        raise SpecError(f"{flag} {text!r}: expected seconds above 0, or a time as 90s, 30m, 2h, 1d")
    return seconds
