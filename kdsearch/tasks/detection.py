"""Object detection: boxes of classes, measured by average precision.

Labels are boxes float32 [N, M, 5]: x1, y1, x2, y2 in fractions of the image, and a code, see
`data/boxes.py`. An answer is [B, P, 4 + K]: a box and a score in [0, 1] for each class at each
point of a grid; boxes of one object are joined afterwards (`models/boxes.py`: `shown`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import DETECTION, Augment
from kdsearch.data.moves import boxes_moved
from kdsearch.data.sizes import Size
from kdsearch.data.views import ViewSeeds
from kdsearch.models import detector
from kdsearch.models.boxes import BINS, LEAST, boxes_of, candidates, joined, overlaps, points_of
from kdsearch.spec import StudentSpec
from kdsearch.tasks._assign import Assigned, assign
from kdsearch.tasks._average_precision import MAP, MAP50, AveragePrecision
from kdsearch.tasks._box_curves import DRAWN
from kdsearch.tasks._position_task import PositionTask
from kdsearch.tasks.base import Answer, Facts, Meter
from kdsearch.train_spec import TrainSpec

if TYPE_CHECKING:
    from kdsearch.models.features import Outputs

_BETA = 2  # of the quality focal loss
_BOX, _EDGE = 2.0, 0.25  # weights of GIoU and of the distributions
_MARGIN = 0.01  # cells, from the last bin
_ALIKE = 0.8  # IoU of a box and its partner in another runtime's answer
_SURE = 0.3  # score from which a box needs a partner


class Detection(PositionTask):
    """Boxes of K classes."""

    name = DETECTION
    metric = MAP50
    also = (MAP,)
    output = "detections"
    joins_boxes = True
    candidates = staticmethod(candidates)
    auto_teacher = StudentSpec(
        family="resnet", knobs={"width": 0.75, "depth": 8, "head.channels": 96}
    )
    auto_recipe = TrainSpec(
        epochs=60, batch_size=8, optimizer="adamw", lr=2e-3, weight_decay=0.05, ema=0.99, scale=0.4
    )

    def network(self, spec: StudentSpec, *, channels: int, size: Size) -> nn.Module:
        """Return a body under a pyramid and two towers."""
        own = self.input_size(size, spec.resolution)
        return detector.build(spec, channels=channels, num_classes=len(self.classes), size=own)

    def target(
        self, labels: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
    ) -> Tensor:
        """Return the boxes of a view, [B, M, 5]. Raises DataError for a mix or a policy."""
        return boxes_moved(labels, index, seeds, augment, size)

    def loss(self, outputs: Outputs, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the sum of three losses over the sum of the goals, at least 1 an image.

        See `box_loss`.
        """
        return box_loss(outputs, target, smoothing=smoothing)

    def labelled_by(self, target: Tensor, teacher: Outputs) -> Tensor:
        """Return the target: methods pass over images without a label."""
        return target

    def meter(self, device: torch.device) -> Meter:
        """Return a meter of average precision; it counts on the CPU."""
        return AveragePrecision(len(self.classes), self.metric.key, self.candidates)

    def chance(self, labels: Tensor) -> float | None:
        """Return 0, the average precision of an answer without boxes."""
        return 0.0

    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of the sure boxes, of both, that have a partner in the other answer.

        Partners have one class and an IoU of at least 0.8; boxes are sure from a score of 0.3.
        """
        partners = [
            found
            for one, other in zip(self.boxes(ours), self.boxes(theirs), strict=True)
            for found in (has_partner(one, other, _ALIKE), has_partner(other, one, _ALIKE))
        ]
        every = torch.cat(partners)
        return float(every.double().mean()) if len(every) else 1.0

    def boxes(self, answer: Tensor, *, least: float = LEAST) -> list[Tensor]:
        """Return the boxes of each image [n, 6] with a score above `least`, best first."""
        return joined(self.candidates(answer), least=least)

    def blend(self, weights: Tensor, answers: Tensor) -> Tensor:
        """Return the teachers' mean boxes and scores, or the logits of their mean scores.

        answers: [B, T, P, 4 + K], or logits [B, T, P, K].
        """
        weights = weights[:, :, None, None]
        if answers.shape[3] > len(self.classes):
            return (weights * answers).sum(dim=1)
        return (weights * answers.float().sigmoid()).sum(dim=1).logit(eps=1e-6)

    def picture(self, images: Tensor, labels: Tensor, answers: Mapping[str, Answer]) -> bytes:
        """Return a strip of each image: with its true boxes, and with those of each answer."""
        from kdsearch.tasks._box_strip import strip

        height, width = images.shape[2:]
        sides = torch.tensor([width, height, width, height, 1.0])
        found = {
            name: [
                (rows * torch.cat([sides, sides[4:]])).numpy()
                for rows in self.boxes(answer(images), least=DRAWN)
            ]
            for name, answer in answers.items()
        }
        return strip(images, labels * sides, found, self.classes, self.shown_colours())

    def facts(self) -> Facts:
        """Return the facts for the card of a detector."""
        count = len(self.classes)
        return Facts(
            pipeline_tag="object-detection",
            script="prints and draws the objects of each image",
            names=("boxes_of", "upright"),
            snippet=(
                'found = boxes_of(answer[0], metadata, upright("image.png").size)',
                "for box, score, label in zip(*found):  # box: x1, y1, x2, y2 in pixels",
                '    print(json.loads(metadata["classes"])[label], round(float(score), 2), box)',
            ),
            output=(
                f"float32 [batch, points, {4 + count}]: x1, y1, x2, y2 in fractions of the input, "
                f"then a score in [0, 1] for each of: {', '.join(self.classes)}; keep those above "
                "a threshold, then one box an object (non-maximum suppression by class)"
            ),
            limits=(
                f"It knows these {count} classes alone. It was evaluated on images like those it "
                "was trained on. Latency is without the joining of boxes.",
            ),
        )


def box_loss(
    outputs: Outputs,
    target: Tensor,
    *,
    smoothing: float = 0.0,
    change: Callable[[Assigned], Assigned] | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Return the loss of a detector on boxes [B, M, 5], over the sum of the goals.

    Quality focal loss and distribution focal loss (Li et al., 2006.04388), and 1 - GIoU, for the
    goals of task-aligned assignment. The sum of the goals counts as at least 1 an image. Images
    without a label count nowhere. smoothing: lowers the goals by this share. change: returns the
    goals to learn, given those assigned. classes: int64, the places of the classes whose scores
    are learned; None: all.
    """
    assert outputs.edges is not None
    logits, edges = outputs.logits.float(), outputs.edges.float()
    points, cells = points_of(outputs.levels, logits)
    boxes = boxes_of(edges, outputs.levels)
    known = ~target.isnan().flatten(1).any(dim=1)
    found = target.nan_to_num(-1.0).float()
    goals = assign(logits.detach().sigmoid(), boxes.detach(), points, found)
    goals = goals._replace(
        weights=goals.weights * known[:, None],
        scores=goals.scores * known[:, None, None] * (1 - smoothing),
        shares=goals.shares * known[:, None] * (1 - smoothing),
    )
    goals = goals if change is None else change(goals)
    total = torch.maximum(goals.shares.sum(), known.sum()).clamp(min=1)
    scored = (logits, goals.scores)
    if classes is not None:
        scored = (logits.index_select(2, classes), goals.scores.index_select(2, classes))
    score = (focal(*scored) * goals.weights).sum()
    place = (goals.shares * (1 - overlaps(boxes, goals.boxes)[1])).sum()
    edge = (goals.shares * _edge_loss(edges, goals, points, cells)).sum()
    return (score + _BOX * place + _EDGE * edge) / total


