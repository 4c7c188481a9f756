"""Which points of a detector learn which objects: task-aligned assignment.

Feng et al., ICCV 2021, arXiv:2108.07755. All shapes are fixed by the padded boxes, so that a step
can be captured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.models.boxes import overlaps

TOP = 13  # points of an object
BETA = 6  # power of the IoU; that of the score is 1


class Assigned(NamedTuple):
    """What each point learns.

    boxes: [B, P, 4], of its object. scores: [B, P, K], the goals of the class scores, 0 where the
    point has no object. weights: [B, P], of the loss of the scores: 0 in the ignored regions, else
    1. shares: [B, P], weight of the losses of the box: the goal of its class. objects: [B, P], the
    place of the object among the target's, any one where the point has none.
    """

    boxes: Tensor
    scores: Tensor
    weights: Tensor
    shares: Tensor
    objects: Tensor


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, points: Tensor, target: Tensor) -> Assigned:
    """Return what the points learn, given what they answer now.

    scores: [B, P, K] in [0, 1]. boxes: [B, P, 4]. points: [P, 2]. target: [B, M, 5], boxes and a
    code: a class, -1 for padding, -2 - class for an ignored object.
    Of the points within an object, or the nearest where there is none, the TOP of
    score * IoU^BETA learn it; a point within several learns that of the larger IoU. The goal of a
    score is this metric, scaled so that its largest in an object is the object's largest IoU.
    """
    truth, codes = target[:, :, :4], target[:, :, 4].long()
    is_object = codes >= 0
    kinds = codes.clamp(min=0)
    iou = overlaps(truth[:, :, None], boxes[:, None])[0]  # [B, M, P]
    own = scores.gather(2, kinds[:, None].expand(-1, scores.shape[1], -1)).transpose(1, 2)
    metric = own * iou**BETA * _inside(truth, points) * is_object[:, :, None]
    top = metric.topk(min(TOP, metric.shape[2]), dim=2).indices
    chosen = torch.zeros_like(metric).scatter_(2, top, 1.0) * (metric > 0)
    best = torch.where(chosen > 0, iou, -1).argmax(dim=1, keepdim=True)  # [B, 1, P]
    chosen = chosen * torch.zeros_like(chosen).scatter_(1, best, 1.0)
    metric = metric * chosen
    most = (iou * chosen).amax(dim=2, keepdim=True)
    scaled = metric / metric.amax(dim=2, keepdim=True).clamp(min=torch.finfo(iou.dtype).tiny) * most
    goal = scaled.gather(1, best)[:, 0]  # [B, P]
    index = best[:, 0]
    kind = kinds.gather(1, index)[..., None]
    ignored = codes < -1
    within = (_within(truth, points) & ignored[:, :, None]).any(dim=1)
    return Assigned(
        boxes=truth.gather(1, index[..., None].expand(-1, -1, 4)),
        scores=torch.zeros_like(scores).scatter_(2, kind, goal[..., None].to(scores.dtype)),
        weights=((goal > 0) | ~within).to(scores.dtype),
        shares=goal.to(scores.dtype),
        objects=index,
    )


def _within(boxes: Tensor, points: Tensor) -> Tensor:
    """Return whether points [P, 2] lie in boxes [B, M, 4]: [B, M, P]."""
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    return ((points > low) & (points < high)).all(dim=3)


def _inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Return 1 for the points in a box, or for the nearest one where a box has none: [B, M, P]."""
    within = _within(boxes, points)
    centres = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2
    nearest = (centres[:, :, None] - points).square().sum(dim=3).argmin(dim=2, keepdim=True)
    alone = torch.zeros_like(within).scatter_(2, nearest, value=True)
    return torch.where(within.any(dim=2, keepdim=True), within, alone).to(boxes.dtype)
