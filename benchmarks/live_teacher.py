"""An epoch with a live cifar_resnet56, beside the same epoch from its stored outputs.

The bound is 1 + t_T / t_S: the teacher's time on the same batches over the student's without a
teacher, measured in the same blocks; the speed-up is judged as a share of it. CPU time on one
thread, batch 128, 32 px. Filling the store is not in it: a study pays that once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import bars, trials
from benchmarks.paired import alternate, quartiles
from kdsearch.data.views import augmented
from kdsearch.models.model import Model
from kdsearch.trials.trial import TrialContext

BAR = 0.9
_BATCHES, _BLOCKS = 2, 7


def rows() -> bars.Rows:
    """Return a row a student."""
    with TemporaryDirectory() as folder:
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[bars.Row]:
    teacher = trials.teacher()
    context = trials.context(trials.image_data(_BATCHES), teacher, folder)
    for student in (trials.SMALL, trials.LARGE):
        calls: list[Callable[[], object]] = [
            trials.epoch(student, "kd", context, source=trials.Live(teacher)),
            trials.epoch(student, "kd", context),
            trials.epoch(student, "none", context),
            alone(teacher, context),
        ]
        times = alternate(calls, seconds=0, blocks=_BLOCKS, warm_up=1)
        live, cached, plain, taught = times.cpu.T
        bound = 1 + taught / plain
        yield bars.Row(
            case=trials.NAMES[student.knobs["depth"]],
            measured=quartiles(live / cached / bound),
            unit="of the bound",
            bar=BAR,
            is_floor=True,
            facts={
                "speed_up": str(quartiles(live / cached)),
                "bound": str(quartiles(bound)),
                "live_step_ms": round(times.ms(0) / _BATCHES, 1),
                "cached_step_ms": round(times.ms(1) / _BATCHES, 1),
            },
        )


def alone(teacher: Model, context: TrialContext) -> Callable[[], object]:
    """Return the teacher's passes on the batches of an epoch, their views made beforehand."""
    data = context.data
    index = torch.arange(len(data.train))
    views = augmented(data.train, index, 1, seed=0, augment=data.augment)
    batches = torch.split(views, trials.BATCH)

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            teacher.features(batch, need=frozenset({"logits"}))

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when the speed-up is less than the bar's share of its bound."""
    given = bars.parser("live_teacher", __doc__).parse_args(argv)
    return bars.tell("live_teacher", __doc__, rows, given.json)
