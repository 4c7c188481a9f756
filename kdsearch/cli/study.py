"""Commands for a whole study: run, ship, enqueue, report, status, dashboard."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from kdsearch.cli.app import app
from kdsearch.cli.options import (
    CONFIG,
    OUT,
    RUN,
    Author,
    Config,
    Json,
    License,
    Name,
    Out,
    Quiet,
    announce_data,
    read_names,
    takes,
)
from kdsearch.errors import SpecError, StudyError, did_you_mean
from kdsearch.study.options import OUTPUT, SEARCH, RunOptions

PICKS = ("accurate", "knee", "fastest")


@app.command()
@takes(*CONFIG, *RUN)
def run(
    config: Config = None,
    out: Out = OUT,
    name: Name = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    stop_when_flat: Annotated[
        bool,
        typer.Option(
            "--stop-when-flat", help="The same as --flat-after 20.", rich_help_panel=SEARCH
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="The same as --log tensorboard.", rich_help_panel=OUTPUT
        ),
    ] = False,
    license: License = None,
    author: Author = None,
    given: dict[str, Any],
) -> None:
    """Search a student that fits the budget, distil it, export it and write the report.

    Example: kdsearch run --data path/to/images --teacher timm:resnet50.a1_in1k --teacher-epochs 5
    --budget-ms 10 --name phones
    """
    chosen = {name: given.pop(name) for name in RUN if name in given}
    chosen["log"] = (*chosen.get("log", ()), *(["tensorboard"] * tensorboard))
    if stop_when_flat:
        from kdsearch.hpo.convergence import FLAT_AFTER

        chosen.setdefault("flat_after", FLAT_AFTER)
    options = RunOptions(**chosen)
    announce_data(given, quiet=quiet or as_json)
    from kdsearch.cli.live import StudyConsole
    from kdsearch.cli.result import result
    from kdsearch.cli.tables import FrontTable, show
    from kdsearch.deploy.model_card import name_rights
    from kdsearch.workflows.run import run_study

    with StudyConsole(quiet=quiet or as_json) as console:
        finished = run_study(given, console, out=out, name=name, options=options)
    name_rights(finished.package.path, license=license, author=author)
    if as_json:
        typer.echo(json.dumps(finished.summary.to_json()))
        return
    show(FrontTable(finished.summary), *result(finished.summary, finished.path))


@app.command()
@takes("storage")
def ship(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    trial: Annotated[int | None, typer.Option(help="The number of the trial to ship.")] = None,
    pick: Annotated[
        str | None,
        typer.Option(help=f"Ship a trial of the front by its place: {', '.join(PICKS)}."),
    ] = None,
    out: Out = OUT,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    storage: str | None = None,
) -> None:
    """Ship another trial: export it to best/, measure the file, and write the report again.

    The earlier best/ moves to exported/.

    Example: kdsearch ship phones --pick knee
    """
    if (trial is None) == (pick is None):
        raise SpecError(f"ship: give --trial NUMBER or --pick {'|'.join(PICKS)}, one of the two")
    if pick is not None and pick not in PICKS:
        raise SpecError(f"--pick {pick!r}{did_you_mean(pick, PICKS)}: expected {', '.join(PICKS)}")
    announce_data({}, quiet=quiet or as_json)
    from kdsearch.cli.live import StudyConsole
    from kdsearch.cli.result import result
    from kdsearch.cli.tables import show
    from kdsearch.study.config import study_path
    from kdsearch.workflows.ship import ship_trial

    path = study_path(out, name)
    with StudyConsole(quiet=quiet or as_json) as console:
        found = ship_trial(path, console, out=out, trial=trial, pick=pick, storage=storage)
    if as_json:
        typer.echo(json.dumps(found.summary.to_json()))
        return
    show(*result(found.summary, path))


@app.command()
@takes("storage")
def enqueue(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    settings: Annotated[
        list[str],
        typer.Option("--set", help="A value to try, as student.family=resnet; repeatable."),
    ],
    out: Out = OUT,
    *,
    storage: str | None = None,
) -> None:
    """Choose what the next trial tries; values you leave out are sampled. The study must not run.

    Example: kdsearch enqueue phones --set student.family=resnet --set student.width=0.5
    """
    from kdsearch.study.config import resume_command, study_path
    from kdsearch.study.warm_start import enqueue as put

    path = study_path(out, name)
    guess, trials = put(path, read_names(settings), storage)
    values = ", ".join(f"{key} = {value}" for key, value in guess.items())
    typer.echo(
        f"Next trial: {values}. `{resume_command(path)} --trials {trials}` (or more) runs it"
    )


@app.command()
@takes("storage")
def report(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    as_json: Json = False,
    *,
    storage: str | None = None,
) -> None:
    """Write a study's report.html, report.md, figures and tables again; needs no GPU.

    Example: kdsearch report phones
    """
    from kdsearch.cli.tables import FrontTable, candidates_table, show
    from kdsearch.report.artifacts import write_derived
    from kdsearch.report.verdict import no_student_needed, verdict, warnings_in
    from kdsearch.study.config import study_path
    from kdsearch.study.formatting import SPACE
    from kdsearch.study.open import load_study

    path = study_path(out, name)
    study = load_study(path, storage)
    summary = write_derived(study)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
        return
    first = no_student_needed if summary.front else partial(verdict, records=study.records())
    show(
        *(line.replace(SPACE, " ") for line in warnings_in(summary) if summary.front),
        *filter(None, [first(summary).replace(SPACE, " ")]),
        *([FrontTable(summary)] if summary.front else []),
        *candidates_table(summary),
        f"Report: {path}/report.html",
    )


@app.command()
@takes("storage")
def status(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    as_json: Json = False,
    *,
    storage: str | None = None,
) -> None:
    """Show the state of a study, also while it runs. This command writes nothing.

    Example: kdsearch status phones
    """
    from kdsearch.cli.tables import show
    from kdsearch.report.status import status as status_of
    from kdsearch.study.config import study_path

    found = status_of(study_path(out, name), storage)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    show(*found.lines())


@app.command()
@takes("storage")
def dashboard(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Out = OUT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
    *,
    storage: str | None = None,
) -> None:
    """Serve optuna-dashboard for one study, on this machine only.

    Example: kdsearch dashboard phones
    """
    from wsgiref.simple_server import make_server

    from kdsearch.study.config import study_path
    from kdsearch.study.open import find_storage

    path = study_path(out, name)
    _, kept = find_storage(path, storage)
    from kdsearch.report.dashboard import refresh, web_app

    with web_app(path, kept) as app:
        try:
            server = make_server("127.0.0.1", port, app)
        except OSError as error:
            raise StudyError(f"--port {port}: {error.strerror}; give another --port") from error
        with server, suppress(KeyboardInterrupt):
            if missing := refresh(path, storage):
                typer.echo(missing)
            typer.echo(f"Dashboard of {path}: http://127.0.0.1:{port}/ (Ctrl-C ends it)")
            server.serve_forever()
