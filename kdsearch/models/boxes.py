"""Boxes of a detector: the points of its grid, boxes from edges, and those that are shown.

A box is x1, y1, x2, y2 in fractions of the image's width and height, so that it needs no size.
A grid has levels (h, w), fine to coarse, and a point at the centre of each cell; P points in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.sizes import Size

BINS = 17  # of the distribution of an edge: its distance from the point, 0 to 16 cells
MAX_BOXES = 100  # of an image, as COCO counts them
SAME = 0.6  # IoU from which two boxes of a class show one object
CANDIDATES = 1000  # of an image, before boxes of one object are joined
LEAST = 0.001  # score


def points_of(levels: Sequence[Size], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points [P, 2] (x, y) and the sizes [P, 2] of their cells, in fractions."""
    points, cells = [], []
    for height, width in levels:
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        size = (height, width)
        grid = torch.stack([x.expand(size), y[:, None].expand(size)], dim=2).reshape(-1, 2)
        points.append(grid)
        cells.append(torch.stack([torch.full_like(grid[:, 0], 1 / side) for side in size[::-1]], 1))
    return torch.cat(points), torch.cat(cells)


def boxes_of(edges: Tensor, levels: Sequence[Size]) -> Tensor:
    """Return the boxes [B, P, 4] of edges [B, P, 4, BINS]: logits of left, top, right, bottom.

    An edge lies at the mean of its distribution, in cells (Li et al., NeurIPS 2020, 2006.04388).
    Written as a product and a sum, which formats of 8 bits leave in float.
    """
    bins = torch.arange(BINS, device=edges.device, dtype=edges.dtype)
    far = (edges.softmax(dim=3) * bins).sum(dim=3)
    points, cells = points_of(levels, far)
    return torch.cat([points - far[..., :2] * cells, points + far[..., 2:] * cells], dim=2)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU [...] of boxes [..., 4], which broadcast.

    Generalised: Rezatofighi et al., CVPR 2019, arXiv:1902.09630. Both are 0 where both boxes are
    empty.
    """
    least = torch.finfo(one.dtype).tiny
    inner = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(
        one[..., :2], other[..., :2]
    )
    outer = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(
        one[..., :2], other[..., :2]
    )
    shared = inner.clamp(min=0).prod(dim=-1)
    union = area_of(one) + area_of(other) - shared
    iou = shared / union.clamp(min=least)
    hull = outer.clamp(min=0).prod(dim=-1)
    return iou, iou - (hull - union) / hull.clamp(min=least)


def area_of(boxes: Tensor) -> Tensor:
    """Return the share [...] of the image that boxes [..., 4] cover."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def candidates(answer: Tensor) -> Tensor:
    """Return the best boxes of each image, [B, n, 6] of x1, y1, x2, y2, score, class.

    answer: [B, P, 4 + K], boxes and a score in [0, 1] for each class. A point may show several
    classes. Never waits for the device.
    """
    count = answer.shape[2] - 4
    scores, place = (
        answer[..., 4:].float().flatten(1).topk(min(CANDIDATES, count * answer.shape[1]), dim=1)
    )
    point = (place // count)[..., None].expand(-1, -1, 4)
    boxes = answer[..., :4].float().gather(1, point).clamp(0, 1)
    return torch.cat([boxes, scores[..., None], (place % count)[..., None]], dim=2)


def joined(found: Tensor, *, least: float = LEAST) -> list[Tensor]:
    """Return the boxes of each image [n, 6], best first, of `candidates`, on the CPU.

    Of boxes of a class with an IoU above SAME the best remains; at most MAX_BOXES with a score
    above `least`.
    """
    from torchvision.ops import batched_nms

    kept = []
    for rows in found.cpu():
        rows = rows[rows[:, 4] > least]
        kept.append(rows[batched_nms(rows[:, :4], rows[:, 4], rows[:, 5], SAME)[:MAX_BOXES]])
    return kept


def shown(answer: Tensor, *, least: float = LEAST) -> list[Tensor]:
    """Return the boxes of each image [n, 6], best first, of an answer [B, P, 4 + K]."""
    return joined(candidates(answer), least=least)


def kept(answer: Tensor) -> Tensor:
    """Return the boxes of each image, [B, n, 6], best first, of an answer [B, P, 4 + K].

    n: MAX_BOXES, or all scores of an image where these are fewer. Rows beyond its boxes are 0.
    """
    most = min(MAX_BOXES, answer.shape[1] * (answer.shape[2] - 4))
    return torch.stack([F.pad(rows, (0, 0, 0, most - len(rows))) for rows in shown(answer)])


class Suppressed(nn.Module):
    """A detector that answers with the boxes it keeps, [B, n, 6]; see `kept`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the boxes of each image."""
        return kept(self.network(x))
