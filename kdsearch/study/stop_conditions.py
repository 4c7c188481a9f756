"""Stop conditions of a search, checked before each trial."""

from __future__ import annotations

import time

from kdsearch.hpo.convergence import is_flat
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callbacks
from kdsearch.study.formatting import duration
from kdsearch.study.study import OpenStudy, searched


class StopConditions:
    """True once no further trial may begin; sends the reason to the callbacks once.

    time_limit: seconds of this run; search_share: the part of it for the search. flat_after: see
    `convergence.is_flat`; until: see `reached`; 0 or None: never. A callback that raised StopStudy
    ends the search too.
    """

    def __init__(
        self,
        study: OpenStudy,
        callbacks: Callbacks,
        *,
        time_limit: float | None = None,
        flat_after: int | None = None,
        until: float | None = None,
        search_share: float = 1.0,
    ) -> None:
        self._study = study
        self._callbacks = callbacks
        self._flat_after = flat_after
        self._time_limit = time_limit
        self._until = until
        self._search_share = search_share
        self._began = time.perf_counter()
        self._has_reported = False

    def __call__(self) -> bool:
        """Return whether the search is to end."""
        reason = self._reason()
        if reason is not None and not self._has_reported:
            self._has_reported = True
            self._callbacks.on_message(f"No further trial: {reason}")
        return reason is not None

    def ends_training(self) -> bool:
        """Return whether paused trainings are not to be resumed."""
        left = self.seconds_left()
        is_reached = bool(self._until) and reached(self._study, self._until or 0) is not None
        is_over = left is not None and left <= 0
        return self._callbacks.stopped is not None or is_reached or is_over

    def seconds_left(self) -> float | None:
        """Return the seconds left of the time limit, None without one."""
        if self._time_limit is None:
            return None
        return self._time_limit - (time.perf_counter() - self._began)

    def is_cut_short(self) -> bool:
        """Return whether a callback or the time limit ended the search, or would by now."""
        return self._callbacks.stopped is not None or self._is_late()

    def _is_late(self) -> bool:
        limit, share = self._time_limit, self._search_share
        return limit is not None and time.perf_counter() - self._began >= share * limit

    def _reason(self) -> str | None:
        limit, after, share = self._time_limit, self._flat_after, self._search_share
        if self._callbacks.stopped is not None:
            return self._callbacks.stopped
        if limit is not None and self._is_late():
            of = "" if share == 1 else f"{share:.0%} of "
            return f"{of}the time limit of {duration(limit)} is reached"
        if self._until and (by := reached(self._study, self._until)) is not None:
            return (
                f"trial {by.number} reaches --until {self._until:g} with "
                f"{_less_noise(self._study, by)}"
            )
        if after and self._is_flat(after):
            return (
                f"the last {after} complete trials raised the front's hypervolume by under 0.1 % "
                "(--flat-after 0 never stops)"
            )
        return None

    def _is_flat(self, after: int) -> bool:
        study = self._study
        done = [record for record in searched(study.records()) if record.state == "complete"]
        limit = getattr(study.budget, study.budget.axis())
        return is_flat([study.point(record) for record in done], after=after, limit=limit)


def reached(study: OpenStudy, until: float) -> TrialRecord | None:
    """Return the trial that would ship now if it reaches `until` on validation, else None.

    Its metric less one standard error has to reach it: the images are a sample.
    """
    front = study.front()
    return front[-1] if front and _least(study, front[-1]) >= until else None


def how_far(study: OpenStudy, ships: TrialRecord, until: float) -> str:
    """Return how far the trial that ships is from `until`."""
    metric, missing = study.metric, until - _least(study, ships)
    found = f"trial {ships.number} has {_less_noise(study, ships)}"
    if missing <= 0:
        return f"--until {until:g} is reached: {found}."
    short = f"{metric.number(missing)}{metric.points}"
    return f"--until {until:g} is not reached: {found}, which is {short} short."


def _least(study: OpenStudy, record: TrialRecord) -> float:
    """Return a trial's validation metric less one standard error."""
    assert record.val is not None
    images = study.facts.images.val
    return record.val - (study.metric.standard_error(record.val, images) if images else 0.0)


def _less_noise(study: OpenStudy, record: TrialRecord) -> str:
    metric, least = study.metric, _least(study, record)
    assert record.val is not None
    return f"{metric.text(record.val)}, {metric.text(least)} less one standard error"
