"""Detection: golden losses, and laws of assignment, loss, metric, views and network."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import detection_data
import numpy as np
import pytest
import torch
from golden_dense import GOLDEN, assert_golden, golden
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

import kdsearch.data as datasets
from kdsearch import methods, tasks
from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.data.boxes import PADDING, ignored
from kdsearch.data.feed import Feed
from kdsearch.data.moves import boxes_moved
from kdsearch.data.views import augmented, view_seeds
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import DataError, SpecError
from kdsearch.methods import box_iou, fgd, ld
from kdsearch.methods.base import Setting
from kdsearch.methods.det_kd import weighted_entropy
from kdsearch.models import boxes, detector, heads
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.spec import DistillSpec, StudentSpec
from kdsearch.tasks._assign import TOP, assign
from kdsearch.tasks._average_precision import MAP, MAP50, AveragePrecision
from kdsearch.tasks.detection import Detection, between_bins, focal
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.teacher_cache import TeacherOutputs

CPU = torch.device("cpu")
TASK = Detection(["a", "b", "c"])
LEVELS = ((8, 10), (4, 5))
POINTS = 100
SMALL = {"width": 0.25, "depth": 4, "head.channels": 16, "head.depth": 1}


def positives() -> tuple[Tensor, Tensor]:
    """Return the goals [24, 3] of the golden labels and scores, and which points are positive."""
    how = GOLDEN["inputs"]
    labels = np.random.RandomState(how["qfl_labels"]["seed"]).randint(0, 4, 24)
    scores = np.random.RandomState(how["qfl_scores"]["seed"]).uniform(size=24)
    goals = np.zeros((24, 4))
    goals[np.arange(24), labels] = scores
    return torch.from_numpy(goals[:, :3]), torch.from_numpy(labels < 3)


def golden_boxes() -> tuple[Tensor, Tensor]:
    """Return the boxes [24, 4] of student and teacher."""
    u = np.random.RandomState(17).uniform(0, 40, (24, 4))
    teacher = np.stack([u[:, 0], u[:, 1], u[:, 0] + 5 + u[:, 2], u[:, 1] + 5 + u[:, 3]], axis=1)
    student = teacher + 2 * np.random.RandomState(18).standard_normal((24, 4))
    return torch.from_numpy(student), torch.from_numpy(teacher)


def test_class_and_edge_losses_equal_those_of_their_authors() -> None:
    goals, _ = positives()
    assert_golden("qfl_beta2", golden("cls_s"), lambda z: focal(z[None], goals[None]).sum() / 19)
    target = torch.from_numpy(15.9 * np.random.RandomState(16).uniform(size=24))
    weight = golden("edge_weight")
    assert_golden("dfl", golden("dfl_s"), lambda e: (between_bins(e, target) * weight).sum() / 4)


def test_distances_of_points_equal_those_of_their_authors() -> None:
    weight, other = golden("edge_weight"), golden("dfl_t")
    of_edges = lambda e: (ld.divergence(e, other, 1.0) / boxes.BINS * weight).sum() / 4  # noqa: E731
    assert_golden("ld_T1", golden("dfl_s"), of_edges)
    scores, prior = golden("cls_t").sigmoid(), golden("prior_weight")
    of_scores = lambda z: (weighted_entropy(z, scores, 1.0) * prior[:, None]).sum() / 8  # noqa: E731
    assert_golden("bckd_cls", golden("cls_s"), of_scores)
    student, teacher = golden_boxes()
    gap = (golden("cls_s").sigmoid() - scores).abs().amax(dim=1)
    assert_golden("box_giou_kd", student, lambda b: box_iou.distance(b, teacher, gap) / 8)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fgd_foreground", lambda parts: parts.foreground),
        ("fgd_background", lambda parts: parts.background),
        ("fgd_attention", lambda parts: parts.channels + parts.places),
        ("fgd_global", lambda parts: parts.whole),
    ],
)
def test_focal_and_global_distillation_equals_its_authors(name: str, part) -> None:
    target = torch.full((2, 2, 5), float(PADDING), dtype=torch.float64)
    for image, found in enumerate(GOLDEN["inputs"]["boxes"]["value"]):
        for place, box in enumerate(found):
            sides = torch.tensor([100.0, 80.0, 100.0, 80.0], dtype=torch.float64)
            target[image, place] = torch.cat([torch.tensor(box).double() / sides, torch.zeros(1)])
    block = fgd.Context(6).double()
    teacher = golden("feat_t")
    assert_golden(
        name, golden("feat_s"), lambda s: part(fgd.parts_of(s, teacher, target, 0.5, block))
    )


def random_target(seed: int = 0, most: int = 6) -> Tensor:
    """Return boxes [2, most, 5] of 4 and 2 objects."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(2, most, 5)
    target[..., 4] = PADDING
    for image, objects in enumerate((4, 2)):
        low = torch.rand(objects, 2, generator=generator) * 0.6
        side = 0.1 + 0.3 * torch.rand(objects, 2, generator=generator)
        kinds = torch.randint(3, (objects, 1), generator=generator)
        target[image, :objects] = torch.cat([low, low + side, kinds], dim=1)
    return target


