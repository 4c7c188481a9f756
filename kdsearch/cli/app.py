"""The application that commands register with. Commands import torch when they run."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="AutoML for knowledge distillation in computer vision, under a budget that holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
