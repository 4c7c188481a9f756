"""Rejecting a candidate over a FLOPs budget, in seconds: an absolute bar, on this machine.

A whole trial that ends `rejected`: the student is built and its FLOPs are counted. Its peer is the
other outcome: building the student and training it for an epoch, here of only 128 images.
Wall time on one thread, 32 px, the deepest students of the built-in space at width 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import bars, trials
from benchmarks.paired import alternate, quartiles
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, StudentSpec
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.trials.trial import TrialContext, run_trial

BAR = 0.4
DEEPEST = {"resnet": 15, "mobilenet": 15, "convnext": 12, "vit": 12}


def rows() -> bars.Rows:
    """Return a row a family."""
    with TemporaryDirectory() as folder:
        return list(_rows(trials.teacher(), Path(folder)))


def _rows(teacher: Model, folder: Path) -> Iterator[bars.Row]:
    context = trials.context(trials.image_data(1), teacher, folder, budget=Budget(flops=1))
    for family, depth in DEEPEST.items():
        student = StudentSpec(family=family, knobs={"width": 1.0, "depth": depth})
        calls: list[Callable[[], object]] = [
            rejection(student, context, folder),
            building_and_epoch(student, context),
        ]
        times = alternate(calls, seconds=0, blocks=5, warm_up=1)
        yield bars.Row(
            case=f"{family} depth {depth}",
            measured=quartiles(times.wall[:, 0]),
            unit="s",
            bar=BAR,
            facts={"over_building_and_epoch": str(times.ratio(0, 1, clock="wall"))},
        )


def rejection(
    student: StudentSpec, context: TrialContext, folder: Path
) -> Callable[[], TrialOutcome]:
    """Return a trial of a student that no budget of one FLOP allows."""
    candidate = Candidate(student=student)
    return lambda: run_trial(candidate, context, folder)


def building_and_epoch(student: StudentSpec, context: TrialContext) -> Callable[[], object]:
    """Return what a rejection saves."""
    return lambda: trials.epoch(student, "kd", context)()


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when turning a candidate away takes too long."""
    given = bars.parser("reject", __doc__).parse_args(argv)
    return bars.tell("reject", __doc__, rows, given.json)