def random_outputs(seed: int = 0, classes: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, POINTS, classes, generator=generator)
    edges = torch.randn(2, POINTS, 4, boxes.BINS, generator=generator) * 2
    maps = tuple(torch.randn(2, 6, h, w, generator=generator) for h, w in LEVELS)
    target = random_target(seed)
    boxes_of = torch.cat(
        [target[..., :4], torch.full_like(target[..., 4:], 0.8), target[..., 4:]], 2
    )
    embedding = maps[-1].mean((2, 3))
    return Outputs(logits, embedding, maps, edges=edges, levels=LEVELS, boxes=boxes_of)


def naively_assigned(scores: Tensor, found: Tensor, points: Tensor, target: Tensor) -> Tensor:
    """Return the goals of one image by the words of the definition."""
    objects = [row for row in target if row[4] >= 0]
    claims: dict[int, list[tuple[float, int]]] = {}
    metrics = {}
    for number, row in enumerate(objects):
        inside = [
            p
            for p, (x, y) in enumerate(points.tolist())
            if row[0] < x < row[2] and row[1] < y < row[3]
        ]
        if not inside:
            centre = (row[:2] + row[2:4]) / 2
            inside = [int((points - centre).square().sum(1).argmin())]
        ious = {p: float(boxes.overlaps(row[:4], found[p])[0]) for p in inside}
        metric = {p: float(scores[p, int(row[4])]) * iou**6 for p, iou in ious.items()}
        for p in sorted(inside, key=lambda p: -metric[p])[:TOP]:
            if metric[p] > 0:
                claims.setdefault(p, []).append((ious[p], number))
                metrics[p, number] = metric[p]
    goals = torch.zeros_like(scores)
    owned = {p: max(claim) for p, claim in claims.items()}
    for number, row in enumerate(objects):
        mine = {p: iou for p, (iou, owner) in owned.items() if owner == number}
        if mine:
            most = max(metrics[p, number] for p in mine)
            for p in mine:
                goals[p, int(row[4])] = metrics[p, number] / most * max(mine.values())
    return goals


@pytest.mark.parametrize("seed", range(5))
def test_points_are_assigned_by_the_definition(seed: int) -> None:
    target, outputs = random_target(seed), random_outputs(seed)
    points, _ = boxes.points_of(LEVELS, outputs.logits)
    found = boxes.boxes_of(outputs.edges, LEVELS)
    goals = assign(outputs.logits.sigmoid(), found, points, target).scores
    for image in range(2):
        wanted = naively_assigned(
            outputs.logits[image].sigmoid(), found[image], points, target[image]
        )
        torch.testing.assert_close(goals[image], wanted, rtol=1e-5, atol=1e-7)
        assert (goals[image] > 0).any()


def test_padding_changes_no_assignment_and_a_tiny_object_has_a_point() -> None:
    outputs = random_outputs()
    points, _ = boxes.points_of(LEVELS, outputs.logits)
    found = boxes.boxes_of(outputs.edges, LEVELS)
    scores = outputs.logits.sigmoid()
    few, many = (assign(scores, found, points, random_target(most=m)) for m in (6, 100))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=True))
    tiny = torch.tensor([[[0.101, 0.101, 0.102, 0.102, 1.0]]]).repeat(2, 1, 1)
    goals = assign(scores, found, points, tiny).scores
    assert ((goals > 0).sum(dim=(1, 2)) == 1).all()
    assert (goals[..., (0, 2)] == 0).all()


def test_points_in_an_ignored_object_learn_no_background() -> None:
    outputs = random_outputs()
    points, _ = boxes.points_of(LEVELS, outputs.logits)
    found = boxes.boxes_of(outputs.edges, LEVELS)
    crowd = torch.tensor([[[0.0, 0.0, 0.5, 1.0, float(ignored(1))]]]).repeat(2, 1, 1)
    weights = assign(outputs.logits.sigmoid(), found, points, crowd).weights
    assert torch.equal(weights[0] == 0, points[:, 0] < 0.5)


