"""Metrics of classes that are not alike, their noise and chance, and the weights of a loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from toy_data import toy_data

from kdsearch import tasks
from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.study.chance import (
    by_class,
    constant_answer,
    student_at_chance,
    teacher_at_chance,
)
from kdsearch.tasks import ACCURACY, Details
from kdsearch.tasks.classification import BALANCED, MACRO_F1, Classification

CPU = torch.device("cpu")
NAMES = [f"c{i}" for i in range(7)]
KEYS = ("accuracy", "balanced_accuracy", "top5", "macro_f1")


def drawn(images: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are right at times, and labels of which most are of one class."""
    torch.manual_seed(0)
    labels = (torch.rand(images) ** 3 * len(NAMES)).long()
    return torch.randn(images, len(NAMES)) + 2 * F.one_hot(labels, len(NAMES)), labels


def details_of(logits: torch.Tensor, labels: torch.Tensor, key: str = "") -> tuple[float, Details]:
    meter = Classification(NAMES, key).meter(CPU)
    for part in torch.arange(len(labels)).split(64):
        meter.add(logits[part], labels[part])
    return meter.value(), meter.details()


def test_metrics_are_those_of_scikit_learn() -> None:
    logits, labels = drawn()
    best = logits.argmax(dim=1)
    expected = {
        "accuracy": float((best == labels).double().mean()),
        "balanced_accuracy": balanced_accuracy_score(labels, best),
        "macro_f1": f1_score(labels, best, average="macro"),
        "top5": top_k_accuracy_score(labels, logits, k=5, labels=range(len(NAMES))),
    }
    for key in KEYS:
        value, found = details_of(logits, labels, key)
        assert value == pytest.approx(expected[key])
        assert found.metrics == pytest.approx(expected)


def test_details_count_by_class_and_leave_out_unlabelled_images() -> None:
    logits, labels = drawn()
    labels[::7] = -1
    _, found = details_of(logits, labels)
    known = labels >= 0
    assert sum(found.images) == sum(found.answered) == int(known.sum())
    assert found.images == tuple(labels[known].bincount(minlength=7).tolist())
    confusion = torch.tensor(found.confusion)
    assert tuple(confusion.diagonal().tolist()) == found.right
    assert tuple(confusion.sum(dim=1).tolist()) == found.images
    assert tuple(confusion.sum(dim=0).tolist()) == found.answered


def test_a_task_without_names_counts_the_classes_of_its_answers() -> None:
    logits, labels = drawn()
    meter = Classification().meter(CPU)
    for part in torch.arange(len(labels)).split(64):
        meter.add(logits[part], labels[part])
    assert meter.details() == details_of(logits, labels)[1]


def test_the_confusion_of_many_classes_is_left_out() -> None:
    meter = Classification([str(i) for i in range(100)]).meter(CPU)
    meter.add(torch.eye(100), torch.arange(100))
    assert meter.details().confusion == ()
    assert meter.details().right == (1,) * 100


@pytest.mark.parametrize(("counts", "key"), [((95, 5), "accuracy"), ((190, 10), "accuracy")])
def test_the_majority_trap_is_at_chance(counts: tuple[int, int], key: str) -> None:
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    always_first = torch.tensor([[1.0, 0.0]]).repeat(len(labels), 1)
    task = Classification(["ok", "defect"], key)
    meter = task.meter(CPU)
    meter.add(always_first, labels)
    answer = constant_answer(meter.details(), task.classes)
    assert meter.value() == pytest.approx(0.95)
    assert answer == "it answers 'ok' for every image"
    assert meter.details().metrics["balanced_accuracy"] == 0.5
    chance = task.chance(labels)
    warning = student_at_chance(ACCURACY, 0.95, chance, len(labels), "trial 3", answer)
    assert warning.startswith("Do not use trial 3: its validation accuracy, 95.00 %, is no better")
    assert "Here it answers 'ok' for every image." in warning
    assert teacher_at_chance(ACCURACY, 0.95, chance, len(labels), answer).startswith(
        "The teacher teaches nothing"
    )


