"""When the trials of a study ran, for the timeline of its report. No torch."""

from __future__ import annotations

from kdsearch.study.study import OpenStudy
from kdsearch.study.timeline import Span, arranged
from kdsearch.study.trial_notes import record_of


def spans(study: OpenStudy) -> tuple[Span, ...]:
    """Return the spans of the trials that have ended, by their begin; a resumed trial has several.

    Candidates that were rejected when they were sampled have none.
    """
    early = {record.number for record in study.records() if record.rejected_early}
    found = []
    for trial in study.store.trials():
        begin, end = trial.datetime_start, trial.datetime_complete
        number = record_of(trial).number
        if begin is not None and end is not None and number not in early:
            found.append(Span(trial=number, begin=begin.timestamp(), end=end.timestamp()))
    return arranged(found)
