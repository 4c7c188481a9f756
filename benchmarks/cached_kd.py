"""A training step with cached knowledge distillation, beside the same step without a teacher.

CPU time of an epoch of each, on one thread, batch 128, 32 px, alternately. The teacher's outputs
(cifar_resnet56) are those of a study: stored once, mapped from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import bars, trials
from benchmarks.paired import alternate

BAR = 1.05
_BATCHES = {trials.SMALL.knobs["depth"]: 4, trials.LARGE.knobs["depth"]: 1}


def rows() -> bars.Rows:
    """Return a row a student."""
    with TemporaryDirectory() as folder:
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[bars.Row]:
    teacher = trials.teacher()
    for student in (trials.SMALL, trials.LARGE):
        depth = student.knobs["depth"]
        context = trials.context(trials.image_data(_BATCHES[depth]), teacher, folder)
        epochs = [trials.epoch(student, method, context) for method in ("kd", "none")]
        times = alternate(epochs, seconds=0, blocks=24, warm_up=1)
        yield bars.Row(
            case=trials.NAMES[depth],
            measured=times.ratio(0, 1),
            unit="x",
            bar=BAR,
            facts={
                "kd_step_ms": round(times.ms(0) / _BATCHES[depth], 2),
                "plain_step_ms": round(times.ms(1) / _BATCHES[depth], 2),
                "by_wall": str(times.ratio(0, 1, clock="wall")),
            },
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a step with cached outputs is above the bar."""
    given = bars.parser("cached_kd", __doc__).parse_args(argv)
    return bars.tell("cached_kd", __doc__, rows, given.json)
