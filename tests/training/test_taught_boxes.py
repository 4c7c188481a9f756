"""Boxes of a teacher: found once, moved as labels are, and taught by the loss of the labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdsearch import methods
from kdsearch.data.base import Augment, ImageSet
from kdsearch.data.boxes import PADDING, ignored
from kdsearch.data.feed import Feed
from kdsearch.data.moves import boxes_moved
from kdsearch.data.views import view_seeds
from kdsearch.errors import SpecError
from kdsearch.methods.base import Setting
from kdsearch.models.boxes import BINS
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model, Preprocess
from kdsearch.tasks.detection import Detection
from kdsearch.training.teacher_cache import Disk, TeacherOutputs

TASK = Detection(("a", "b", "c"))
LEVELS = ((8, 10), (4, 5))
POINTS = 100
CPU = torch.device("cpu")
AUGMENT = Augment(pad=3, flip=True, scale=0.4)


def labels(seed: int = 0, images: int = 2, most: int = 5) -> Tensor:
    """Return boxes [images, most, 5]: all but the last an object; of the first one, none is."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, most, 2, generator=generator) * 0.6
    side = 0.1 + 0.3 * torch.rand(images, most, 2, generator=generator)
    kinds = torch.randint(3, (images, most, 1), generator=generator).float()
    target = torch.cat([low, low + side, kinds], dim=2)
    target[:, -1] = torch.tensor([0, 0, 0, 0, float(PADDING)])
    return target


def student(seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, POINTS, 3, generator=generator)
    edges = torch.randn(2, POINTS, 4, BINS, generator=generator) * 2
    return Outputs(logits, logits.mean(1), edges=edges, levels=LEVELS)


def found(target: Tensor, score: float = 1.0) -> Outputs:
    """Return a teacher's outputs: these boxes, all with one score."""
    boxes = torch.cat(
        [target[..., :4], torch.full_like(target[..., :1], score), target[..., 4:]], 2
    )
    return Outputs(torch.zeros(len(target), 1, 0), torch.zeros(len(target), 0), boxes=boxes)


def loss_of(
    method: str,
    teacher: Outputs,
    target: Tensor,
    *,
    known: tuple[int, ...] | None = None,
    mine: Outputs | None = None,
    **knobs: float,
) -> Tensor:
    mine = mine or student()
    loss = methods.get(method)(**knobs)
    loss.prepare(mine, teacher, Setting(teacher_classes=known))
    return loss(mine, teacher, target)


@pytest.mark.parametrize("method", ["pseudo_boxes", "soft_boxes"])
def test_the_true_boxes_teach_as_labels_do(method: str) -> None:
    target = labels()
    expected = TASK.loss(student(), target)
    torch.testing.assert_close(loss_of(method, found(target), target), expected)


def test_pseudo_boxes_need_no_label_and_only_sure_boxes_count() -> None:
    target = labels()
    unknown = torch.full_like(target, float("nan"))
    expected = TASK.loss(student(), target)
    torch.testing.assert_close(loss_of("pseudo_boxes", found(target), unknown), expected)
    none = target.clone()
    none[..., 4] = PADDING
    torch.testing.assert_close(
        loss_of("pseudo_boxes", found(target, 0.3), target, tau=0.4), TASK.loss(student(), none)
    )


def test_an_ignored_box_of_the_teacher_is_no_background() -> None:
    target = labels()
    target[0, 0, 4] = ignored(target[0, 0, 4])
    expected = TASK.loss(student(), target)
    torch.testing.assert_close(loss_of("pseudo_boxes", found(target), target), expected)


def test_a_score_weighs_its_box_alone() -> None:
    """Under one point and one box: score * class loss, and score * box losses, over 2 images."""
    target = labels(most=2)
    mine = student()
    mine = Outputs(
        torch.zeros(2, 1, 3), mine.embedding, edges=torch.zeros(2, 1, 4, BINS), levels=((1, 1),)
    )
    whole, half = (
        loss_of("pseudo_boxes", found(target, score), target, mine=mine) for score in (1.0, 0.5)
    )
    torch.testing.assert_close(half, whole / 2)


def test_classes_that_the_teacher_does_not_know_are_not_taught() -> None:
    target = labels()
    mine = student()
    mine.logits.requires_grad_()
    loss = loss_of("pseudo_boxes", found(target), target, known=(0, 2), mine=mine)
    (slope,) = torch.autograd.grad(loss, mine.logits)
    assert (slope[..., 1] == 0).all()
    assert (slope[..., [0, 2]] != 0).any()


