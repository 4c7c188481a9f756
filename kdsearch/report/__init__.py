"""The report of a study, from records and their summary: an HTML page, Markdown, SVG figures.

It draws and words what it is given and measures nothing. No torch and no optuna here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdsearch.atomic import replacing
from kdsearch.errors import StudyError
from kdsearch.report.drawings import drawings
from kdsearch.report.markdown import markdown
from kdsearch.report.page import page
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Summary

__all__ = ["drawings", "markdown", "render", "write"]


def render(
    summary: Summary,
    records: Sequence[TrialRecord],
    *,
    importances: Mapping[str, float],
    notes: Sequence[str],
    command: str,
) -> str:
    """Return the report as one self-contained HTML page.

    importances: what each knob explains, empty where too few trials completed. notes: sentences
    shown beside what distillation gained. command: what to type for the same study.
    """
    return page(summary, records, importances=importances, notes=notes, command=command)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises StudyError when the disk refuses."""
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode(errors="replace"))
    except OSError as error:
        raise StudyError(
            f"{path}: the report cannot be written: {error.strerror}; "
            "check that the folder exists, is yours and has 6 MB left"
        ) from None
