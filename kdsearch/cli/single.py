"""Commands without a search: distill, check, measure, list."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kdsearch.cli.app import app
from kdsearch.cli.options import (
    OUT,
    Config,
    Json,
    Out,
    Quiet,
    Settings,
    announce_data,
    read_settings,
    require_positive,
    shape_of,
    takes,
)
from kdsearch.errors import SpecError, printable
from kdsearch.space import Value
from kdsearch.study.config import DATA_FIELDS, TARGET_FIELDS
from kdsearch.study.formatting import counted


@app.command()
@takes(*DATA_FIELDS, *TARGET_FIELDS, "epochs", "seed", "device")
def distill(
    config: Config = None,
    out: Out = OUT,
    name: Annotated[str | None, typer.Option(help="Name of the new folder under --out.")] = None,
    student: Annotated[
        str, typer.Option(help="A family, timm:NAME, torchvision:NAME or FILE.py:CLASS.")
    ] = "resnet",
    resolution: Annotated[int | None, typer.Option(help="The student's input, in pixels.")] = None,
    method: Annotated[str, typer.Option(help="See `kdsearch list methods`.")] = "kd",
    alpha: Annotated[float | None, typer.Option(help="Weight of the teacher's signal.")] = None,
    weight: Annotated[float | None, typer.Option(help="Weight of the method's term.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the part that has one, as kd in at+kd.")
    ] = None,
    mapping: Annotated[
        str | None, typer.Option(help="last, even, stride, all or pairs such as 0:1,2:3.")
    ] = None,
    set: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    epochs: int | None = None,
    device: str | None = None,
    given: dict[str, Any],
) -> None:
    """Distil one student, without a search.

    Example: kdsearch distill --student mobilenet --method at+kd --temperature 4 --alpha 0.9
    """
    require_positive(resolution=resolution)
    params: dict[str, Value] = {"student.family": student, "method.name": method}
    params |= read_settings(set, student=student, method=method)
    spec: dict[str, Value | None] = {"alpha": alpha, "weight": weight, "mapping": mapping}
    announce_data(given, quiet=quiet or as_json)
    if temperature is not None:  # the import of torch takes seconds
        from kdsearch.training.distiller import temperature_knob

        spec[temperature_knob(method)] = temperature
    flags = {f"method.{method}.{key}": value for key, value in spec.items()}
    flags |= {"student.resolution": resolution, "train.epochs": epochs}
    typed = {key: value for key, value in flags.items() if value is not None}
    if twice := params.keys() & typed.keys():
        raise SpecError(f"{', '.join(sorted(twice))}: given as a flag and with --set; give one")
    params |= typed
    from kdsearch.cli.live import StudyConsole
    from kdsearch.cli.tables import show
    from kdsearch.workflows import api

    with StudyConsole(quiet=quiet or as_json) as callback:
        found = api.distill(
            params, **given, out=out, name=name, device=device or "auto", callback=callback
        )
    if as_json:
        typer.echo((found.package.path / "metrics.json").read_text(encoding="utf-8"))
        return
    text, taught = found.metric.text, found.outcome.taught_epochs
    until = ""
    if taught is not None:
        until = f"Distilled for {counted(taught, 'epoch')}, until the student reached its teacher"
    show(
        *filter(None, [found.package.warning]),
        f"Teacher: validation {text(found.teacher_val)}",
        *filter(None, [until]),
        "Student: " + ", ".join(f"{k} {text(v)}" for k, v in found.results.items()),
        f"File: {found.package.path}/student.onnx, {found.package.latency}, "
        f"{100 * found.package.agreement.same:.2f} % same predictions as PyTorch",
        f"Curves: tensorboard --logdir {found.package.path.parent}/tensorboard",
    )


@app.command()
@takes(*DATA_FIELDS, "space", "seed", "device")
def check(
    config: Config = None,
    out: Out = OUT,
    student: Annotated[
        str | None, typer.Option(help="Check one family instead of those of the space.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a step; by default those of the space.")
    ] = None,
    set: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    space: str | None = None,
    device: str | None = None,
    given: dict[str, Any],
) -> None:
    """Check, before a study, which methods can be used, and how good the teacher is.

    Example: kdsearch check --data path/to/images --teacher timm:resnet50.a1_in1k
    --teacher-epochs 5 --space classification-mobile
    """
    require_positive(batch_size=batch_size)
    params: dict[str, Value] = read_settings(set, student=student, method=None)
    params |= {} if student is None else {"student.family": student}
    params |= {} if batch_size is None else {"train.batch_size": batch_size}
    announce_data(given, quiet=quiet or as_json)
    from kdsearch.cli.live import StudyConsole
    from kdsearch.cli.tables import check_tables, show
    from kdsearch.study.config import config_of
    from kdsearch.workflows.check import check as check_request

    with StudyConsole(quiet=quiet or as_json) as callback:
        checked = check_request(
            config_of(given),
            callback,
            out=out,
            space=space,
            params=params,
            device=device or "auto",
            on_try=callback.attempt,
        )
    if as_json:
        typer.echo(json.dumps(asdict(checked)))
        return
    show(*check_tables(checked), *checked.notes)


@app.command()
@takes(*TARGET_FIELDS)
def measure(
    model: Annotated[str, typer.Argument(help="A family, timm:NAME, torchvision:NAME or *.onnx.")],
    input: Annotated[
        str | None,
        typer.Option(help="Channels x height x width; default: those of a file, or 3x224x224."),
    ] = None,
    classes: Annotated[int, typer.Option(help="Classes of the head.")] = 1000,
    set: Settings = None,
    as_json: Json = False,
    *,
    given: dict[str, Any],
) -> None:
    """Print the FLOPs, parameters and latency of one model.

    Example: kdsearch measure timm:mobilenetv3_small_100 --input 3x224x224
    """
    shape = None if input is None else shape_of(input)
    settings = read_settings(set, student=model, method="kd")
    params: dict[str, Value] = {"student.family": model, **settings}
    if not as_json:
        typer.echo(f"Measuring {printable(model)}")
    from kdsearch.cli.live import StudyConsole
    from kdsearch.cli.tables import show
    from kdsearch.spec import Candidate
    from kdsearch.study.config import config_of
    from kdsearch.workflows.measure import measure_model

    found = measure_model(
        Candidate.from_params(params).student,
        config_of(given),
        input_shape=shape,
        note=StudyConsole(quiet=as_json).on_message,
        classes=classes,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    lines = [f"{model} at {'x'.join(map(str, found.input_shape))}"]
    if found.flops:
        lines.append(f"{found.flops / 1e6:.2f} MFLOPs (one multiply-add counts once)")
    if found.params:
        lines.append(f"{found.params:,} parameters")
    show(*lines, f"{found.latency} ({found.target})")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, students, teachers, data or spaces.")],
) -> None:
    """List methods, students, teachers, data sets or search spaces by name.

    Example: kdsearch list methods
    """
    from kdsearch.cli.listing import listing

    rows = listing(what)
    width = max(map(len, rows))
    for name, about in rows.items():
        typer.echo(f"{name:<{width}}  {about}".rstrip())