def test_what_is_above_chance_has_no_warning() -> None:
    assert student_at_chance(ACCURACY, 0.99, 0.5, 1000, "it") == ""
    assert teacher_at_chance(ACCURACY, 0.99, 0.5, 1000) == ""


@pytest.mark.parametrize("key", KEYS)
def test_chance_is_the_best_of_all_constant_answers(key: str) -> None:
    _, labels = drawn()
    task, best = Classification(NAMES, key), 0.0
    for only in range(len(NAMES)):
        order = torch.zeros(len(NAMES))
        order[only] = 10.0
        # The classes after the first are in the order of their counts, as top-5 has five answers.
        order += labels.bincount(minlength=7) / len(labels)
        meter = task.meter(CPU)
        meter.add(order.repeat(len(labels), 1), labels)
        best = max(best, meter.value())
    assert task.chance(labels) == pytest.approx(best)


def test_rare_classes_make_a_mean_over_classes_noisier() -> None:
    labels = torch.tensor([0] * 190 + [1] * 10)
    torch.manual_seed(0)
    metric = Classification(["ok", "defect"], BALANCED.key).metric_on(labels)
    right = torch.rand(20_000, len(labels)) < 0.8
    values = (right[:, labels == 0].double().mean(1) + right[:, labels == 1].double().mean(1)) / 2
    assert metric.standard_error(0.8, len(labels)) == pytest.approx(float(values.std()), rel=0.05)
    assert metric.standard_error(0.8, 200) > 2 * ACCURACY.standard_error(0.8, 200)
    assert replace(metric, design_effect=1.0) == BALANCED


def test_balanced_classes_change_no_noise() -> None:
    labels = torch.arange(7).repeat(30)
    metric = Classification(NAMES, MACRO_F1.key).metric_on(labels)
    assert metric.design_effect == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("key", "names", "message"),
    [
        ("recall", NAMES, "--metric recall: unknown for classification; known: accuracy, balanced"),
        ("balanced_acuracy", NAMES, "did you mean 'balanced_accuracy'"),
        ("top5", NAMES[:5], "of 5 classes every image has the right one"),
    ],
)
def test_a_metric_that_says_nothing_is_refused(key: str, names: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Classification(names, key)


def test_the_data_name_the_metric_of_their_task() -> None:
    data = replace(toy_data(), metric="macro_f1")
    assert tasks.of(data).metric == MACRO_F1
    assert tasks.of(replace(data, metric="")).metric == ACCURACY


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_weights_keep_the_mean_loss_and_are_powers_of_shares(power: float) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10 + [-1] * 5)
    weights = Classification(["a", "b", "c"]).class_weights(labels, power)
    counts = torch.tensor([60.0, 30.0, 10.0])
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0)
    assert (weights[1] / weights[0]).item() == pytest.approx(2**power)
    assert (weights[2] / weights[0]).item() == pytest.approx(6**power)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_is_the_same_for_labels_and_for_shares(smoothing: float) -> None:
    logits, labels = drawn(20)
    task, weights = Classification(NAMES), torch.arange(1.0, 8.0)
    outputs = Outputs(logits, logits)
    by_index = task.loss(outputs, labels, smoothing=smoothing, class_weights=weights)
    shares = F.one_hot(labels, 7).float()
    by_share = task.loss(outputs, shares, smoothing=smoothing, class_weights=weights)
    assert by_index.item() == pytest.approx(by_share.item(), rel=1e-5)
    by_hand = (F.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
    if not smoothing:
        assert by_index.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_sentence_on_classes_names_the_worst_and_those_without_images() -> None:
    found = Details(
        metrics={"balanced_accuracy": 0.5}, images=(10, 4, 0), right=(9, 1, 0), answered=(12, 2, 0)
    )
    assert by_class(found, ["ok", "bad", "none"], "test") == (
        "By class on test: balanced accuracy 50.00 %; lowest: bad (25 % of 4), ok (90 % of 10); "
        "1 of 3 classes have no image there."
    )
    assert by_class(None, ["ok"], "test") == ""
