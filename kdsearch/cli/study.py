"""The commands about a whole study: run, report, dashboard."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from kdsearch.cli.app import app
from kdsearch.cli.options import (
    OUT,
    Batch,
    CallbackPath,
    Config,
    Data,
    Debug,
    Device,
    Engine,
    Epochs,
    FlatAfter,
    Flip,
    FromStudy,
    GpusPerTrial,
    ImageSize,
    Json,
    Log,
    MinAccuracy,
    Name,
    Out,
    Quiet,
    RayAddress,
    RefitCount,
    RefitEpochs,
    Sampler,
    Seed,
    Seeds,
    Space,
    Stopping,
    StopWhenFlat,
    Storage,
    Subset,
    TargetName,
    Teacher,
    TeacherEpochs,
    TeacherWeights,
    TensorBoard,
    Threads,
    TimeLimit,
    TrialTimeout,
    Workers,
    only_given,
    read_duration,
    read_engine,
    read_names,
    read_workers,
    require_positive,
    require_refit,
)
from kdsearch.errors import SpecError, StudyError


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
        float | None, typer.Option(help="Latency of the exported file on the --target.")
    ] = None,
    budget_mflops: Annotated[
        float | None, typer.Option(help="Millions of multiply-adds at batch 1.")
    ] = None,
    budget_mparams: Annotated[float | None, typer.Option(help="Millions of parameters.")] = None,
    target: TargetName = None,
    threads: Threads = None,
    batch: Batch = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all (20).")] = None,
    time_limit: TimeLimit = None,
    stop_when_flat: StopWhenFlat = False,
    flat_after: FlatAfter = None,
    epochs: Epochs = None,
    seed: Seed = None,
    stopping: Stopping = None,
    sampler: Sampler = None,
    min_accuracy: MinAccuracy = None,
    from_study: FromStudy = None,
    refit: RefitCount = None,
    seeds: Seeds = None,
    refit_epochs: RefitEpochs = None,
    device: Device = "auto",
    workers: Workers = "1",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    gpus_per_trial: GpusPerTrial = None,
    trial_timeout: TrialTimeout = None,
    storage: Storage = None,
    callback: CallbackPath = None,
    log: Log = None,
    tensorboard: TensorBoard = False,
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
        target=target,
        threads=threads,
        batch=batch,
        epochs=epochs,
        seed=seed,
        stopping=stopping,
        sampler=sampler,
        min_accuracy=min_accuracy,
        from_study=from_study,
    )
    require_positive(trials=trials)
    if flat_after is not None and flat_after < 0:
        raise SpecError(f"--flat-after {flat_after}: expected a number of trials, or 0 for never")
    if flat_after is None and stop_when_flat:
        from kdsearch.hpo.convergence import FLAT_AFTER

        flat_after = FLAT_AFTER
    seconds = None if time_limit is None else read_duration(time_limit, "--time-limit")
    timeout = None if trial_timeout is None else read_duration(trial_timeout, "--trial-timeout")
    require_refit(refit, seeds=seeds, refit_epochs=refit_epochs)
    is_ray = read_engine(engine, ray_address=ray_address, gpus_per_trial=gpus_per_trial)
    from kdsearch.cli.tables import candidates_table, front_table, show
    from kdsearch.engines.ray_actors import OnRay
    from kdsearch.study.loggers import Loggers

    loggers = Loggers([*(log or ()), *(["tensorboard"] * tensorboard)], callback=callback)
    from kdsearch.cli.live import StudyConsole
    from kdsearch.study.refit import SEEDS, Refit
    from kdsearch.workflows.run import Plan
    from kdsearch.workflows.run import run as run_study

    on_ray = OnRay(address=ray_address or "none", gpus_per_trial=gpus_per_trial) if is_ray else None
    plan = Plan(
        trials=trials,
        time_limit=seconds,
        flat_after=flat_after,
        device=device,
        workers=read_workers(workers),
        storage=storage,
        trial_timeout=timeout,
        on_ray=on_ray,
        refit=None
        if refit is None
        else Refit(count=refit, seeds=SEEDS if seeds is None else seeds, epochs=refit_epochs),
    )
    with StudyConsole(quiet=quiet or as_json) as watch:
        finished = run_study(
            given,
            watch,
            out=out,
            name=name,
            plan=plan,
            loggers=loggers,
        )
    if as_json:
        typer.echo(json.dumps(finished.summary.to_json()))
        return
    package = finished.package
    show(
        front_table(finished.summary),
        *candidates_table(finished.summary),
        *finished.notes,
        f"Best: no. {finished.summary.to_ship()}, {package.path}/student.onnx: "
        f"{package.latency} (measured on the file; {finished.summary.target})",
        f"Report: {finished.path}/report.html",
        f"Retrain: kdsearch distill --config {package.path}/config.yaml",
    )


@app.command()
def enqueue(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    settings: Annotated[
        list[str],
        typer.Option("--set", help="A value to try, as student.family=resnet; repeatable."),
    ],
    out: Out = OUT,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Let a study, while it is not being run, try a guess next; the rest of it is drawn.

    Example: kdsearch enqueue phones --set student.family=resnet --set student.width=0.5
    """
    from kdsearch.study.config import resume_command, study_path
    from kdsearch.study.warm_start import enqueue as put

    path = study_path(out, name)
    guess, trials = put(path, read_names(settings), storage)
    told = ", ".join(f"{key} = {value}" for key, value in guess.items())
    typer.echo(
        f"To be tried: {told}. `{resume_command(path)}` goes on, with --trials {trials} or more"
    )


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a study's report.html, report.md, figures and tables anew; no GPU, no torch.

    Example: kdsearch report phones
    """
    from kdsearch.cli.tables import candidates_table, front_table, show
    from kdsearch.report.artifacts import write_derived
    from kdsearch.report.verdict import verdict
    from kdsearch.study.config import study_path
    from kdsearch.study.formatting import SPACE
    from kdsearch.study.open import load_study

    path = study_path(out, name)
    study = load_study(path, storage)
    summary = write_derived(study)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
        return
    told = verdict(summary, study.records()).replace(SPACE, " ")
    show(
        front_table(summary) if summary.front else told,
        *candidates_table(summary),
        f"Report: {path}/report.html",
    )


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    storage: Storage = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say how a study stands, from another shell while it runs: nothing is written.

    Example: kdsearch status phones
    """
    from kdsearch.cli.tables import show
    from kdsearch.report.status import status as status_of
    from kdsearch.report.status import to_json
    from kdsearch.study.config import study_path

    found = status_of(study_path(out, name), storage)
    if as_json:
        typer.echo(json.dumps(to_json(found)))
        return
    show(*found.lines())


@app.command()
def dashboard(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Serve optuna-dashboard on this machine only, on one study.

    Example: kdsearch dashboard phones
    """
    from wsgiref.simple_server import make_server

    from kdsearch.study.config import study_path
    from kdsearch.study.open import find_storage

    path = study_path(out, name)
    _, kept = find_storage(path, storage)
    import optuna_dashboard

    from kdsearch.report.dashboard import artifact_store, refresh

    app = optuna_dashboard.wsgi(kept.full_url(), artifact_store=artifact_store(path))
    try:
        server = make_server("127.0.0.1", port, app)
    except OSError as error:
        raise StudyError(f"--port {port}: {error.strerror}; give another --port") from error
    with server, suppress(KeyboardInterrupt):
        if not refresh(path, storage):
            typer.echo("The study is running: its front, notes and curves come when it has ended")
        typer.echo(f"Dashboard of {path}: http://127.0.0.1:{port}/ (Ctrl-C ends it)")
        server.serve_forever()
