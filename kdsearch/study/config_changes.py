"""A resumed study has the configuration that it was started with; what differs is an error."""

from __future__ import annotations

from kdsearch.digests import digest_of
from kdsearch.errors import StudyError
from kdsearch.study.config import OBJECTIVE, StudyConfig


def refuse_changes(name: str, old: StudyConfig, new: StudyConfig) -> None:
    """Raise StudyError, showing the differences, unless both configurations are the same."""
    if changed := old.changes(new):
        lines = "\n".join(
            f"  {new.flag(key)}: {_short(old.value(key))} -> {_short(new.value(key))}"
            for key in changed
        )
        advice = "Leave these flags out to resume it, or give another --name."
        if new.data == OBJECTIVE:
            advice = "Give the same arguments to resume it, or another path."
        raise StudyError(
            f"the study {name!r} was started with another configuration:\n{lines}\n{advice}"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({digest_of(value)})"
