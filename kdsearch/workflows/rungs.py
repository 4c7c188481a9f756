"""Resume the best trainings up the rungs of successive halving, until the winners are in full.

Before the last rung the leader is compared with its controls after as many epochs. A control that
leads by more than the noise takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf, sqrt
from pathlib import Path

from kdsearch.hpo import pareto
from kdsearch.hpo.halving import Halving
from kdsearch.space import Params
from kdsearch.spec import TrialRecord
from kdsearch.study.facts import CONTROLS, candidate_digest
from kdsearch.study.first_trials import PLAIN, method_at_defaults
from kdsearch.study.stop_conditions import StopConditions
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal

Run = Callable[[Iterator[Proposal]], None]  # runs trials, each to its end


def climb(
    study: OpenStudy,
    halving: Halving,
    run: Run,
    stop: StopConditions,
    *,
    note: Callable[[str], None],
) -> None:
    """Resume trials of a search that ended, rung by rung; what is trained already is kept.

    A time limit ends the trainings early, and a later run resumes them.
    """
    *rungs, last = halving.rungs
    for before, rung in zip(rungs, halving.rungs[1:], strict=True):
        if stop.ends_training():
            return
        chosen = best_at(study, before.epochs, rung.count)
        if rung is last and chosen:
            run(_controls(study, chosen[0], before.epochs, note))
            leader = _leader(study, chosen[0], before.epochs, note)
            chosen = [leader, *(each for each in chosen[1:] if each.number != leader.number)]
        run(_resumed(study, chosen, rung.epochs, stop))


def best_at(study: OpenStudy, epochs: int, count: int) -> list[TrialRecord]:
    """Return the trials of the search that were best after so many epochs, best first.

    With `--explore front` they are taken front by front, each from its most accurate trial.
    """
    reached = [
        record
        for record in study.records()
        if record.state == "complete"
        and not record.kind
        and record.reused_from is None
        and len(record.curve) >= epochs
    ]
    if study.config.explore == "front":
        fronts = _fronts(study, reached, epochs)
        reached = [record for front in fronts for record in reversed(front)]
    else:
        reached.sort(key=lambda record: -record.curve[epochs - 1])
    return reached[:count]


def _fronts(
    study: OpenStudy, records: Sequence[TrialRecord], epochs: int
) -> Iterator[list[TrialRecord]]:
    """Yield the front of the trials after so many epochs, the front of the others, and so on."""
    left = list(records)
    while left:
        points = [(record.curve[epochs - 1], study.point(record)[1]) for record in left]
        front = pareto.front(points)
        if not front:  # values that are not finite
            return
        yield [left[i] for i in front]
        left = [record for i, record in enumerate(left) if i not in front]


def _controls(
    study: OpenStudy, finalist: TrialRecord, epochs: int, note: Callable[[str], None]
) -> Iterator[Proposal]:
    """Yield the controls of a finalist that are missing, trained for as many epochs.

    A trial of the search that equals a control is resumed instead, and stands for it.
    """
    space = study.config.search_space()
    ended = [record for record in study.records() if record.state != "interrupted"]
    there = {(record.control_of, record.digest) for record in ended}
    for method in study.config.controls(CONTROLS):
        params = with_method(finalist.params, method_at_defaults(space, method))
        digest = candidate_digest(params)
        if digest == finalist.digest or (finalist.number, digest) in there:
            continue
        note(f"Control for trial {finalist.number}: the same student with method {method}")
        yield from (
            study.ask_resumed(record, epochs)
            for record in ended
            if record.digest == digest and _is_paused_before(record, epochs)
        )
        yield study.ask_control(params, finalist.number, pause_at=epochs)


def _is_paused_before(record: TrialRecord, epochs: int) -> bool:
    is_own = record.reused_from is None and record.state == "complete"
    return is_own and not record.kind and len(record.curve) < epochs


def with_method(params: Params, method: Params) -> Params:
    """Return the parameters with those of another method."""
    return {k: v for k, v in params.items() if not k.startswith("method.")} | {**method}


def _leader(
    study: OpenStudy, finalist: TrialRecord, epochs: int, note: Callable[[str], None]
) -> TrialRecord:
    """Return a finalist, or a control that leads by more than the noise after as many epochs."""
    records = {record.number: record for record in study.records()}
    controls = [
        records[record.number if record.reused_from is None else record.reused_from]
        for record in records.values()
        if record.control_of == finalist.number and record.state == "complete"
    ]
    value, images = finalist.curve[epochs - 1], study.facts.images.val
    assert images is not None
    noise = sqrt(2 * study.metric.variance(value, images))
    ahead = [record for record in controls if record.curve[epochs - 1] > value + noise]
    if not ahead:
        return finalist
    best = max(ahead, key=lambda record: record.curve[epochs - 1])
    note(
        f"Trial {best.number}, a control of trial {finalist.number}, leads it after "
        f"{epochs} epochs and takes its place"
    )
    return best


def _resumed(
    study: OpenStudy,
    records: Sequence[TrialRecord],
    epochs: int,
    stop: StopConditions,
) -> Iterator[Proposal]:
    waiting = [record for record in records if len(record.curve) < epochs]
    for i, record in enumerate(waiting):
        done, seconds = len(record.curve), stop.seconds_left()
        more = inf if seconds is None else seconds / (len(waiting) - i) * done / record.seconds
        if more < 1:
            return
        until = min(epochs, done + more)
        yield study.ask_resumed(record, None if until == record.epochs else int(until))


def forget(
    study: OpenStudy, folder: Path, halving: Halving, records: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """Remove the checkpoints of first looks that will not be resumed; return the other trials.

    Plain KD may be resumed as the control of a finalist.
    """
    if not halving.is_staged:
        return []
    kept = {record.digest for record in best_at(study, halving.look, halving.rungs[1].count)}
    plain = method_at_defaults(study.config.search_space(), PLAIN)
    left = []
    for record in records:
        if record.kind or plain.items() <= record.params.items() or record.digest in kept:
            left.append(record)
        elif record.state == "complete":
            (folder / f"{record.digest}.pt").unlink(missing_ok=True)
    return left
