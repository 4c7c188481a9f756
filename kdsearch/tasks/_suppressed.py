"""Detection with non-maximum suppression inside of a file: its answer is the boxes it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models.boxes import MAX_BOXES, Suppressed
from kdsearch.tasks.base import Facts, Task
from kdsearch.tasks.detection import Detection


class SuppressedDetection(Detection):
    """Boxes [B, n, 6] of x1, y1, x2, y2 in fractions, score and class; rows of 0 pad."""

    output = "objects"
    compares_numbers: ClassVar[bool] = False  # equal scores may change places
    joins_boxes = False

    @staticmethod
    def candidates(answer: Tensor) -> Tensor:
        """Return the boxes as they are."""
        return answer

    def facts(self) -> Facts:
        """Return the facts for the card, with the form of these answers."""
        form = (
            f"float32 [batch, {MAX_BOXES}, 6], best first: x1, y1, x2, y2 in fractions of the "
            "input, score, class; rows of 0 pad"
        )
        return replace(super().facts(), output=form)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Return the network that keeps its best boxes."""
        return Suppressed(network)


def suppressed(task: Task) -> SuppressedDetection:
    """Return the task whose answers are the boxes that are kept, of a task that answers with boxes.

    Raises SpecError for another.
    """
    if not isinstance(task, Detection):
        raise SpecError(f"--nms is for detection; the task {task.name!r} has no boxes")
    found = SuppressedDetection(task.classes, task.metric.key)
    found.colours = task.colours
    return found
