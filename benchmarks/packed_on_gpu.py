"""Images a second of trainings side by side on a GPU, over one at a time. Needs a GPU.

Threads with a stream and a CUDA graph each, as `kdsearch run --workers` packs trials; the number is
the one that its own probe finds. Batches of 64 and of 512 made images of 32 px through a resnet of
width 0.25, without a teacher; one and many in turn, by the wall clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import bars, trials
from benchmarks.paired import quartiles
from kdsearch.engines.gpu_packing import fitting, steps_per_second

BAR = 1.5
_BLOCKS = 7
_GPU = torch.device("cuda", 0)


def rows() -> bars.Rows:
    """Return a row a size of batch."""
    with TemporaryDirectory() as folder:
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[bars.Row]:
    data = trials.image_data(64)
    context = trials.context(data, trials.teacher().to(_GPU), folder, device=_GPU)
    for batch_size in (64, 512):
        count = fitting(context, batch_size=batch_size)
        rates = np.array(
            [
                [steps_per_second(many, context, batch_size=batch_size) for many in (1, count)]
                for _ in range(_BLOCKS)
            ]
        )
        one, many = rates.T
        yield bars.Row(
            case=f"{count} side by side, batch {batch_size}",
            measured=quartiles(many / one),
            unit="x one",
            bar=BAR,
            is_floor=True,
            facts={
                "images_s": round(batch_size * quartiles(many).median),
                "device": torch.cuda.get_device_name(),
            },
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when packing gains too little, 2 without a GPU."""
    given = bars.parser("packed_on_gpu", __doc__).parse_args(argv)
    return bars.on_gpu(lambda: bars.tell("packed_on_gpu", __doc__, rows, given.json))
