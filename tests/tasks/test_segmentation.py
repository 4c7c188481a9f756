"""Segmentation: golden losses and metric, laws of loss, rows, heads, cached rows and predict.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_masks
from golden_dense import CASES, GOLDEN, assert_golden, golden
from PIL import Image

import kdsearch.data as datasets
from kdsearch import methods, tasks
from kdsearch.data.base import VOID, ImageData
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented
from kdsearch.deploy import predict
from kdsearch.deploy.closed_forms import count_shapes
from kdsearch.deploy.flops import traced_flops
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import SpecError
from kdsearch.methods.base import Setting
from kdsearch.models import dense, heads
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.spec import Candidate, DistillSpec, StudentSpec
from kdsearch.tasks.segmentation import MeanIoU, Segmentation
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.teacher_cache import TeacherOutputs

CPU = torch.device("cpu")
TASK = Segmentation(["a", "b", "c", "d", "e"])
NONE = torch.zeros(2, dtype=torch.int64)  # labels that no loss here reads
SMALL = {"width": 0.25, "depth": 4, "head.channels": 16}


def outputs(logits: torch.Tensor) -> Outputs:
    return Outputs(logits, logits.mean((2, 3)))


def generated(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares an image of MGD by positions, as its authors scale it."""
    loss = methods.get("mgd")(ratio=0.65, mask="positions")
    loss.prepare([student], [teacher], Setting())
    for layer, seed in zip(loss.generators[0][::2], (21, 22), strict=True):
        weight = 0.1 * np.random.RandomState(seed).standard_normal((6, 6, 3, 3))
        layer.weight.data = torch.from_numpy(weight)
        layer.bias.data.zero_()
    drawn = torch.from_numpy(np.random.RandomState(20).uniform(size=(2, 1, 8, 10)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda maps: 1 - drawn)
        return loss([student], [teacher], NONE) * student[0].numel()


def varied(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return IFVD over all positions, as its authors divide it."""
    labels = golden("seg_target")
    known = (labels[:, ::2, ::2] != VOID).double().mean()
    return methods.get("ifvd")()([student], [teacher], labels) * known


def rows(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mine, theirs, _ = TASK.rows(outputs(student), outputs(teacher), None)
    assert theirs is not None
    return mine.logits, theirs.logits


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("cwd_feat_tau1", lambda s, t: methods.get("cwd")(tau=1.0)([s], [t], NONE)),
        ("cwd_seg_logits_tau4", lambda s, t: methods.get("cwd")(tau=4.0)([s], [t], NONE)),
        ("pkd_one_level", lambda s, t: methods.get("pkd")()([s], [t], NONE)),
        ("mgd_lambda0.65", generated),
        ("ifvd", varied),
        ("skd_pair_scale0.5", lambda s, t: methods.get("skd")(nodes=2)([s], [t], NONE)),
        ("seg_kd_T1", lambda s, t: methods.get("kd")(temperature=1.0)(*rows(s, t), NONE)),
        ("dist_seg", lambda s, t: methods.get("dist")()(*rows(s, t), NONE)),
        ("seg_ce_upsampled", lambda s, t: TASK.loss(outputs(s), t)),
    ],
)
def test_losses_equal_those_of_their_authors(name: str, loss) -> None:
    student, other = (golden(part) for part in CASES[name]["inputs"][:2])
    assert_golden(name, student, lambda found: loss(found, other))


@pytest.mark.parametrize("size", [1, 2])
def test_the_metric_equals_the_golden_confusion(size: int) -> None:
    wanted, logits, labels = GOLDEN["miou"], golden("seg_s"), golden("seg_target")
    meter = MeanIoU(CPU, 5)
    for part in torch.arange(2).split(size):
        meter.add(logits[part], labels[part])
    assert meter.confusion.tolist() == wanted["confusion"]
    assert meter.value() == pytest.approx(wanted["miou"], rel=1e-12)
    accuracy = meter.details().metrics["pixel_accuracy"]
    assert accuracy == pytest.approx(wanted["pixel_accuracy"])


def test_a_class_without_pixels_is_left_out_of_the_mean() -> None:
    labels = torch.tensor([[[0, 0, 1, VOID]]], dtype=torch.uint8)
    meter = MeanIoU(CPU, 3)
    meter.add(torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8), labels)
    assert meter.value() == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert Segmentation("abc").chance(labels) == pytest.approx((2 / 3 + 0) / 2)


def test_a_batch_twice_leaves_the_loss_and_void_changes_nothing() -> None:
    logits, labels = golden("seg_s"), golden("seg_target")
    once = TASK.loss(outputs(logits), labels)
    twice = TASK.loss(outputs(torch.cat([logits] * 2)), torch.cat([labels] * 2))
    assert float(once) == pytest.approx(float(twice))
    void = torch.full_like(labels[:1], VOID)
    with_void = TASK.loss(outputs(torch.cat([logits, 9 * logits[:1]])), torch.cat([labels, void]))
    assert float(once) == pytest.approx(float(with_void))


def test_rows_are_pixels_at_the_finer_stride_with_their_classes() -> None:
    coarse, fine, labels = torch.rand(2, 5, 4, 5), golden("seg_t"), golden("seg_target")
    mine, theirs, classes = TASK.rows(outputs(coarse), outputs(fine), labels)
    assert theirs is not None
    assert classes is not None
    assert mine.logits.shape == theirs.logits.shape == (2 * 8 * 10, 5)
    assert torch.equal(theirs.logits[13], fine[0, :, 1, 3])
    kept = labels[:, ::2, ::2].flatten().long()
    assert torch.equal(classes[kept != VOID], kept[kept != VOID])


def test_void_rows_get_the_class_of_the_teacher() -> None:
    student, teacher, labels = golden("seg_s"), golden("seg_t"), golden("seg_target")
    _, theirs, classes = TASK.rows(outputs(student), outputs(teacher), labels)
    assert theirs is not None
    assert classes is not None
    size = max(student.shape[2:], teacher.shape[2:])
    small = torch.nn.functional.interpolate(labels[:, None].float(), size).flatten().long()
    assert (small == VOID).any()
    assert torch.equal(classes, torch.where(small == VOID, theirs.logits.argmax(1), small))
    _, _, alone = TASK.rows(outputs(student), None, labels)
    assert alone is not None
    assert set(alone[alone < 0].tolist()) == {-1}


@pytest.mark.parametrize("kind", [k for k in heads.names() if k != heads.DEFAULTS["detection"]])
@pytest.mark.parametrize("family", ["resnet", "mobilenet", "convnext"])
def test_any_head_on_any_body_is_counted_and_learns(family: str, kind: str) -> None:
    spec = StudentSpec(family=family, knobs={**SMALL, "head.kind": kind})
    network = dense.build(spec, channels=3, num_classes=5, size=(64, 96))
    found = count_shapes(network, (3, 64, 96))
    assert found is not None
    assert found.flops == traced_flops(network, (3, 64, 96))
    images = torch.rand(2, 3, 64, 96)
    logits = network(images)
    assert logits.shape[:2] == (2, 5)
    assert 64 / logits.shape[2] == 96 / logits.shape[3]
    logits.square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_heads_of_a_space_are_read_and_wrong_ones_are_named() -> None:
    params = {
        "student.family": "resnet",
        "student.head.kind": "fpn",
        "student.head.fpn.channels": 24,
    }
    spec = Candidate.from_params(params).student
    assert spec.knobs == {"head.kind": "fpn", "head.fpn.channels": 24}
    network = dense.build(spec, channels=3, num_classes=2, size=(64, 64))
    assert network.head.classify.in_channels == 24  # type: ignore[union-attr]
    for knobs, words in (
        ({"head.kind": "fpm"}, "fpn"),
        ({"head.chanels": 3}, "channels"),
        ({"head.channels": 0}, "channels 0"),
    ):
        with pytest.raises(SpecError, match=words):
            dense.build(
                StudentSpec(family="resnet", knobs=knobs), channels=3, num_classes=2, size=(64, 64)
            )
    with pytest.raises(SpecError, match="resnet, mobilenet, convnext or"):
        dense.build(StudentSpec(family="vit"), channels=3, num_classes=2, size=(64, 64))


def test_inputs_of_any_resolution_are_multiples_of_the_deepest_stride() -> None:
    assert TASK.input_size((192, 256), 0) == (192, 256)
    assert TASK.input_size((192, 256), 192) == (160, 192)
    assert TASK.input_size((384, 512), 100) == (96, 128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("toys")
    return datasets.load(str(toy_masks.write(folder / "set")), cache_dir=folder / "cache")


def model(data: ImageData, kind: str = "lraspp") -> Model:
    torch.manual_seed(0)
    return build_student(StudentSpec(family="resnet", knobs={**SMALL, "head.kind": kind}), data)


@pytest.mark.parametrize("method", methods.names())
def test_each_method_learns_or_is_refused_with_its_reason(data: ImageData, method: str) -> None:
    task = tasks.of(data)
    student, teacher = model(data, "lraspp"), model(data, "fpn")
    images, labels = data.train.at(slice(4)), data.train.labels[:4]
    student_side, teacher_side = (
        Side(outputs=m.example(images, need=frozenset({"stages"})), resolution=data.size)
        for m in (student, teacher)
    )
    unfit = methods.get(method).unfit_for(task.name)
    spec = DistillSpec(method=method)
    if unfit:
        with pytest.raises(SpecError, match=unfit):
            Distiller(spec, task=task, student=student_side, teachers=[teacher_side])
        return
    distiller = Distiller(spec, task=task, student=student_side, teachers=[teacher_side])
    found = distiller(student.features(images), [teacher.freeze().features(images)], labels)
    assert torch.isfinite(found["loss"])
    found["loss"].backward()
    assert all(torch.isfinite(w.grad).all() for w in student.parameters() if w.grad is not None)
    assert sum(float(w.grad.abs().sum()) for w in student.parameters() if w.grad is not None) > 0


def test_cached_rows_under_a_moved_view_are_those_of_the_live_teacher(data: ImageData) -> None:
    teacher = model(data).freeze()
    cache = TeacherOutputs(teacher, Feed(data.train, CPU), view_seed=3)
    augment = replace(data.augment, scale=1.0)
    index = torch.tensor([7, 2, 11])
    stored = cache.rows(index, index, 4, need=frozenset(), augment=augment)
    assert stored is not None
    live = cache.live(augmented(data.train, index, 4, seed=3, augment=augment), need=frozenset())
    torch.testing.assert_close(stored.logits, live.logits, rtol=1e-4, atol=1e-4)
    assert stored.logits.shape == (3, 3, 8, 8)


def test_the_script_writes_the_mask_that_the_task_predicts(data: ImageData, tmp_path: Path) -> None:
    student, task = model(data).freeze(), tasks.of(data)
    image = tmp_path / "scene.png"
    Image.fromarray(toy_masks.scene(12)[0]).save(image)  # the first of validation
    metadata = {
        **task.metadata(),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "image_size": "64",
        "resolution": "64",
        "channels": "3",
        "fit": "pad",
    }
    given = predict.network_input(image, metadata)
    seen = data.val.at(slice(1))
    np.testing.assert_allclose(given, student.preprocess(seen).numpy(), atol=2e-5)
    with torch.no_grad():
        answer = student.network(torch.from_numpy(given))
    words = predict.write_masks(image, answer[0].numpy(), metadata, tmp_path / "out", 2)
    large = torch.nn.functional.interpolate(answer, (64, 64), mode="bilinear").argmax(1)[0, 8:56]
    with Image.open(tmp_path / "out" / "scene-mask.png") as mask:
        assert mask.mode == "P"
        assert (np.asarray(mask) == large.numpy()).mean() > 0.999
    first = data.classes[int(large.flatten().bincount().argmax())]
    assert words.startswith(first)
    with Image.open(tmp_path / "out" / "scene-overlay.png") as overlay:
        assert overlay.size == (64, 48)
    folded = predict.mask_of(np.pad(large.numpy(), ((8, 8), (0, 0))), (64, 48), (64, 64))
    assert np.array_equal(folded, large.numpy())


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_class_weights_are_powers_of_the_shares_of_pixels_with_mean_one(power: float) -> None:
    labels = torch.full((2, 4, 5), VOID, dtype=torch.uint8)
    labels[0, 0] = 0
    labels[1, :3] = 2
    weights = Segmentation("abc").class_weights(labels, power)
    assert weights[1] == 0
    assert float(weights[0] / weights[2]) == pytest.approx(3**power)
    assert float((weights[0] * 5 + weights[2] * 15) / 20) == pytest.approx(1)


def test_class_weights_are_factors_on_the_pixels_of_a_class() -> None:
    logits, labels = golden("seg_s"), golden("seg_target")
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])
    found = TASK.loss(outputs(logits), labels, class_weights=weights)
    large = torch.nn.functional.interpolate(logits, (16, 20), mode="bilinear")
    each = torch.nn.functional.cross_entropy(
        large, labels.long().where(labels != VOID, 0), reduction="none"
    )
    known = labels != VOID
    factors = weights.double()[labels.long().where(known, 0)]
    by_hand = (each * factors)[known].sum() / known.sum()
    assert float(found) == pytest.approx(float(by_hand))
    even = TASK.loss(outputs(logits), labels, class_weights=torch.ones(5))
    assert float(even) == pytest.approx(float(TASK.loss(outputs(logits), labels)))


def sides(data: ImageData, *kinds: str) -> list[Side]:
    images = data.train.at(slice(4))
    return [Side(outputs=model(data, kind).example(images), resolution=data.size) for kind in kinds]


@pytest.mark.parametrize("method", ["cwd", "pkd", "fitnet"])
def test_methods_on_maps_compare_logits_where_the_mapping_says_so(
    data: ImageData, method: str
) -> None:
    spec = DistillSpec(method=method, mapping="logits")
    student, teacher = sides(data, "lraspp", "fpn")
    distiller = Distiller(spec, task=tasks.of(data), student=student, teachers=[teacher])
    assert distiller.needed_features == {"logits"}
    found = distiller(student.outputs, [teacher.outputs], data.train.labels[:2])[method]
    size = teacher.outputs.logits.shape[2:]
    mine = torch.nn.functional.interpolate(student.outputs.logits, size, mode="bilinear")
    by_hand = methods.get(method)()([mine], [teacher.outputs.logits], NONE)
    assert float(found) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("method", ["cwd+fitnet", "fitnet+cwd"])
def test_logits_come_after_every_stage_in_progressive_order(data: ImageData, method: str) -> None:
    knobs = {"cwd.mapping": "logits", "fitnet.mapping": "stride"}
    spec = DistillSpec(method=method, order="progressive", knobs=knobs)
    student, teacher = sides(data, "lraspp", "fpn")
    distiller = Distiller(spec, task=tasks.of(data), student=student, teachers=[teacher])
    *hints, last = sorted(distiller.terms, key=lambda term: term.window)
    depths = [term.losses[0].pairs[0][0] for term in hints]
    assert {term.name for term in hints} == {"fitnet"}
    assert len(depths) > 1
    assert depths == sorted(depths)
    assert (last.name, last.window[1]) == ("cwd", 1.0)


def test_logits_of_one_class_an_image_have_no_positions(data: ImageData) -> None:
    one = Outputs(torch.rand(2, 3), torch.rand(2, 8), (torch.rand(2, 8, 4, 4),))
    side = Side(outputs=one, resolution=data.size)
    task = tasks.get("classification")(["a", "b", "c"])
    with pytest.raises(SpecError, match="logits of all classes at each position"):
        Distiller(
            DistillSpec(method="cwd", mapping="logits"), task=task, student=side, teachers=[side]
        )
    with pytest.raises(SpecError, match="'minilm' compares attention"):
        Distiller(
            DistillSpec(method="minilm", mapping="logits"), task=task, student=side, teachers=[side]
        )


def test_ifvd_ignores_void_and_the_scale_of_maps() -> None:
    student, teacher, labels = golden("feat_s"), golden("feat_t"), golden("seg_target")
    loss = methods.get("ifvd")()
    value = loss([student], [teacher], labels)
    assert float(loss([3 * student], [teacher / 5], labels)) == pytest.approx(float(value))
    void = (labels[:, ::2, ::2] == VOID)[:, None]
    changed = torch.where(void, 7.0 + student, student)
    assert float(loss([changed], [teacher], labels)) == pytest.approx(float(value))
    assert float(loss([student], [teacher], torch.full_like(labels, VOID))) == 0


def test_void_counts_nowhere_in_a_training_by_ifvd(data: ImageData) -> None:
    """The loss of views with half of the pixels void is that of the other half alone."""
    student, teacher = sides(data, "lraspp", "fpn")
    shown = tuple(torch.rand_like(found) for found in teacher.outputs.stages)
    teacher = replace(teacher, outputs=replace(teacher.outputs, stages=shown))
    distiller = Distiller(
        DistillSpec(method="ifvd"), task=tasks.of(data), student=student, teachers=[teacher]
    )
    labels = torch.zeros(2, *data.size, dtype=torch.uint8)
    labels[:, :, : data.size[1] // 2] = VOID

    def loss(change: float) -> float:
        """Return the loss with other student maps where pixels are void."""
        maps = [found.clone() for found in student.outputs.stages]
        for found in maps:
            found[:, :, :, : found.shape[3] // 2] += change
        moved = replace(student.outputs, stages=tuple(maps))
        return float(distiller(moved, [teacher.outputs], labels)["ifvd"])

    assert loss(0.0) > 0
    assert loss(3.0) == pytest.approx(loss(0.0))
    whole = torch.zeros_like(labels)
    assert float(distiller(student.outputs, [teacher.outputs], whole)["ifvd"]) != loss(0.0)


def test_ifvd_of_one_class_an_image_compares_all_its_positions() -> None:
    student, teacher = golden("feat_s"), golden("feat_t")
    loss, masks = methods.get("ifvd")(), torch.zeros(2, 8, 10, dtype=torch.uint8)
    by_image = loss([student], [teacher], torch.tensor([3, 1]))
    assert float(by_image) == pytest.approx(float(loss([student], [teacher], masks)))
    masks[1] = VOID
    first = loss([student], [teacher], torch.tensor([3, -1]))
    assert float(first) == pytest.approx(float(loss([student], [teacher], masks)))


def test_skd_ignores_the_order_of_channels_and_their_number() -> None:
    student, teacher = golden("feat_s"), golden("feat_t")
    loss = methods.get("skd")()
    value = loss([student], [teacher], NONE)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    assert float(loss([student[:, order]], [teacher], NONE)) == pytest.approx(float(value))
    wider = torch.cat([teacher, torch.zeros_like(teacher)], dim=1)
    assert float(loss([student], [wider], NONE)) == pytest.approx(float(value))