def test_soft_boxes_scale_the_goals_of_matched_objects_alone() -> None:
    target = labels()
    far = target.clone()
    far[..., :4] = torch.tensor([0.0, 0.0, 0.01, 0.01])
    expected = TASK.loss(student(), target)
    torch.testing.assert_close(loss_of("soft_boxes", found(far, 0.5), target), expected)
    assert loss_of("soft_boxes", found(target, 0.5), target) != expected
    known = loss_of("soft_boxes", found(target, 0.5), target, known=())
    torch.testing.assert_close(known, expected)


def test_unlabelled_images_have_no_objects_to_soften() -> None:
    target = labels()
    unknown = target.clone()
    unknown[1] = float("nan")
    one = Outputs(
        student().logits[:1], student().embedding[:1], edges=student().edges[:1], levels=LEVELS
    )
    expected = TASK.loss(one, target[:1])
    torch.testing.assert_close(loss_of("soft_boxes", found(target), unknown), expected)


@pytest.mark.parametrize("augment", [AUGMENT, Augment(pad=4, flip=True)])
def test_boxes_move_as_labels_do(augment: Augment) -> None:
    target = labels(images=40)
    boxes = found(target, 0.7).boxes
    assert boxes is not None
    index = torch.tensor([3, 0, 39, 3])
    for view in (1, 2):
        seeds = view_seeds(view, seed=5, augment=augment, count=40, device=CPU)
        moved = boxes_moved(boxes, index, seeds, augment, (32, 40))
        expected = boxes_moved(target, index, seeds, augment, (32, 40))
        assert torch.equal(moved[..., [0, 1, 2, 3, 5]], expected)
        assert torch.equal(moved[..., 4], boxes[index][..., 4])


class Finding(nn.Module):
    """Answers with boxes at an image's own place: its first pixel says how many."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 6, 4 + 3]: as many sure boxes as the first pixel says."""
        Finding.calls += 1
        count = (x[:, 0, 0, 0] * 255).round()
        low = 0.15 * torch.arange(6.0)[None, :, None].expand(len(x), 6, 2)
        scores = torch.zeros(len(x), 6, 3)
        scores[..., 1] = 0.9 * (torch.arange(6)[None] < count[:, None])
        return torch.cat([low, low + 0.1, scores], dim=2)


def outputs_of(tmp_path: Path) -> TeacherOutputs:
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 2, 1, 3, 0])
    preprocess = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, resolution=8, channels=3)
    return TeacherOutputs(
        Model("finding", Finding(), preprocess),
        Feed(ImageSet(images, labels(images=5)), CPU),
        view_seed=0,
        disk=Disk(cache_dir=tmp_path, data_key="images"),
    )


def test_boxes_are_found_once_and_kept_on_disk(tmp_path: Path) -> None:
    Finding.calls = 0
    boxes = outputs_of(tmp_path).boxes()
    assert boxes.shape == (5, 3, 6)
    assert (boxes[..., 5] >= 0).sum(dim=1).tolist() == [0, 2, 1, 3, 0]
    assert boxes[1, 1].tolist() == pytest.approx([0.15, 0.15, 0.25, 0.25, 0.9, 1])
    assert (boxes[0] == torch.tensor([0, 0, 0, 0, 0, float(PADDING)])).all()
    assert torch.equal(outputs_of(tmp_path).boxes(), boxes)
    assert Finding.calls == 1


def test_where_boxes_alone_are_needed_no_view_is_shown(tmp_path: Path) -> None:
    Finding.calls = 0
    index = torch.tensor([1, 4])
    need = frozenset({"boxes"})
    rows = outputs_of(tmp_path).rows(index, index, 1, need=need, augment=AUGMENT)
    assert rows is not None
    assert (Finding.calls, len(rows.logits)) == (0, 2)


def test_a_student_without_boxes_and_outputs_without_them_are_refused() -> None:
    target = labels()
    plain = Outputs(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(SpecError, match="the student is no detector"):
        loss_of("pseudo_boxes", found(target), target, mine=plain)
    with pytest.raises(SpecError, match="have no boxes"):
        loss_of("pseudo_boxes", plain, target)
