"""The command that writes a finished student in other formats."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdsearch.cli.app import app
from kdsearch.cli.options import OUT, Author, Json, License, Out, Quiet, announce_data, takes
from kdsearch.errors import SpecError, did_you_mean, printable
from kdsearch.study.config import TARGET_FIELDS

if TYPE_CHECKING:
    from rich.table import Table

    from kdsearch.workflows.export import Exported

FORMATS = (
    "onnx",
    "onnx-fp16",
    "onnx-int8",
    "torch-export",
    "openvino",
    "executorch",
    "mnn",
    "ncnn",
    "litert",
)


@app.command()
@takes(*TARGET_FIELDS, "storage")
def export(
    name: Annotated[str, typer.Argument(help="Name of the study, or of a distillation.")],
    format: Annotated[
        str,
        typer.Option(help=f"{', '.join(FORMATS)}."),
    ] = "onnx-int8,torch-export",
    trial: Annotated[int | None, typer.Option(help="A trial's number; else the best.")] = None,
    max_drop: Annotated[
        float, typer.Option(help="Loss of the metric that a file may have, as a fraction.")
    ] = 0.01,
    fold_preprocess: Annotated[
        bool,
        typer.Option(
            "--fold-preprocess",
            help="ONNX files that take resized pixels, uint8 [B, H, W, C]; named -uint8.",
        ),
    ] = False,
    argmax: Annotated[
        bool,
        typer.Option(
            "--argmax", help="Files that answer with the class of each pixel; named -argmax."
        ),
    ] = False,
    nms: Annotated[
        bool,
        typer.Option(
            "--nms", help="ONNX files of a detector that keep one box an object; named -nms."
        ),
    ] = False,
    license: License = None,
    author: Author = None,
    out: Out = OUT,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    storage: str | None = None,
    given: dict[str, Any],
) -> None:
    """Export the student in other formats; load each file with its runtime and measure it.

    Latency is measured on the study's target, or on --target, if it accepts such files; else on
    the CPU by the file's runtime.

    Example: kdsearch export phones --format onnx-int8,openvino
    """
    formats = list(dict.fromkeys(part.strip() for part in format.split(",")))
    if not all(formats):
        raise SpecError(f"--format {format!r}: a name is missing next to a comma")
    for name_of_one in formats:  # before torch is imported
        if name_of_one not in FORMATS and not set(".:") & set(name_of_one):
            raise SpecError(
                f"unknown format {name_of_one!r}{did_you_mean(name_of_one, FORMATS)}; known: "
                f"{', '.join(FORMATS)}"
            )
    if not 0 <= max_drop <= 1:
        raise SpecError(f"--max-drop {max_drop:g}: expected a fraction from 0 to 1")
    announce_data({}, quiet=quiet or as_json)
    from kdsearch.cli.live import StudyConsole
    from kdsearch.deploy.model_card import name_rights
    from kdsearch.study.config import study_path
    from kdsearch.workflows.export import export_study

    with StudyConsole(quiet=quiet or as_json) as callback:
        found = export_study(
            study_path(out, name),
            formats,
            callback,
            out=out,
            trial=trial,
            storage=storage,
            max_drop=max_drop,
            is_folded=fold_preprocess,
            is_decoded=argmax,
            is_suppressed=nms,
            given=given,
        )
    name_rights(found.path, license=license, author=author)
    if as_json:
        typer.echo(json.dumps([asdict(file) for file in found.files]))
    else:
        _print(found)
    for line in found.left_out:
        typer.echo(f"kdsearch: {printable(line)}", err=True)
    if found.left_out:
        raise typer.Exit(1)


def _print(found: Exported) -> None:
    from kdsearch.cli.tables import show

    misses = [f"{file.name}: {reason}" for file in found.files for reason in file.misses]
    timed = (f"{file.name} was timed on {file.target}" for file in found.files)
    show(_table(found), *timed, *misses, f"Files: {found.path}")


def _table(found: Exported) -> Table:
    """Return a table with one row per file."""
    from kdsearch.cli.tables import TextTable

    metric = found.metric
    table = TextTable(
        title="Files, each measured as itself",
        caption=f"val: validation {metric.label}; drop: its loss{metric.points and ', points'}; "
        "same: equal answers; ms: where 95 % of processes find it; * fastest of these that fits",
    )
    table.add_column("file", no_wrap=True)
    for heading in ("MB", f"val{metric.unit and ', %'}", "drop", "same, %", "ms", "fits"):
        table.add_column(heading, justify="right", no_wrap=heading in ("MB", "ms"))
    for file in found.files:
        is_best = file == found.best
        table.add_row(
            f"{file.name}{' *' if is_best else ''}",
            f"{file.bytes / 1e6:.3g}",
            metric.number(file.val),
            metric.number(file.drop),
            f"{100 * file.agreement.same:.2f}",
            f"{file.latency.low_ms:.3g}-{file.latency.high_ms:.3g}",
            "no" if file.misses else "yes",
            style="bold" if is_best else None,
        )
    return table
