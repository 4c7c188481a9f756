"""Trials on a clock, each in a lane of those that ran at once. No torch, no Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

PAUSE = 60.0  # seconds without a trial, from which on the clock stands still


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A trial between two times, in seconds since the first; lane: one of those that ran at once.

    after_pause: none ran for PAUSE seconds before it; such times are cut out.
    """

    trial: int
    begin: float
    end: float
    lane: int = 0
    after_pause: bool = False


def arranged(found: Sequence[Span]) -> tuple[Span, ...]:
    """Return spans from second 0, without pauses, each in the first lane that is free."""
    lanes: list[float] = []
    ended, cut, placed = None, 0.0, []
    for span in sorted(found, key=lambda each: (each.begin, each.trial)):
        gap = 0.0 if ended is None else span.begin - ended
        lanes = [] if gap >= PAUSE else lanes
        cut += span.begin if ended is None else max(0.0, gap) * (gap >= PAUSE)
        ended = max(span.end, span.end if ended is None else ended)
        begin, end = span.begin - cut, max(span.begin, span.end) - cut
        lane = next((i for i, free in enumerate(lanes) if free <= begin), len(lanes))
        lanes[lane : lane + 1] = [end]
        placed.append(replace(span, begin=begin, end=end, lane=lane, after_pause=gap >= PAUSE))
    return tuple(placed)
