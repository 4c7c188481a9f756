"""The status of a study, read from another shell while it runs. Nothing is written. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdsearch.hpo.convergence import hypervolumes
from kdsearch.report import words
from kdsearch.report.artifacts import count_states, summarise
from kdsearch.report.verdict import warnings_in
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.config import read_config, resume_command
from kdsearch.study.formatting import SPACE, duration
from kdsearch.study.lease import Holder
from kdsearch.study.open import load_study
from kdsearch.study.preparation import Stage, read_stage
from kdsearch.study.run_log import KILLED, Progress, read_progress
from kdsearch.study.run_state import RunningTrial, name_trial
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import Counts

RUNNING, ELSEWHERE, NEW = "running", "running on another machine, or killed there", "new"
_POINTS = 8  # of the hypervolume's trend


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best trial so far."""

    trial: int
    what: str
    val: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of a study at this moment.

    state: `running`, or the end of its last run: `ended`, `interrupted`, `failed`, `killed`; `new`
    before the first. stage: of a run before its search. warnings: of what is at chance.
    trials: the planned number, None before the search. best: of those that reach min_accuracy,
    nearest: of the others. hypervolumes: after an eighth, two eighths, ... of the complete trials,
    as shares of the last. seconds_left: None without an estimate or a run.
    """

    study: str
    state: str
    trials: int | None
    counts: Counts
    running: tuple[RunningTrial, ...]
    best: Best | None
    min_accuracy: float | None
    nearest: Best | None
    hypervolumes: tuple[float, ...]
    seconds_spent: float
    seconds_left: float | None
    resume: str
    stage: str = ""
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the status in words."""
        ended = self.counts.complete + self.counts.pruned + self.counts.rejected
        ended += self.counts.failed
        of = "" if self.trials is None else f" of {self.trials}"
        lines = [
            *self.warnings,
            f"{self.study}: {self.state}{self.stage and f', {self.stage}'}",
            f"{ended}{of} trials: {self.counts.complete} complete, {self.counts.pruned} pruned, "
            f"{self.counts.rejected} rejected, {self.counts.failed} failed",
            *(_running_line(running) for running in self.running),
        ]
        if self.best is not None:
            lines.append(f"best: {_best_line(self.best)}")
        elif self.nearest is not None:
            least = f"--min-accuracy {self.min_accuracy:g}"
            lines.append(f"none reaches {least}; the nearest: {_best_line(self.nearest)}")
        if self.hypervolumes:
            trend = " ".join(f"{share:.1%}" for share in self.hypervolumes)
            lines.append(f"hypervolume, as a share of the present one: {trend}")
        left = f", about {duration(self.seconds_left)} left" if self.seconds_left else ""
        if self.seconds_left == 0:
            left = "; controls or refits, the test split and the export follow"
        lines.append(f"{duration(self.seconds_spent)} spent{left}")
        if self.state != RUNNING:
            lines.append(f"resume: {self.resume}")
        return [line.replace(SPACE, " ") for line in lines]


def _best_line(best: Best) -> str:
    known = {axis: getattr(best.cost, axis) for axis in words.AXES}
    cost = [words.amount(axis, value) for axis, value in known.items() if value is not None]
    return f"trial {best.trial}, {words.percent(best.val)}, {best.what}, {', '.join(cost)}"


def _running_line(running: RunningTrial) -> str:
    how_far = f"epoch {running.epoch} of {running.epochs}" if running.epoch else "getting ready"
    val = "" if running.val is None else f", {words.percent(running.val)}"
    kind = f"{running.kind} " if running.kind else ""
    return f"  {kind}trial {running.number}: {running.what}, {how_far}{val}"


def status(path: Path, storage: str | None = None) -> Status:
    """Return the status of the study at `path`. Raises StudyError where there is none.

    storage: see `open_study`.
    """
    prepared = read_stage(path)
    if prepared is not None and read_config(path) is None:
        return _before_study(path, prepared)
    study, progress = load_study(path, storage), read_progress(path)
    records = study.records()
    ended = searched(records)
    state, is_running = _state(study, progress)
    if prepared is not None and not is_running:
        state = _where(prepared.holder)
    trials = study.facts.trials
    spent = sum(run.seconds for run in study.facts.runs)
    if progress is not None:
        spent += progress.seconds
    return Status(
        study=study.name,
        state=state,
        trials=trials,
        counts=count_states(records),
        running=progress.running if progress is not None and is_running else (),
        best=_best(_shipped(study, records) or study.front()),
        min_accuracy=study.config.min_accuracy,
        nearest=_best([r for r in study.complete() if not study.is_enough(r)]),
        hypervolumes=_trend(study, ended),
        seconds_spent=spent,
        seconds_left=progress.seconds_left if progress is not None and is_running else None,
        resume=resume_command(path),
        stage="" if prepared is None or is_running else prepared.stage,
        warnings=() if study.facts.teacher is None else tuple(warnings_in(summarise(study))),
    )


def _before_study(path: Path, prepared: Stage) -> Status:
    """Return the status of a first run before its search: there are no trials yet."""
    return Status(
        study=path.name,
        state=_where(prepared.holder),
        trials=None,
        counts=Counts(),
        running=(),
        best=None,
        min_accuracy=None,
        nearest=None,
        hypervolumes=(),
        seconds_spent=prepared.seconds,
        seconds_left=None,
        resume=resume_command(path),
        stage=prepared.stage,
    )


def _where(holder: Holder) -> str:
    return RUNNING if holder.is_on_this_machine() else ELSEWHERE


def _state(study: OpenStudy, progress: Progress | None) -> tuple[str, bool]:
    if progress is not None:
        if progress.holder.is_dead():
            return KILLED, False
        return _where(progress.holder), True
    runs = study.facts.runs
    return (runs[-1].end if runs else NEW), False


def _shipped(study: OpenStudy, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the training in best/, as long as its trial is on the front."""
    best, shipped = study.facts.best, study.facts.shipped
    is_there = any(record.number == best for record in study.front())
    return [record for record in records if is_there and record.number == shipped]


def _best(records: Sequence[TrialRecord]) -> Best | None:
    if not records:
        return None
    record = max(records, key=lambda record: record.val or 0.0)
    assert record.val is not None
    assert record.cost is not None
    what = name_trial(record.params)
    return Best(trial=record.number, what=what, val=record.val, cost=record.cost)


def _trend(study: OpenStudy, ended: Sequence[TrialRecord]) -> tuple[float, ...]:
    done = [study.point(record) for record in ended if record.state == "complete"]
    counts = sorted({-(-len(done) * i // _POINTS) for i in range(1, _POINTS + 1)} - {0})
    volumes = hypervolumes(done, counts, limit=getattr(study.budget, study.budget.axis()))
    return tuple(volume / volumes[-1] for volume in volumes) if volumes and volumes[-1] else ()
