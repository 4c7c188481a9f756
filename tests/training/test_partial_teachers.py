"""Teachers that know some classes teach these; values are computed by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.models.features import Outputs
from kdsearch.spec import DistillSpec
from kdsearch.tasks.classification import Classification
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.distiller.coverage import refusal

CLASSES = ("a", "b", "c")
TARGET = torch.tensor([1, 0])
# Two images, three classes. On the classes a and c alone, at temperature 1, the student gives
# softmax(0, 0) = (1/2, 1/2) and softmax(0, log 3) = (1/4, 3/4).
STUDENT = torch.tensor([[0.0, 5.0, 0.0], [0.0, -7.0, math.log(3.0)]])
# A teacher of a and c: (1/2, 1/2) and (3/4, 1/4).
SOME = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])


class Knowing(NamedTuple):
    classes: tuple[int, ...] | None
    teaches: frozenset[str] | None = None


def outputs(logits: torch.Tensor, width: int = 4) -> Outputs:
    torch.manual_seed(0)
    count = len(logits)
    return Outputs(logits, torch.randn(count, width), (torch.randn(count, 5, 2, 2),))


def distiller(
    spec: DistillSpec, *teachers: tuple[torch.Tensor, tuple[int, ...] | None]
) -> Distiller:
    return Distiller(
        spec,
        task=Classification(CLASSES),
        student=Side(outputs=outputs(STUDENT), resolution=8),
        teachers=[
            Side(outputs=outputs(logits), resolution=8, classes=classes)
            for logits, classes in teachers
        ],
    )


def kd(*teachers: tuple[torch.Tensor, tuple[int, ...] | None], shares: str = "equal") -> float:
    spec = DistillSpec(method="kd", alpha=1.0, teachers=shares, knobs={"temperature": 1.0})
    losses = distiller(spec, *teachers)(
        outputs(STUDENT), [outputs(logits) for logits, _ in teachers], TARGET
    )
    return float(losses["kd"])


# KL((1/2, 1/2) || (1/2, 1/2)) = 0; KL((3/4, 1/4) || (1/4, 3/4)) = 3/4 log 3 - 1/4 log 3.
BY_HAND = (0 + 0.5 * math.log(3.0)) / 2


def test_kd_is_a_softmax_over_the_shared_classes_on_both_sides() -> None:
    assert kd((SOME, (0, 2))) == pytest.approx(BY_HAND)


def test_a_class_that_the_teacher_does_not_know_gets_no_gradient_from_kd() -> None:
    student = STUDENT.clone().requires_grad_()
    spec = DistillSpec(method="kd", alpha=1.0, knobs={"temperature": 1.0})
    made = distiller(spec, (SOME, (0, 2)))
    made(outputs(student), [outputs(SOME)], TARGET)["loss"].backward()
    assert student.grad is not None
    assert not student.grad[:, 1].any()
    # d KL / d logits = (student - teacher) / B: (1/4 - 3/4) / 2 on class a of the second image.
    assert float(student.grad[1, 0]) == pytest.approx(-0.25)


def test_the_rest_is_learnt_from_labels() -> None:
    student = STUDENT.clone().requires_grad_()
    spec = DistillSpec(method="kd", alpha=0.5, knobs={"temperature": 1.0})
    made = distiller(spec, (SOME, (0, 2)))
    made(outputs(student), [outputs(SOME)], TARGET)["loss"].backward()
    assert student.grad is not None
    assert (student.grad[:, 1] != 0).all()


def test_two_teachers_of_different_classes_each_teach_theirs() -> None:
    # The second teacher knows b and c: (1/2, 1/2) twice. The student's softmax over b and c is
    # (e5, 1) / (e5 + 1) and (e-7, 3) / (e-7 + 3).
    second = torch.zeros(2, 2)
    p, q = 1 / (1 + math.exp(-5.0)), math.exp(-7.0) / (math.exp(-7.0) + 3)
    divergences = [-0.5 * math.log(4 * p * (1 - p)), -0.5 * math.log(4 * q * (1 - q))]
    expected = sum(divergences) / 2
    assert kd((second, (1, 2))) == pytest.approx(expected, rel=1e-5)
    assert kd((SOME, (0, 2)), (second, (1, 2))) == pytest.approx((BY_HAND + expected) / 2, rel=1e-5)
    weighted = kd((SOME, (0, 2)), (second, (1, 2)), shares="3,1")
    assert weighted == pytest.approx(0.75 * BY_HAND + 0.25 * expected, rel=1e-5)


def test_a_teacher_without_classes_takes_no_part_in_kd() -> None:
    nothing = torch.zeros(2, 1)
    assert kd((nothing, ()), (SOME, (0, 2))) == pytest.approx(BY_HAND)


def test_the_mean_of_divergences_has_the_gradient_of_the_ensembles_divergence() -> None:
    torch.manual_seed(3)
    both = [torch.randn(2, 3), torch.randn(2, 3)]
    grads = []
    for classes in (None, (0, 1, 2)):
        student = STUDENT.clone().requires_grad_()
        spec = DistillSpec(method="kd", alpha=1.0, knobs={"temperature": 1.0})
        made = distiller(spec, *((logits, classes) for logits in both))
        made(outputs(student), [outputs(logits) for logits in both], TARGET)["loss"].backward()
        grads.append(student.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("method", METHODS.names())
def test_features_alone_teach_every_method_that_reads_no_logits(method: str) -> None:
    reads = METHODS.get(method).reads
    assert bool(refusal(method, [Knowing(())])) == bool(reads & {"logits", "gradient"})
    assert not refusal(method, [Knowing(None)])


@pytest.mark.parametrize("method", ["kd", "dkd", "at+kd", "srrl", "ofa", "grad_cam"])
def test_a_method_on_logits_is_refused_with_its_reason(method: str) -> None:
    with pytest.raises(SpecError) as caught:
        distiller(DistillSpec(method=method), (torch.zeros(2, 1), ()))
    message = str(caught.value)
    assert "and it knows none of the classes" in message
    assert "Methods that it can teach by: at, cc, cosine" in message


def test_a_method_that_reads_labels_and_logits_needs_all_classes() -> None:
    with pytest.raises(SpecError, match="dkd needs logits of all classes"):
        distiller(DistillSpec(method="dkd"), (SOME, (0, 2)))
    for shares in ("confidence", "learned"):
        with pytest.raises(SpecError, match="compares answers for all classes"):
            distiller(DistillSpec(method="kd", teachers=shares), (SOME, (0, 2)), (STUDENT, None))


@pytest.mark.parametrize("method", ["rkd", "fitnet", "infonce", "sp"])
def test_relations_and_features_are_taught_without_classes(method: str) -> None:
    made = distiller(DistillSpec(method=method), (torch.zeros(2, 1), ()))
    teacher = outputs(torch.zeros(2, 1))
    indexed = Outputs(teacher.logits, teacher.embedding, teacher.stages, index=torch.arange(2))
    losses = made(outputs(STUDENT), [indexed], TARGET)
    assert losses["loss"].isfinite()
