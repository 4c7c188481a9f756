"""The application that commands register with. Commands import torch when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from kdsearch.version import VERSION


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdsearch {VERSION}")
        raise typer.Exit


app = typer.Typer(
    help="AutoML for knowledge distillation in computer vision, under a budget that holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def kdsearch(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """AutoML for knowledge distillation in computer vision, under a budget that holds."""
