"""What a study took and what it will yet take: seconds, epochs, trials. No torch.

A study's facts hold one entry a run, so that what was spent before an interruption still counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kdsearch.space import Choice, Constant, Int
from kdsearch.spec import Candidate, TrainSpec, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.facts import CONTROLS, candidate_digest
from kdsearch.study.formatting import SPACE, counted, duration
from kdsearch.study.refit import candidates, trained
from kdsearch.study.study import OpenStudy, searched

ENDED, INTERRUPTED, FAILED, KILLED = "ended", "interrupted", "failed", "killed"
_ENOUGH = 2  # trained trials, before anything is foretold


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What all runs of a study took.

    wall: seconds of the runs, the teacher's training included. trials: seconds by device, summed
    over trials that may have run side by side. epochs_saved: planned ones of stopped trials.
    rejected: candidates over the budget. reused: those equal to an earlier one.
    """

    runs: int
    wall: float
    teacher: float
    trials: Mapping[str, float]
    epochs: int
    epochs_saved: int
    rejected: int
    reused: int

    def __str__(self) -> str:
        hours = ", ".join(
            f"{duration(seconds)} of trials on {device}" for device, seconds in self.trials.items()
        )
        parts = [
            f"{duration(self.wall)} of wall time in {counted(self.runs, 'run')}",
            hours,
            f"{duration(self.teacher)} for the teacher",
            f"{counted(self.epochs, 'epoch')} trained",
            f"{self.epochs_saved:,} saved by stopping" if self.epochs_saved else "",
            f"{counted(self.rejected, 'candidate')} rejected before training",
            f"{self.reused:,} equal to an earlier one" if self.reused else "",
        ]
        return f"Spent: {', '.join(filter(None, parts))}".replace(SPACE, " ")


def spent(study: OpenStudy) -> Spend:
    """Return what the study took until now, without a run that has not ended."""
    runs, records, facts = study.facts.runs, study.records(), study.facts
    trained = [record for record in records if record.reused_from is None]
    stopped = [record for record in trained if record.state == "pruned"]
    devices = list(dict.fromkeys(run.device for run in runs)) or ["cpu"]
    return Spend(
        runs=len(runs),
        wall=sum(run.seconds for run in runs),
        teacher=facts.teacher_seconds,
        trials={" and ".join(devices): sum(record.seconds for record in records)},
        epochs=sum(len(record.curve) for record in trained),
        epochs_saved=sum(planned_epochs(record.params) - len(record.curve) for record in stopped),
        rejected=sum(record.state == "rejected" for record in trained),
        reused=sum(record.reused_from is not None for record in records),
    )


def planned_epochs(params: Mapping[str, Any]) -> int:
    """Return how many epochs a trial is to take."""
    return Candidate.from_params(params).train.epochs


def forecast(records: Sequence[TrialRecord], n_left: int, *, beside: int) -> float | None:
    """Return the seconds that `n_left` more trials of the search will take.

    beside: how many run at a time. None before two have been trained. Rejected and reused trials
    count with the seconds that they took.
    """
    ended = searched(records)
    if sum(bool(record.curve) and record.reused_from is None for record in ended) < _ENOUGH:
        return None
    each = sum(record.seconds for record in ended) / len(ended)
    return each * max(0, n_left) / max(1, beside)


def refits_to_come(study: OpenStudy, n_trials: int) -> Iterator[str]:
    """Say, before a search, how many trainings the refits after it mean at most; if any are."""
    refit = study.facts.refit
    if refit.count:
        most, ways = min(refit.count, n_trials), 1 + len(CONTROLS)
        count = most * refit.seeds * ways
        epochs = refit.epochs or _most_epochs(study.config)
        yield _plain(
            f"The search is followed by up to {counted(count, 'refit')}, "
            f"{counted(count * epochs, 'epoch')}: {counted(most, 'candidate')} x "
            f"{counted(refit.seeds, 'seed')} x {ways}, each beside its controls "
            f"({', '.join(CONTROLS)})"
        )


def refits_left(study: OpenStudy) -> Iterator[str]:
    """Say, after a search, how many trainings its refits are; an equal one is trained once."""
    refit = study.facts.refit
    chosen = candidates(study, refit)
    asked = [refit.params(r, 1, m) for r in chosen for m in (None, *refit.controls(r))]
    epochs = {candidate_digest(params): planned_epochs(params) for params in asked}
    if epochs:
        there = sum(record.reused_from is None for record in trained(study))
        told = f"; {there:,} of them are there already" if there else ""
        yield _plain(
            f"Refits begin: {counted(len(epochs) * refit.seeds, 'training')}, "
            f"{counted(sum(epochs.values()) * refit.seeds, 'epoch')}, of no. "
            f"{', '.join(str(record.number) for record in chosen)} and their controls{told}"
        )


def _most_epochs(config: StudyConfig) -> int:
    """Return the most epochs that a training of the search may have."""
    dim = config.search_space().dims.get("train.epochs")
    if isinstance(dim, Int):
        return dim.high
    if isinstance(dim, Choice):
        return max(cast("tuple[int, ...]", dim.options))
    return cast("int", dim.value) if isinstance(dim, Constant) else TrainSpec().epochs


def _plain(text: str) -> str:
    return text.replace(SPACE, " ")