def test_loss_depends_on_neither_padding_nor_order_nor_a_batch_twice() -> None:
    outputs, target = random_outputs(), random_target()
    loss = TASK.loss(outputs, target)
    assert torch.equal(TASK.loss(outputs, random_target(most=50)), loss)
    shuffled = target[:, [3, 1, 0, 2, 5, 4]]
    torch.testing.assert_close(TASK.loss(outputs, shuffled), loss)
    twice = replace(
        outputs,
        logits=outputs.logits.repeat(2, 1, 1),
        edges=outputs.edges.repeat(2, 1, 1, 1),
    )
    torch.testing.assert_close(TASK.loss(twice, target.repeat(2, 1, 1)), loss)


def test_unlabelled_images_count_nowhere() -> None:
    outputs, target = random_outputs(), random_target()
    unknown = target.clone()
    unknown[1] = math.nan
    outputs.logits.requires_grad_()
    (slope,) = torch.autograd.grad(TASK.loss(outputs, unknown), outputs.logits)
    assert slope[1].abs().sum() == 0
    assert slope[0].abs().sum() > 0
    one = replace(outputs, logits=outputs.logits[:1], edges=outputs.edges[:1])
    torch.testing.assert_close(TASK.loss(outputs, unknown), TASK.loss(one, target[:1]))


@pytest.mark.parametrize("classes", [1, 3])
def test_loss_of_images_without_objects_is_finite_and_learns_background(classes: int) -> None:
    outputs = random_outputs(classes=classes)
    outputs.logits.requires_grad_()
    outputs.edges.requires_grad_()
    empty = torch.zeros(2, 1, 5)
    empty[..., 4] = PADDING
    loss = Detection("abc"[:classes]).loss(outputs, empty)
    of_scores, of_edges = torch.autograd.grad(loss, [outputs.logits, outputs.edges])
    assert loss.isfinite()
    assert (of_scores > 0).all()
    assert (of_edges == 0).all()


def test_the_true_boxes_have_the_least_loss() -> None:
    """Edges that end at the object, and the goals as scores, leave what DFL and QFL leave."""
    target = torch.tensor([[[0.1, 0.125, 0.5, 0.625, 1.0]]])
    points, cells = boxes.points_of(LEVELS, target)
    far = torch.cat([points - target[0, :, :2], target[0, :, 2:4] - points], dim=1)
    far = (far / cells.repeat(1, 2)).clamp(0, 15.9)
    bins = torch.arange(boxes.BINS)
    edges = (-20 * (far[..., None] - bins).abs())[None]
    logits = torch.full((1, POINTS, 3), -20.0)
    inside = ((points > target[0, 0, :2]) & (points < target[0, 0, 2:4])).all(dim=1)
    logits[0, inside, 1] = 20.0
    right = Outputs(logits, logits.mean(1), edges=edges, levels=LEVELS)
    wrong = replace(right, logits=-logits)
    moved = replace(right, edges=edges.roll(2, dims=3))
    assert TASK.loss(right, target) < 0.5 * TASK.loss(moved, target)
    assert TASK.loss(right, target) < 0.5 * TASK.loss(wrong, target)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_has_the_value_of_its_formula(seed: int) -> None:
    outputs, target = random_outputs(seed), random_target(seed)
    points, cells = boxes.points_of(LEVELS, outputs.logits)
    found = boxes.boxes_of(outputs.edges, LEVELS)
    scores = outputs.logits.sigmoid()
    goals = assign(scores, found, points, target)
    share = goals.scores.sum(dim=2)
    entropy = -goals.scores * scores.log() - (1 - goals.scores) * (1 - scores).log()
    of_scores = (entropy * (goals.scores - scores) ** 2).sum()
    of_boxes = generalized_box_iou_loss(found, goals.boxes, reduction="none")
    far = torch.cat([points - goals.boxes[..., :2], goals.boxes[..., 2:] - points], dim=2)
    far = (far / cells.repeat(1, 2)).clamp(0, 15.99)
    low, log = far.floor().long(), outputs.edges.log_softmax(dim=3)
    near = log.gather(3, low[..., None])[..., 0] * (low + 1 - far)
    beyond = log.gather(3, low[..., None] + 1)[..., 0] * (far - low)
    of_edges = -(near + beyond).sum(dim=2) / 4
    whole = of_scores + (share * (2 * of_boxes + 0.25 * of_edges)).sum()
    wanted = whole / max(float(share.sum()), 2)
    torch.testing.assert_close(TASK.loss(outputs, target), wanted, rtol=1e-4, atol=1e-5)


def as_answer(target: Tensor, score: float = 0.9) -> Tensor:
    """Return an answer [B, M, 7] of exactly the objects."""
    scores = torch.zeros(*target.shape[:2], 3)
    kinds = target[..., 4:].long()
    scores.scatter_(2, kinds.clamp(min=0), score * (kinds >= 0).float())
    return torch.cat([target[..., :4], scores], dim=2)


