"""Whether the shipped student was trained long enough, in sentences. No torch.

On 1,500 images of CIFAR-10 a student reached 28, 47 and 59 % after 120, 720 and 1,440 steps, and
the best of twelve trials of 120 steps 34 %: where steps are few, they count more than trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from kdsearch.hpo.convergence import last_rise
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.formatting import counted
from kdsearch.study.summary import Images
from kdsearch.tasks.base import Metric

FEW_STEPS, ENOUGH_STEPS = 100, 200


def about_training(
    record: TrialRecord, metric: Metric, images: Images, package: Path
) -> Iterator[str]:
    """Yield that a training was too short, and the command that trains its student for longer.

    That one starts again: the learning rate of a training that ended has fallen to 0.

    Its steps are few, or its curve rises at its end by over two standard errors of a difference.
    package: the folder with its `config.yaml`.
    """
    epochs = len(record.curve) or record.epochs
    if not (epochs and images.train and images.val):
        return
    batch = min(Candidate.from_params(record.params).train.batch_size, images.train)
    an_epoch = images.train // batch
    rise, last = last_rise(record.curve)
    noise = 2 * math.sqrt(2 * metric.variance(record.curve[-1], images.val)) if last else 0.0
    steps = epochs * an_epoch
    is_short, is_rising = steps < FEW_STEPS, rise > noise
    if is_short:
        yield (
            f"Trial {record.number} is under-trained: {counted(steps, 'step')}, {an_epoch} an "
            f"epoch. Give it at least {ENOUGH_STEPS}, by more epochs or a smaller batch."
        )
    if is_rising:
        yield (
            f"The curve of trial {record.number} still rises: by {metric.number(rise)}"
            f"{metric.points} over the last {last} of {epochs} epochs, where "
            f"{metric.number(noise)} may be noise."
        )
    if is_short or is_rising:
        longer = max(2 * epochs, math.ceil(ENOUGH_STEPS / an_epoch))
        yield (
            f"More steps beat more trials here. `kdsearch distill --config {package}/config.yaml "
            f"--epochs {longer}` trains this student for longer, again from its start: its rate "
            "has fallen to 0."
        )
