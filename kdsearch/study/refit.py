"""Refits: the best candidates and their controls, retrained under several seeds. No torch.

A refit is a trial outside the search with the candidate's parameters and a `train.repeat` of its
own. A killed study resumes with the missing ones, and more seeds or candidates add only theirs. The
search's own training of a candidate does not count: it was chosen because it came out well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from kdsearch.hpo import pareto
from kdsearch.hpo.statistics import Gain, Spread, Variance, gains, mean_gain, spreads
from kdsearch.space import Int, Params, options_in
from kdsearch.spec import TrainSpec, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.facts import CONTROLS, Refit, candidate_digest
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.run_state import planned_epochs
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import CandidateEntry, ControlEntry, GainEntry, Trainings
from kdsearch.study.trial_notes import Proposal

BEST, KNEE = "best", "knee"  # roles of trials on the front, by the search
_Score: TypeAlias = Callable[[TrialRecord], float]


def candidates(study: OpenStudy, refit: Refit) -> list[TrialRecord]:
    """Return the trials to retrain: the best of the front, its knee, then the next best."""
    front = study.front()
    if not front:
        return []
    ranked = [front[-1], front[_knee(study, front)], *reversed(front)]
    return list({record.number: record for record in ranked}.values())[: refit.count]


def roles(study: OpenStudy) -> dict[int, tuple[str, ...]]:
    """Return the roles of trials of the front."""
    front = study.front()
    if not front:
        return {}
    best, knee = front[-1].number, front[_knee(study, front)].number
    return {best: (BEST, KNEE)} if best == knee else {best: (BEST,), knee: (KNEE,)}


def _knee(study: OpenStudy, front: Sequence[TrialRecord]) -> int:
    found = pareto.knee([study.point(record) for record in front])
    assert found is not None
    return found


def missing(study: OpenStudy, refit: Refit) -> Iterator[Proposal]:
    """Yield each missing training, one seed after another."""
    for record in candidates(study, refit):
        for repeat in range(1, refit.seeds + 1):
            for method in (None, *refit.controls(record)):
                params = refit.params(record, repeat, method)
                if _trained(study, params) is None:
                    yield study.ask_refit(params, record.number, is_control=method is not None)


def trained(study: OpenStudy) -> list[TrialRecord]:
    """Return the trainings of the present plan, each once."""
    refit = study.facts.refit
    found = {}
    for record in candidates(study, refit):
        for method in (None, *refit.controls(record)):
            for each in _repeats(study, refit, record, method):
                found[each.number] = each
    return list(found.values())


def _trained(study: OpenStudy, params: Params) -> TrialRecord | None:
    """Return the refit with these parameters that completed."""
    done = (r for r in study.records() if r.refit_of is not None and r.state == "complete")
    return next((record for record in done if record.params == params), None)


def _repeats(
    study: OpenStudy, refit: Refit, record: TrialRecord, method: str | None = None
) -> list[TrialRecord]:
    proposal = (refit.params(record, repeat, method) for repeat in range(1, refit.seeds + 1))
    return [found for params in proposal if (found := _trained(study, params)) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refitted:
    """A candidate's trainings, and its controls' by method; fewer than two seeds say nothing."""

    record: TrialRecord
    own: list[TrialRecord]
    controls: dict[str, list[TrialRecord]]

    def groups(self) -> list[list[TrialRecord]]:
        return [self.own, *self.controls.values()]

    def pair(self, method: str) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Return the trainings of the candidate and of a control that share their seeds."""
        control = {_seed(record): record for record in self.controls[method]}
        own = [record for record in self.own if _seed(record) in control]
        return own, [control[_seed(record)] for record in own]


