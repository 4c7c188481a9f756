"""Measure, after the search, the latencies that the report shows.

In a study with a budget of latency many students were decided by one round; the shown ones are
measured in full. In any other study latency is not limited: the shown students and the teacher
get one round each. What ships has the latency of its file everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from kdsearch.deploy.latency import Latency
from kdsearch.deploy.pricing import build_student, latency_of
from kdsearch.errors import CostError
from kdsearch.spec import Candidate, Cost, StudentSpec, TrialRecord
from kdsearch.study.study import OpenStudy
from kdsearch.trials.context import with_latency
from kdsearch.trials.trial import TrialContext


def measure_latencies(
    study: OpenStudy,
    context: TrialContext,
    records: Sequence[TrialRecord],
    *,
    shipped: tuple[TrialRecord, Latency],
    note: Callable[[str], None],
) -> None:
    """Store the latencies of trials and the teacher. shipped: a trial and its file's latency.

    An architecture is measured once. A note comes before the first, and for one without a latency.
    """
    limit = math.inf if study.budget.latency_ms is None else None
    trial, latency = shipped
    found: dict[str, Latency | None] = {_architecture(trial): latency}
    costs = dict(study.facts.costs)
    if left := {_architecture(record) for record in records} - found.keys():
        note(f"Measuring the latency of {len(left)} student{'s' * (len(left) > 1)}")
    for record in records:
        name = _architecture(record)
        if name not in found:
            found[name] = _measured(record, context, limit, note)
        if (measured := found[name]) is not None:
            costs[record.number] = replace(record.cost or Cost(), **measured.as_cost())
    teacher = study.facts.teacher_entry()
    if teacher.latency_ms is None:
        teacher = with_latency(teacher, context, note, limit=limit)
    study.update_facts(costs=costs, teacher=teacher)


def with_latency_of_file(study: OpenStudy, trial: TrialRecord, latency: Latency) -> dict[int, Cost]:
    """Return the costs of the study's trials; one architecture with a trial has its file's."""
    name, costs = _architecture(trial), dict(study.facts.costs)
    for record in study.records():
        if record.cost is not None and _architecture(record) == name:
            costs[record.number] = replace(record.cost, **latency.as_cost())
    return costs


def _architecture(record: TrialRecord) -> str:
    return repr(_student(record))


def _student(record: TrialRecord) -> StudentSpec:
    return Candidate.from_params(record.params).student


def _measured(
    record: TrialRecord, context: TrialContext, limit: float | None, note: Callable[[str], None]
) -> Latency | None:
    try:
        student = build_student(_student(record), context.data)
        return latency_of(student, context.latencies, limit=limit)
    except CostError as error:
        note(f"The latency of trial {record.number} is not known: {error}")
        return None
