"""The share of a training step that goes to its input, for the smallest student.

Crop, flip and normalising of an epoch's batches over that epoch without a teacher, alternately.
CPU time on one thread, batch 128, 32 px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks import bars, trials
from benchmarks.paired import alternate, quartiles
from kdsearch.data.base import ImageData
from kdsearch.data.views import augmented
from kdsearch.deploy.pricing import build_student

BAR = 10.0
_BATCHES = 4


def rows() -> bars.Rows:
    """Return the one row."""
    data = trials.image_data(_BATCHES)
    with TemporaryDirectory() as folder:
        context = trials.context(data, trials.teacher(), Path(folder))
        epoch = trials.epoch(trials.SMALL, "none", context)
        times = alternate([inputs(data), epoch], seconds=0, blocks=30, warm_up=1)
    return [
        bars.Row(
            case=trials.NAMES[trials.SMALL.knobs["depth"]],
            measured=quartiles(100 * times.cpu[:, 0] / times.cpu[:, 1]),
            unit="%",
            bar=BAR,
            facts={
                "input_ms": round(times.ms(0) / _BATCHES, 3),
                "step_ms": round(times.ms(1) / _BATCHES, 2),
            },
        )
    ]


def inputs(data: ImageData) -> Callable[[], list[Tensor]]:
    """Return what makes the inputs of an epoch, in a shuffled order, as the trainer does."""
    preprocess = build_student(trials.SMALL, data).preprocess
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))

    def run() -> list[Tensor]:
        return [
            preprocess(augmented(data.train, index, 1, seed=0, augment=data.augment))
            for index in torch.split(order, trials.BATCH)
        ]

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when the input's share is above the bar."""
    given = bars.parser("input_share", __doc__).parse_args(argv)
    return bars.tell("input_share", __doc__, rows, given.json)
