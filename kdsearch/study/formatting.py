"""Durations and counts as text, for messages, tables and pages."""

from __future__ import annotations

SPACE = "\u00a0"  # keeps a number and its unit on one line


def duration(seconds: float) -> str:
    """Return seconds as '1 h 02 min', '2 min 05 s' or '7.5 s'."""
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def counted(number: int, noun: str) -> str:
    """Return '1 trial' or '2 trials'."""
    return f"{number:,}{SPACE}{noun}{'' if number == 1 else 's'}"