def focal(logits: Tensor, goals: Tensor) -> Tensor:
    """Return the quality focal loss [B, P] of scores: cross-entropy times (goal - score)^2."""
    gap = (goals - logits.sigmoid()).abs() ** _BETA
    entropy = F.binary_cross_entropy_with_logits(logits, goals, reduction="none")
    return (gap * entropy).sum(dim=2)


def _edge_loss(edges: Tensor, goals: Assigned, points: Tensor, cells: Tensor) -> Tensor:
    """Return the distribution focal loss [B, P], the mean over the four edges."""
    near, far = (points - goals.boxes[..., :2]) / cells, (goals.boxes[..., 2:] - points) / cells
    return between_bins(edges, torch.cat([near, far], dim=2)).mean(dim=2)


def between_bins(edges: Tensor, goal: Tensor) -> Tensor:
    """Return the cross-entropy [...] of the two bins around a goal, weighted by nearness.

    edges: logits [..., BINS]. goal: [...], in bins.
    """
    goal = goal.clamp(0, BINS - 1 - _MARGIN)
    low = goal.floor()
    share = goal - low
    log = F.log_softmax(edges, dim=-1)
    index = low.long()[..., None]
    first, second = (log.gather(-1, index + i)[..., 0] for i in (0, 1))
    return -(first * (1 - share) + second * share)


def has_partner(ours: Tensor, theirs: Tensor, least: float) -> Tensor:
    """Return for each sure box [n, 6] of ours whether theirs have it: bool."""
    sure = ours[ours[:, 4] >= _SURE]
    iou = overlaps(sure[:, None, :4], theirs[None, :, :4])[0]
    same = sure[:, None, 5] == theirs[None, :, 5]
    return ((iou >= least) & same).any(dim=1)