def test_perfect_boxes_score_1_and_none_0() -> None:
    target = random_target()
    meter = AveragePrecision(3)
    meter.add(as_answer(target), target)
    assert meter.value() == pytest.approx(1.0)
    assert meter.details().metrics[MAP.key] == pytest.approx(1.0)
    meter.reset()
    meter.add(as_answer(target, score=0.0), target)
    assert meter.value() == 0.0 == TASK.chance(target)


def noisy(target: Tensor, seed: int = 0) -> Tensor:
    """Return an answer with moved objects and false ones, at random scores."""
    generator = torch.Generator().manual_seed(seed)
    answer = as_answer(target, score=1.0).repeat(1, 3, 1)
    answer[..., :4] += 0.03 * torch.randn((*answer.shape[:2], 4), generator=generator)
    answer[..., 4:] *= 0.3 + 0.7 * torch.rand((*answer.shape[:2], 3), generator=generator)
    false = random_target(seed + 50)
    return torch.cat([answer, 0.6 * as_answer(false)], dim=1)


def test_the_metric_does_not_depend_on_batches_or_on_the_scale_of_scores() -> None:
    target = torch.cat([random_target(seed) for seed in range(4)])
    answer = torch.cat([noisy(random_target(seed), seed) for seed in range(4)])
    values = []
    for size, power in ((8, 1), (3, 1), (8, 2)):
        scaled = torch.cat([answer[..., :4], answer[..., 4:] ** power * 0.9], dim=2)
        meter = AveragePrecision(3, MAP.key)
        for part in torch.arange(8).split(size):
            meter.add(scaled[part], target[part])
        values.append(meter.value())
    assert 0.1 < values[0] < 0.9
    assert values == pytest.approx([values[0]] * 3)


def test_ignored_objects_count_neither_way_and_unlabelled_images_are_passed_over() -> None:
    target = random_target()
    answer = as_answer(target)
    crowd = target.clone()
    crowd[0, 0, 4] = ignored(target[0, 0, 4])
    meter = AveragePrecision(3)
    meter.add(answer, crowd)
    assert meter.value() == pytest.approx(1.0)
    meter.reset()
    unknown = target.clone()
    unknown[1] = math.nan
    meter.add(answer, unknown)
    assert meter.value() == pytest.approx(1.0)
    meter.reset()
    unknown[0] = math.nan
    meter.add(answer, unknown)
    with pytest.raises(DataError, match="no boxes"):
        meter.value()


def test_the_noise_is_that_of_drawing_images_again() -> None:
    """Half of the images are right and half are missed: the AP of a draw is its recall."""
    count = 40
    target = torch.zeros(count, 1, 5)
    target[:] = torch.tensor([0.2, 0.2, 0.6, 0.6, 0.0])
    answer = as_answer(target)
    answer[::2, :, 4:] = 0
    meter = AveragePrecision(1)
    meter.keep_images(count)
    meter.add(answer[..., :5], target)
    details = meter.details()
    error = math.sqrt(details.image_variances[MAP50.key] / count)
    assert error == pytest.approx(math.sqrt(0.25 / (count - 1)), rel=0.15)
    assert details.scores.errors[0] == pytest.approx(error, rel=1e-6)
    assert details.scores.shares == (1.0,)


def test_one_object_keeps_one_box() -> None:
    box = torch.tensor([0.2, 0.2, 0.6, 0.6])
    near = box + 0.01
    answer = torch.tensor([[[*box, 0.9, 0.0], [*near, 0.8, 0.0], [*near, 0.1, 0.7]]])
    (found,) = boxes.shown(answer)
    assert found[:, 4:].tolist() == [[pytest.approx(0.9), 0.0], [pytest.approx(0.7), 1.0]]


