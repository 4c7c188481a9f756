"""The commands about a whole study: run, report, dashboard."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kdsearch.cli.app import app
from kdsearch.errors import StudyError
from kdsearch.flags import (
    OUT,
    Config,
    Data,
    Debug,
    Device,
    Epochs,
    Flip,
    ImageSize,
    Json,
    Name,
    Out,
    Quiet,
    Seed,
    Space,
    Stopping,
    Subset,
    Teacher,
    TeacherEpochs,
    TeacherWeights,
    Workers,
    only_given,
    read_workers,
    require_positive,
)


@app.command()
def run(
    context: typer.Context,
    config: Config = None,
    out: Out = OUT,
    name: Name = None,
    data: Data = None,
    image_size: ImageSize = None,
    subset: Subset = None,
    flip: Flip = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    teacher_epochs: TeacherEpochs = None,
    space: Space = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Latency of the ONNX file: CPU, 1 thread, batch 1.")
    ] = None,
    budget_mflops: Annotated[
        float | None, typer.Option(help="Millions of multiply-adds at batch 1.")
    ] = None,
    budget_mparams: Annotated[float | None, typer.Option(help="Millions of parameters.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all (20).")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which no further trial begins.")
    ] = None,
    epochs: Epochs = None,
    seed: Seed = None,
    stopping: Stopping = None,
    device: Device = "auto",
    workers: Workers = "1",
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search a student that fits the budget, distil it, export it and write the report.

    Example: kdsearch run --data path/to/images --teacher timm:resnet50.a1_in1k --teacher-epochs 5
    --budget-ms 10 --name phones
    """
    given = only_given(
        data=data,
        image_size=image_size,
        subset=subset,
        flip=flip,
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_epochs=teacher_epochs,
        space=space,
        budget_ms=budget_ms,
        budget_mflops=budget_mflops,
        budget_mparams=budget_mparams,
        epochs=epochs,
        seed=seed,
        stopping=stopping,
    )
    require_positive(trials=trials, time_limit=time_limit)
    from kdsearch.console import StudyConsole, front_table, show
    from kdsearch.run import run as run_study

    with StudyConsole(quiet=quiet or as_json) as watch:
        finished = run_study(
            given,
            watch,
            out=out,
            name=name,
            trials=trials,
            time_limit=time_limit,
            device=device,
            workers=read_workers(workers),
        )
    if as_json:
        typer.echo(json.dumps(finished.summary.to_json()))
        return
    package = finished.package
    show(
        front_table(finished.summary),
        *finished.notes,
        f"Best: no. {finished.summary.best}, {package.path}/student.onnx: "
        f"{package.latency.ms:.3f} ms, spread {package.latency.spread_ms:.3f} ms "
        "(measured on the file; ONNX Runtime, CPU, 1 thread, batch 1)",
        f"Report: {finished.path}/report.html",
        f"Retrain: kdsearch distill --config {package.path}/config.yaml",
    )


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a study's report.html, report.md, figures and tables anew; no GPU, no torch.

    Example: kdsearch report phones
    """
    from kdsearch.console import front_table, show
    from kdsearch.derive import write_derived
    from kdsearch.request import study_path
    from kdsearch.study import load_study

    path = study_path(out, name)
    summary = write_derived(load_study(path))
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
        return
    show(front_table(summary), f"Report: {path}/report.html")


@app.command()
def dashboard(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
    debug: Debug = False,
) -> None:
    """Serve optuna-dashboard on this machine only, on one study.

    Example: kdsearch dashboard phones
    """
    from kdsearch.request import study_path
    from kdsearch.store import storage_url
    from kdsearch.study import load_study

    path = study_path(out, name)
    load_study(path)
    import optuna_dashboard

    typer.echo(f"Dashboard of {path}: http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    try:
        optuna_dashboard.run_server(storage_url(path), host="127.0.0.1", port=port)
    except OSError as error:
        raise StudyError(f"--port {port}: {error.strerror}; give another --port") from error