def _refitted(study: OpenStudy) -> list[_Refitted]:
    refit = study.facts.refit
    found = []
    for record in candidates(study, refit):
        own = _repeats(study, refit, record)
        seeds = {_seed(each) for each in own}
        groups = {m: _repeats(study, refit, record, m) for m in refit.controls(record)}
        paired = {
            m: group for m, group in groups.items() if len(seeds & set(map(_seed, group))) >= 2
        }
        if len(own) >= 2:
            found.append(_Refitted(record=record, own=own, controls=paired))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What the trainings scored on one split, by their numbers; gains by candidate and method."""

    spreads: dict[tuple[int, ...], Spread]
    gains: dict[tuple[int, str], Gain]
    together: dict[str, Gain]


def _scored(found: Sequence[_Refitted], images: int, score: _Score, variance: Variance) -> _Scored:
    groups = {_numbers(group): group for each in found for group in each.groups()}
    pairs = {
        (each.record.number, method): (list(map(score, own)), list(map(score, control)))
        for each in found
        for method in each.controls
        for own, control in [each.pair(method)]
    }
    methods = dict.fromkeys(method for _, method in pairs)
    of_method = {m: [pair for (_, name), pair in pairs.items() if name == m] for m in methods}
    others = {m: [pair for (_, name), pair in pairs.items() if name != m] for m in methods}
    scores = [list(map(score, group)) for group in groups.values()]
    return _Scored(
        spreads=dict(zip(groups, spreads(scores, images, variance), strict=True)),
        gains=dict(zip(pairs, gains(list(pairs.values()), images, variance), strict=True)),
        together={
            m: mean_gain(of, images, variance, others=others[m]) for m, of in of_method.items()
        },
    )


def summarised(study: OpenStudy) -> tuple[tuple[CandidateEntry, ...], tuple[GainEntry, ...]]:
    """Return the retrained trials, the best mean first, and their common gains."""
    found, facts = _refitted(study), study.facts
    images, read = facts.images, facts.test
    if not found or images.val is None or images.test is None:
        return (), ()
    variance = study.metric.variance
    val = _scored(found, images.val, lambda record: record.val or 0.0, variance)
    test = None
    if all(r.number in read for each in found for group in each.groups() for r in group):
        test = _scored(found, images.test, lambda record: read[record.number], variance)
    called, shipped = roles(study), facts.shipped

    def trainings(group: Sequence[TrialRecord]) -> Trainings:
        numbers = _numbers(group)
        return Trainings(
            method=str(group[0].params.get("method.name", "kd")),
            trials=tuple(record.number for record in group),
            seeds=tuple(_seed(record) for record in group),
            val=val.spreads[numbers],
            test=None if test is None else test.spreads[numbers],
        )

    def control(number: int, method: str, group: Sequence[TrialRecord]) -> ControlEntry:
        return ControlEntry(
            trained=trainings(group),
            gain=val.gains[number, method],
            test_gain=None if test is None else test.gains[number, method],
        )

    entries = [
        CandidateEntry(
            trial=(number := each.record.number),
            roles=called.get(number, ()),
            shipped=next((n for g in each.groups() for n in _numbers(g) if n == shipped), None),
            trained=trainings(each.own),
            controls=tuple(control(number, m, group) for m, group in each.controls.items()),
        )
        for each in found
    ]
    together = tuple(
        GainEntry(
            over=method,
            candidates=sum(method in each.controls for each in found),
            gain=gain,
            test_gain=None if test is None else test.together[method],
        )
        for method, gain in val.together.items()
    )
    return tuple(sorted(entries, key=lambda each: -each.trained.val.mean)), together


def middle(trainings: Trainings) -> int:
    """Return the trial of the training whose validation metric is the median, of two the lower.

    That one is exported: mean and spread describe it. They would underrate the best of several,
    whose own value on validation is too high.
    """
    ranked = sorted(zip(trainings.val.values, trainings.trials, strict=True))
    return ranked[(len(ranked) - 1) // 2][1]


def _seed(record: TrialRecord) -> int:
    return cast("int", record.params["train.repeat"])


def _numbers(group: Sequence[TrialRecord]) -> tuple[int, ...]:
    """Return the trials that were trained; one that was reused is none of its own."""
    return tuple(r.number if r.reused_from is None else r.reused_from for r in group)


def refits_to_come(study: OpenStudy, n_trials: int) -> Iterator[str]:
    """Yield the most trainings that refits will need, before a search; nothing without refits."""
    refit = study.facts.refit
    if refit.count:
        most, ways = min(refit.count, n_trials), 1 + len(CONTROLS)
        count = most * refit.seeds * ways
        epochs = refit.epochs or _most_epochs(study.config)
        yield _plain(
            f"The search is followed by up to {counted(count, 'refit')}, "
            f"{counted(count * epochs, 'epoch')}: {counted(most, 'candidate')} x "
            f"{counted(refit.seeds, 'seed')} x {ways}, each with its controls "
            f"({', '.join(CONTROLS)})"
        )


def refits_left(study: OpenStudy) -> Iterator[str]:
    """Yield the number of trainings of the refits, after a search; equal ones are trained once."""
    refit = study.facts.refit
    chosen = candidates(study, refit)
    planned = [refit.params(r, 1, m) for r in chosen for m in (None, *refit.controls(r))]
    epochs = {candidate_digest(params): planned_epochs(params) for params in planned}
    if epochs:
        there = sum(record.reused_from is None for record in trained(study))
        present = f"; {there:,} of them are there already" if there else ""
        yield _plain(
            f"Refits begin: {counted(len(epochs) * refit.seeds, 'training')}, "
            f"{counted(sum(epochs.values()) * refit.seeds, 'epoch')}, of trials "
            f"{', '.join(str(record.number) for record in chosen)} and their controls{present}"
        )


def _most_epochs(config: StudyConfig) -> int:
    """Return the most epochs that a training of the search may have."""
    dim = config.search_space().dims.get("train.epochs")
    if isinstance(dim, Int):
        return dim.high
    return max(cast("tuple[int, ...]", options_in(dim)), default=TrainSpec().epochs)


def _plain(text: str) -> str:
    return text.replace(SPACE, " ")