def rasterised(target: Tensor, height: int, width: int) -> Tensor:
    """Return bool [B, M, H, W]: the pixels whose centres lie in each box."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    across = (x > target[..., :1]) & (x < target[..., 2:3])
    down = (y > target[..., 1:2]) & (y < target[..., 3:4])
    return down[..., :, None] & across[..., None, :]


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_move_as_the_pixels(scale: float, flip: bool) -> None:
    height, width, count = 96, 128, 16
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(count, 1, 2, generator=generator) * 0.5
    target = torch.cat([low, low + 0.3, torch.zeros(count, 1, 1)], dim=2)
    images = (rasterised(target, height, width) * 255).byte()
    augment = Augment(pad=12, flip=flip, scale=scale)
    index = torch.arange(count)
    shown = augmented(ImageSet(images, target), index, 5, seed=1, augment=augment)[:, 0] > 127
    seeds = view_seeds(5, seed=1, augment=augment, count=count, device=CPU)
    moved = boxes_moved(target, index, seeds, augment, (height, width))
    wanted = rasterised(moved, height, width)[:, 0]
    inner, outer = (shown & wanted).sum((1, 2)), (shown | wanted).sum((1, 2))
    assert (inner / outer.clamp(min=1))[outer > 0].min() > 0.9
    assert (inner.sum() / outer.sum()) > 0.97
    assert not torch.equal(moved, target)
    for part in index.split(5):
        assert torch.equal(boxes_moved(target, part, seeds, augment, (height, width)), moved[part])


def test_a_view_without_moves_leaves_boxes_as_they_are() -> None:
    target, augment = random_target(), Augment(pad=0, flip=False)
    seeds = view_seeds(1, seed=0, augment=augment, count=2, device=CPU)
    moved = boxes_moved(target, torch.arange(2), seeds, augment, (96, 128))
    torch.testing.assert_close(moved, target)


def test_what_is_hardly_seen_is_ignored_and_what_is_outside_is_gone() -> None:
    edge = torch.tensor([[[0.0, 0.0, 0.04, 0.04, 2.0], [0.4, 0.4, 0.6, 0.6, 1.0]]]).repeat(64, 1, 1)
    augment = Augment(pad=8, flip=False)
    seeds = view_seeds(1, seed=0, augment=augment, count=64, device=CPU)
    moved = boxes_moved(edge, torch.arange(64), seeds, augment, (100, 100))
    area = (moved[..., 2:4] - moved[..., :2]).prod(dim=2) / 0.04**2
    codes = moved[:, 0, 4]
    assert (codes[area[:, 0] == 0] == PADDING).all()
    assert (codes[(area[:, 0] > 0.001) & (area[:, 0] < 0.249)] == ignored(2)).all()
    assert (codes[area[:, 0] > 0.26] == 2).all()
    assert {PADDING, ignored(2), 2} == set(codes.int().tolist())
    assert (moved[:, 1, 4] == 1).all()


@pytest.mark.parametrize("change", [{"mix": "cutmix"}, {"policy": "rand"}, {"area": 0.5}])
def test_augmentation_that_boxes_do_not_follow_is_refused(change: dict) -> None:
    augment = replace(Augment(pad=0, flip=False), **change)
    seeds = view_seeds(1, seed=0, augment=augment, count=2, device=CPU)
    with pytest.raises(DataError, match="boxes follow"):
        boxes_moved(random_target(), torch.arange(2), seeds, augment, (96, 128))


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "convnext"])
@pytest.mark.parametrize(
    "knobs", [{}, {"head.neck": "pan", "head.convs": "dense"}, {"head.finest": 4, "head.depth": 0}]
)
def test_a_detector_answers_with_the_boxes_of_its_edges(family: str, knobs: dict) -> None:
    spec = StudentSpec(family=family, knobs={**SMALL, **knobs})
    network = TASK.network(spec, channels=3, size=(96, 128)).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        answer, outputs = network(image), network.features(image)
    first = (24, 32) if knobs.get("head.finest") == 4 else (12, 16)
    assert outputs.levels[0] == first
    assert outputs.levels[-1] == (3, 4)
    assert answer.shape == (1, sum(h * w for h, w in outputs.levels), 7)
    torch.testing.assert_close(answer[..., :4], boxes.boxes_of(outputs.edges, outputs.levels))
    torch.testing.assert_close(answer[..., 4:], outputs.logits.sigmoid())
    sides = answer[..., 2:4] - answer[..., :2]
    cells = boxes.points_of(outputs.levels, answer)[1]
    assert (sides / cells).median() == pytest.approx(4, abs=1)
    assert answer[..., 4:].mean() == pytest.approx(0.01, abs=0.005)
    assert count(network, input_shape=(3, 96, 128))[0] > 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"head.finest": 16}, "finest 16 is not one of 8, 4"),
        ({"head.kind": "fpn"}, "'fpn' is for segmentation, not for detection"),
        ({"head.deep": 2}, "no knob 'deep' .did you mean 'depth'"),
    ],
)
def test_a_wrong_head_is_refused(knobs: dict, message: str) -> None:
    spec = StudentSpec(family="resnet", knobs={**SMALL, **knobs})
    with pytest.raises(SpecError, match=message):
        TASK.network(spec, channels=3, size=(96, 128))


def test_edges_in_cells_are_decoded_at_each_level() -> None:
    edges = torch.full((1, POINTS, 4, boxes.BINS), -50.0)
    edges[..., 3] = 50.0
    found = boxes.boxes_of(edges, LEVELS)[0]
    x, y = 0.5 / 10, 0.5 / 8
    assert found[0].tolist() == pytest.approx([x - 0.3, y - 3 / 8, x + 0.3, y + 3 / 8], abs=1e-6)
    assert found[80].tolist() == pytest.approx([0.1 - 0.6, 0.125 - 0.75, 0.7, 0.875], abs=1e-6)


def of(method: str, **knobs: object):
    loss = methods.get(method)(**knobs)
    loss.prepare(random_outputs(1), random_outputs(2), Setting())
    return loss


@pytest.mark.parametrize("method", ["det_kd", "box_iou", "ld"])
def test_equal_detectors_have_no_distance(method: str) -> None:
    student, target = random_outputs(1), random_target()
    for part in (student.logits, student.edges):
        part.requires_grad_()
    loss = of(method)(student, student.map(torch.Tensor.detach), target)
    slopes = torch.autograd.grad(loss, [student.logits, student.edges], allow_unused=True)
    assert loss.abs() < 1e-6
    assert all(slope is None or slope.abs().max() < 1e-6 for slope in slopes)


def paired(method: str, seed: int = 1, images: int = 2) -> tuple:
    """Return what a method compares: outputs, or lists of maps."""
    sides = [
        random_outputs(seed + i).map(lambda part: part[:images].detach().requires_grad_())
        for i in (0, 1)
    ]
    return tuple(sides) if methods.get(method).need == "outputs" else tuple(s.stages for s in sides)


OWN = [name for name in methods.names() if methods.get(name).tasks]


def prepared(method: str):
    torch.manual_seed(0)
    loss = methods.get(method)()
    loss.prepare(*paired(method), Setting())
    return loss.eval()


@pytest.mark.parametrize("method", OWN)
def test_the_gradient_reaches_the_student_and_never_the_teacher(method: str) -> None:
    student, teacher = paired(method)
    prepared(method)(student, teacher, random_target()).backward()
    tensors = [s if isinstance(s, tuple) else s.tensors() for s in (student, teacher)]
    assert any(part.grad is not None and part.grad.abs().sum() > 0 for part in tensors[0])
    assert all(part.grad is None for part in tensors[1])


@pytest.mark.parametrize("method", OWN)
def test_the_order_of_the_batch_does_not_matter(method: str) -> None:
    student, teacher = paired(method)
    loss, target = prepared(method), random_target()
    turned = [
        s.map(lambda part: part.flip(0)) if isinstance(s, Outputs) else [m.flip(0) for m in s]
        for s in (student, teacher)
    ]
    torch.testing.assert_close(loss(*turned, target.flip(0)), loss(student, teacher, target))


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("case", ["one image", "no objects", "constant", "no labels"])
def test_a_loss_is_finite_and_so_is_its_gradient(method: str, case: str) -> None:
    images = 1 if case == "one image" else 2
    student, teacher = paired(method, images=images)
    if case == "constant":
        for side in (student, teacher):
            for part in side if isinstance(side, tuple) else side.tensors():
                part.data.fill_(0.5)
    target = random_target()[:images]
    if case == "no objects":
        target = torch.tensor([[0.0, 0.0, 0.0, 0.0, PADDING]]).repeat(2, 1, 1)
    if case == "no labels":
        target = torch.full_like(target, math.nan)
    loss = prepared(method)(student, teacher, target)
    assert loss.isfinite()
    loss.backward()
    parts = student if isinstance(student, tuple) else student.tensors()
    assert all(part.grad is None or part.grad.isfinite().all() for part in parts)


@pytest.mark.parametrize("method", OWN)
def test_an_impossible_number_is_refused_by_knob_and_value(method: str) -> None:
    for knob, argument in inspect.signature(methods.get(method)).parameters.items():
        if isinstance(argument.default, bool):
            wrong: list = [1, "hot"]
        else:
            wrong = [-1, math.nan, math.inf, "hot"] + ([] if knob == "beta" else [0])
        for value in wrong:
            with pytest.raises(SpecError, match=rf"{method}\.{knob}: {value!r} is not"):
                methods.get(method)(**{knob: value})


@pytest.mark.parametrize("method", ["det_kd", "box_iou", "ld", "score_l2"])
def test_networks_that_are_no_detectors_are_refused(method: str) -> None:
    logits = torch.randn(2, 3)
    classifier = Outputs(logits, torch.randn(2, 8), (torch.randn(2, 6, 8, 10),))
    for sides in ((random_outputs(), classifier), (random_outputs(), [logits])):
        with pytest.raises(SpecError, match=f"method {method} compares"):
            methods.get(method)().prepare(*sides, Setting())


@pytest.mark.parametrize("method", ["det_kd", "box_iou", "ld", "score_l2"])
def test_a_batch_twice_has_the_same_loss(method: str) -> None:
    loss, target = of(method), random_target()
    student, teacher = random_outputs(1), random_outputs(2)
    twice = lambda found: found.map(lambda part: torch.cat([part, part]))  # noqa: E731
    once = loss(student, teacher, target)
    assert once > 0
    torch.testing.assert_close(loss(twice(student), twice(teacher), target.repeat(2, 1, 1)), once)


def test_methods_have_the_values_of_their_formulas() -> None:
    student, teacher, target = random_outputs(1), random_outputs(2), random_target()
    mine, theirs = student.logits.sigmoid(), teacher.logits.sigmoid()
    objects = theirs.amax(dim=2)
    total = max(float(objects.sum()), 2)
    entropy = -theirs * mine.log() - (1 - theirs) * (1 - mine).log()
    wanted = (entropy * (theirs - mine).abs()).sum() / total
    torch.testing.assert_close(of("det_kd")(student, teacher, target), wanted)
    apart = generalized_box_iou_loss(
        *(boxes.boxes_of(side.edges, LEVELS) for side in (student, teacher)), reduction="none"
    )
    wanted = ((theirs - mine).abs().amax(dim=2) * apart).sum() / total
    found = of("box_iou", guard=False)(student, teacher, target)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    log, goal = (side.edges.log_softmax(dim=3) / 1 for side in (student, teacher))
    each = (goal.exp() * (goal - log)).sum(dim=3).mean(dim=2)
    wanted = (objects * each).sum() / objects.sum()
    torch.testing.assert_close(of("ld")(student, teacher, target), wanted)


def test_levels_are_compared_by_the_formulas() -> None:
    student, teacher, target = random_outputs(1), random_outputs(2), random_target()
    objects = teacher.logits.sigmoid().amax(dim=2).split([80, 20], dim=1)
    loss, wanted = of("score_l2"), 0
    for adapter, s, t, weight in zip(
        loss.adapters, student.stages, teacher.stages, objects, strict=True
    ):
        weight = weight.reshape(2, *t.shape[2:])
        wanted += (weight * (adapter(s) - t).square().mean(dim=1)).sum() / weight.sum()
    torch.testing.assert_close(loss(student, teacher, target), wanted)
    focal_and_global = prepared("fgd")
    wanted = 0
    for s, t, block in zip(student.stages, teacher.stages, focal_and_global.blocks, strict=True):
        scale, (count, high, wide) = 0.3 / t.square().mean().sqrt(), s.shape[1:]
        parts = fgd.parts_of(scale * s, scale * t, target, 0.5, block)
        wanted += (0.26 * (parts.foreground + parts.channels) + 0.13 * parts.background) / count
        wanted += 17 * parts.places / (high * wide) + 21 * parts.whole / (count * high * wide)
    found = focal_and_global(student.stages, teacher.stages, target)
    torch.testing.assert_close(found, wanted)
    larger = [[10 * maps for maps in side.stages] for side in (student, teacher)]
    torch.testing.assert_close(focal_and_global(*larger, target), found)


def test_a_constant_on_all_bins_changes_no_edge() -> None:
    student, teacher = random_outputs(1), random_outputs(2)
    moved = replace(student, edges=student.edges + 3)
    loss = of("ld", temperature=2.0)
    torch.testing.assert_close(
        loss(moved, teacher, random_target()), loss(student, teacher, random_target())
    )


def test_a_teacher_of_another_grid_teaches_scores_and_boxes_but_no_edges() -> None:
    student = random_outputs(1)
    levels = ((16, 20), (8, 10), (4, 5))
    logits = torch.randn(2, 420, 3)
    edges = torch.randn(2, 420, 4, boxes.BINS)
    teacher = Outputs(logits, logits.mean(1), edges=edges, levels=levels)
    for method in ("det_kd", "box_iou"):
        loss = methods.get(method)()
        loss.prepare(student, teacher, Setting())
        assert loss(student, teacher, random_target()) > 0
    same = methods.get("det_kd")()
    same.prepare(student, teacher, Setting())
    equal = replace(student, logits=logits[:, 320:])
    assert same(equal, teacher, random_target()) < 1e-6
    turned = replace(random_outputs(2), levels=((10, 8), (5, 4)))  # as many points
    for other in (teacher, turned):
        with pytest.raises(SpecError, match="equal grids"):
            methods.get("ld")().prepare(student, other, Setting())


def test_a_dilated_body_gives_levels_of_equal_strides() -> None:
    spec = StudentSpec(family="resnet", knobs={**SMALL, "head.output_stride": 16})
    network = TASK.network(spec, channels=3, size=(96, 128)).eval()
    with torch.no_grad():
        outputs = network.features(torch.randn(1, 3, 96, 128))
    assert outputs.levels == ((12, 16), (6, 8), (6, 8))
    assert network(torch.randn(1, 3, 96, 128)).shape == (1, 288, 7)


def test_a_guarded_box_learns_only_from_a_better_one() -> None:
    student, teacher, target = random_outputs(1), random_outputs(2), random_target()
    student.edges.requires_grad_()
    found = boxes.boxes_of(student.edges, LEVELS)
    theirs = boxes.boxes_of(teacher.edges, LEVELS)

    def best(found: Tensor) -> Tensor:
        each = [boxes.overlaps(found, target[:, m, None, :4])[0] for m in range(target.shape[1])]
        known = target[..., 4].T[..., None] >= 0
        return torch.where(known, torch.stack(each), 0).amax(dim=0)

    worse = best(theirs) <= best(found)
    (slope,) = torch.autograd.grad(of("box_iou")(student, teacher, target), student.edges)
    assert (slope[worse] == 0).all()
    assert slope.abs().sum() > 0
    (slope,) = torch.autograd.grad(
        of("box_iou", guard=False)(student, teacher, target), student.edges
    )
    assert slope[worse].abs().sum() > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    root = tmp_path_factory.mktemp("shapes")
    detection_data.write(root / "shapes")
    return datasets.load(str(root / "shapes"), cache_dir=root / "cache")


def model(data: ImageData, channels: int = 16, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    knobs = {**SMALL, "head.channels": channels}
    return build_student(StudentSpec(family="resnet", knobs=knobs), data)


@pytest.mark.parametrize("method", methods.names())
def test_each_method_learns_or_is_refused_with_its_reason(data: ImageData, method: str) -> None:
    task = tasks.of(data)
    student, teacher = model(data), model(data, channels=24, seed=1)
    images, labels = data.train.at(slice(4)), data.train.labels[:4]
    sides = [
        Side(outputs=m.example(images, need=frozenset({"stages"})), resolution=data.size)
        for m in (student, teacher)
    ]
    spec, loss = DistillSpec(method=method), methods.get(method)
    reason = loss.unfit_for(task.name)
    if not reason and loss.need == "logits":
        reason = "no class logits"
    if reason or (loss.labels != "unused" and not loss.tasks and method != "none"):
        with pytest.raises(SpecError, match=reason or "no class logits"):
            Distiller(spec, task=task, student=sides[0], teachers=sides[1:])
        return
    distiller = Distiller(spec, task=task, student=sides[0], teachers=sides[1:])
    taught = teacher.freeze().features(images)
    if "boxes" in loss.reads:
        scored = torch.cat([labels[..., :4], 0.8 + 0 * labels[..., :1], labels[..., 4:]], dim=2)
        taught = replace(taught, boxes=scored)
    found = distiller(student.features(images), [taught], labels)
    assert torch.isfinite(found["loss"])
    found["loss"].backward()
    slopes = [w.grad for w in student.parameters() if w.grad is not None]
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert sum(float(slope.abs().sum()) for slope in slopes) > 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_cached_rows_under_a_moved_view_are_those_of_the_live_teacher(
    data: ImageData, share: float
) -> None:
    teacher, need = model(data).freeze(), frozenset({"edges", "stages"})
    cache = TeacherOutputs(teacher, Feed(data.train, CPU), view_seed=3)
    augment = replace(data.augment, scale=0.4, mosaic=share)
    index = torch.tensor([7, 2, 11])
    stored = cache.rows(index, index, 4, need=need, augment=augment)
    assert stored is not None
    live = cache.live(augmented(data.train, index, 4, seed=3, augment=augment), need=need)
    for mine, other in zip(stored.tensors(), live.tensors(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_segmenter_teaches_a_detector_by_its_maps(data: ImageData) -> None:
    """Across tasks: equal strides are paired, whatever the head above them is for."""
    spec = StudentSpec(family="resnet", knobs={"width": 0.5, "depth": 4})
    torch.manual_seed(1)
    segmenter = tasks.get("segmentation")("abcde").network(spec, channels=3, size=data.size)
    teacher = Model("segmenter", segmenter, model(data).preprocess).freeze()
    student, images = model(data), data.train.at(slice(4))
    student_side, teacher_side = (
        Side(outputs=m.example(images, need=frozenset({"stages"})), resolution=data.size)
        for m in (student, teacher)
    )
    for method in ("at", "cwd", "pkd"):
        distiller = Distiller(
            DistillSpec(method=method, mapping="even"),
            task=tasks.of(data),
            student=student_side,
            teachers=[teacher_side],
        )
        found = distiller(
            student.features(images), [teacher.features(images)], data.train.labels[:4]
        )
        (slope,) = torch.autograd.grad(found[method], student.network.stem[0].weight)
        assert slope.abs().sum() > 0


def test_the_data_choose_the_task_and_its_head(data: ImageData) -> None:
    task = tasks.of(data)
    assert isinstance(task, Detection)
    assert task.metric == MAP50
    assert heads.DEFAULTS[task.name] == "gfl"
    assert isinstance(
        task.network(StudentSpec(family="resnet", knobs=SMALL), channels=3, size=data.size),
        detector.Detector,
    )
