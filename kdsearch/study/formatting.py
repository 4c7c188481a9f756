"""Durations and counts as text, for messages, tables and pages."""

from __future__ import annotations

import math

SPACE = "\u00a0"  # keeps a number and its unit on one line


def duration(seconds: float) -> str:
    """Return seconds as '1 h 02 min', '2 min 05 s' or '7.5 s'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def counted(number: int, noun: str) -> str:
    """Return '1 trial' or '2 trials'."""
    return f"{number:,}{SPACE}{noun}{'' if number == 1 else 's'}"


def milliseconds(middle: float, low: float, high: float) -> str:
    """Return a latency with its interval, in equal decimals: '1.83 ms (1.79 to 1.88)'."""
    decimals = max(0, 2 - math.floor(math.log10(middle)))
    text, *ends = (f"{value:,.{decimals}f}" for value in (middle, low, high))
    return f"{text}{SPACE}ms ({' to '.join(ends)})"


def megabytes(size: int) -> str:
    """Return the size of a file, 315217 bytes as '0.315 MB'."""
    return f"{float(f'{size / 1e6:.3g}'):g}{SPACE}MB"
