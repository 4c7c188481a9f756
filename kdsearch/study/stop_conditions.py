"""Stop conditions of a search, checked before each trial."""

from __future__ import annotations

import time

from kdsearch.hpo.convergence import is_flat
from kdsearch.study.callbacks import Callbacks
from kdsearch.study.formatting import duration
from kdsearch.study.study import OpenStudy, searched


class StopConditions:
    """True once no further trial may begin; sends the reason to the callbacks once.

    time_limit: seconds of this run's search. flat_after: see `convergence.is_flat`; 0 or None:
    never. A callback that raised StopStudy ends the search too.
    """

    def __init__(
        self,
        study: OpenStudy,
        callbacks: Callbacks,
        *,
        time_limit: float | None = None,
        flat_after: int | None = None,
    ) -> None:
        self._study = study
        self._callbacks = callbacks
        self._flat_after = flat_after
        self._time_limit = time_limit
        self._began = time.perf_counter()
        self._has_reported = False

    def __call__(self) -> bool:
        """Return whether the search is to end."""
        reason = self._reason()
        if reason is not None and not self._has_reported:
            self._has_reported = True
            self._callbacks.on_message(f"No further trial: {reason}")
        return reason is not None

    def _reason(self) -> str | None:
        limit, after = self._time_limit, self._flat_after
        if self._callbacks.stopped is not None:
            return self._callbacks.stopped
        if limit is not None and time.perf_counter() - self._began >= limit:
            return f"the time limit of {duration(limit)} is reached"
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
