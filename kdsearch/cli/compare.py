"""The command that compares two studies."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kdsearch.cli.app import app
from kdsearch.cli.options import OUT, Json, Out, takes


@app.command()
@takes("storage")
def compare(
    one: Annotated[str, typer.Argument(help="Name of a study.")],
    other: Annotated[str, typer.Argument(help="Name of another one.")],
    axis: Annotated[
        str | None,
        typer.Option(help="latency_ms, flops or params; by default that of both fronts."),
    ] = None,
    out: Out = OUT,
    as_json: Json = False,
    *,
    storage: str | None = None,
) -> None:
    """Compare two studies: fronts, hypervolumes from one reference, what they cost.

    Example: kdsearch compare phones phones-safe
    """
    from kdsearch.cli.tables import comparison_table, show
    from kdsearch.report.comparison import compare as compare_studies
    from kdsearch.study.config import study_path
    from kdsearch.study.open import load_each

    studies = load_each([study_path(out, name) for name in (one, other)], storage)
    found = compare_studies(*studies, axis=axis)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    show(*comparison_table(found))
