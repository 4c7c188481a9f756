"""Time of the non-maximum suppression that follows a detector: predict.py's own, on its answers.

It depends on what the images show, so it is measured on validation images, apart from the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kdsearch.deploy import predict
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.timing import clock_of, time_block

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = 64  # validation images at most
_SECONDS = 0.002  # of runs for an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """Milliseconds of the suppression of one image's boxes, on one thread.

    ms: the median over so many images. p95_ms: below it are 95 % of them. score: least one of a
    box. counted_ms: of it in the budget of latency, which the network cannot use; None: nothing.
    """

    ms: float
    p95_ms: float
    images: int
    score: float = predict.SCORE
    counted_ms: float | None = None

    @property
    def excess_ms(self) -> float:
        """Return the milliseconds beyond those that the budget of latency counts."""
        return 0.0 if self.counted_ms is None else self.p95_ms - self.counted_ms

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"non-maximum suppression takes {self.ms:.2g} ms more, up to {self.p95_ms:.2g} ms for "
            f"95 % of {self.images} validation images, in predict.py at a score of {self.score:g}"
        )


def measure_suppression(answers: Iterable[Tensor], latencies: LatencyCache) -> Suppression:
    """Time the suppression of the answers [B, P, 4 + K] of each batch, image by image.

    No training step runs while it does.
    """
    clock, taken = clock_of(1), []
    with latencies.alone():
        for rows in (rows.float().cpu().numpy() for batch in answers for rows in batch):
            block = time_block(partial(predict.joined, rows), clock, seconds=_SECONDS)
            taken.append(1e3 * block.seconds)
    return Suppression(
        ms=float(np.median(taken)), p95_ms=float(np.quantile(taken, 0.95)), images=len(taken)
    )
