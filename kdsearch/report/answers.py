"""Did distillation help, and did the search? Gains over controls with their noise. No torch.

A gain is stated on test where both students were evaluated there and trained for as many epochs;
else on validation, after as many epochs. The winner was selected on validation, so its gain there
is too high. A gain after the first epochs says nothing about a student that has passed its teacher
since: what such a teacher is worth shows later (Cho and Hariharan, ICCV 2019, arXiv:1910.01348).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kdsearch.report import words
from kdsearch.spec import TrialRecord
from kdsearch.study.facts import CONTROLS
from kdsearch.study.summary import Answer, Images, Summary, TeacherEntry
from kdsearch.tasks.base import Metric

YES, NO, NOT_MEASURABLE, NOT_KNOWN = "yes", "no", "not measurable", "not known"
PASSED = "the student has passed its teacher since, so that an early gain says little"
NO_CONTROL = "no control was trained"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOnce:
    """The gain of one training over another on a split, `test` or `validation`.

    own, others: the two values. error: standard error of the difference, None where the number of
    images is not known. epochs: of both trainings, None where these are all that the first has.
    """

    split: str
    own: float
    others: float
    error: float | None
    epochs: int | None = None

    @property
    def difference(self) -> float:
        """Return the gain."""
        return self.own - self.others

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Return the gain with the ends of its 95 % interval, None without a known error."""
        if self.error is None:
            return None
        reach = words.NOISE * self.error
        return self.difference, self.difference - reach, self.difference + reach


def gain_of_one(
    metric: Metric,
    images: Images,
    test: Mapping[int, float],
    trial: TrialRecord,
    control: TrialRecord,
) -> TrainedOnce | None:
    """Return the gain of a trial over its control; None where it cannot be known.

    test: values on test by trial.
    """
    if trial.val is None or control.val is None:
        return None
    epochs = min(len(trial.curve), len(control.curve))
    is_equal = len(trial.curve) == len(control.curve)
    if is_equal and trial.number in test and control.number in test:
        split, own, others = "test", test[trial.number], test[control.number]
    else:
        split, own, others = "validation", _after(trial, epochs), _after(control, epochs)
    error = words.error_of_difference(
        metric, own, others, images.test if split == "test" else images.val
    )
    shown = None if epochs == len(trial.curve) else epochs
    return TrainedOnce(split=split, own=own, others=others, error=error, epochs=shown)


def has_passed(trial: TrialRecord, teacher: TeacherEntry, gain: TrainedOnce) -> bool:
    """Return whether a student is now above its teacher, and its gain is of the first epochs."""
    assert trial.val is not None
    return gain.epochs is not None and teacher.knows_all and trial.val > teacher.val


def _after(record: TrialRecord, epochs: int) -> float:
    """Return the validation metric of a completed trial after so many epochs."""
    assert record.val is not None
    return record.val if epochs == len(record.curve) else record.curve[epochs - 1]


def answers(summary: Summary, records: Sequence[TrialRecord]) -> tuple[Answer, ...]:
    """Return whether distillation helped, then whether the search did; empty without a front."""
    if summary.best is None:
        return ()
    found = _of_seeds(summary) if summary.candidates else _of_trial(summary, records)
    known = {answer.over: answer for answer in found}
    missing = (Answer(over=over, answer=NOT_KNOWN, why=NO_CONTROL) for over in CONTROLS)
    return tuple(known.get(answer.over, answer) for answer in missing)


def _of_seeds(summary: Summary) -> Iterator[Answer]:
    for candidate in summary.candidates:
        if candidate.trial != summary.best:
            continue
        own = candidate.trained.val.mean
        for control in candidate.controls:
            over = control.trained.method
            if summary.is_at_chance(min(own, control.trained.val.mean)):
                yield _at_chance(over)
                continue
            gain = control.gain if control.test_gain is None else control.test_gain
            yield _judged(
                over,
                "validation" if control.test_gain is None else "test",
                (gain.difference, gain.low, gain.high),
            )


def _of_trial(summary: Summary, records: Sequence[TrialRecord]) -> Iterator[Answer]:
    """Yield the answers of a study whose students were trained once."""
    by_number = {record.number: record for record in records}
    best = next(record for record in records if record.number == summary.best)
    trial = best if best.control_of is None else by_number.get(best.control_of, best)
    entries = (*summary.front, *summary.controls, *filter(None, [summary.shipped]))
    test = {entry.trial: entry.test for entry in entries if entry.test is not None}
    controls = [r for r in records if r.control_of == trial.number and r.state == "complete"]
    for control in controls:
        over = words.method(control.params)
        gain = gain_of_one(summary.metric, summary.images, test, trial, control)
        if summary.is_at_chance(min(trial.val or 0.0, control.val or 0.0)):
            yield _at_chance(over)
        elif gain is not None and gain.interval is not None:
            found = _judged(over, gain.split, gain.interval, gain.epochs)
            if over == "none" and found.answer != NO and has_passed(trial, summary.teacher, gain):
                found = replace(found, answer=NOT_KNOWN, why=PASSED)
            yield found


def _at_chance(over: str) -> Answer:
    return Answer(over=over, answer=NOT_KNOWN, why="a student is at chance")


def _judged(
    over: str, split: str, found: tuple[float, float, float], epochs: int | None = None
) -> Answer:
    """Return the answer for a gain with its interval."""
    difference, low, high = found
    return Answer(
        over=over,
        answer=YES if low > 0 else NO if high < 0 else NOT_MEASURABLE,
        split=split,
        difference=difference,
        low=low,
        high=high,
        epochs=epochs,
    )
