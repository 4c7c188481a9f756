"""Losses on logits: values by hand or by another route, the papers' invariances, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import methods
from kdsearch.errors import SpecError

B, K = 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
SEEDS = st.integers(0, 99)
NAMES = (
    "kd_standardized",
    "nkd",
    "dist",
    "hard_label",
    "function_matching",
    "wsld",
    "label_smoothing",
)


def logits(seed=0, scale=2.0):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, B, K, generator=random, dtype=torch.float64)


def softmax(z, temperature=1.0):
    z = np.exp(np.asarray(z) / temperature)
    return z / z.sum()


def close(found, expected):
    torch.testing.assert_close(float(found), float(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wsld"])  # its weight has none
def test_gradient_is_that_of_finite_differences(name):
    loss = methods.get(name)()
    student, teacher = logits()
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, TARGET), student.requires_grad_())


def test_standardized_value_by_hand():
    # [1, 2, 3] has mean 2 and std 1 (K - 1 = 2): Z = [-1, 0, 1]; [0, 6, 0] has mean 2 and variance
    # (4 + 16 + 4) / 2 = 12: Z = [-1, 2, -1] / sqrt(3)
    student, teacher = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 6.0, 0.0]]], dtype=torch.float64)
    p = softmax(np.array([-1, 2, -1]) / math.sqrt(3), 2)
    q = softmax([-1, 0, 1], 2)
    found = methods.get("kd_standardized")()(student, teacher, TARGET)
    assert float(found) == pytest.approx(4 * (p * np.log(p / q)).sum(), rel=1e-6)  # 1e-7 in Z


@given(scale=st.floats(0.1, 100), shift=st.floats(-100, 100), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_standardized_ignores_affine_changes_of_either_sides_logits(scale, shift, seed):
    loss = methods.get("kd_standardized")()
    student, teacher = logits(seed)
    torch.testing.assert_close(
        loss(scale * student + shift, teacher / scale - shift, TARGET),
        loss(student, teacher, TARGET),
        rtol=1e-4,  # the 1e-7 beside a std of 0.01
        atol=1e-6,
    )


def test_standardized_is_weighed_as_in_the_reference():
    method = methods.get("kd_standardized")
    assert method.alpha * method.weight == pytest.approx(9)
    assert 1 - method.alpha == pytest.approx(0.1)


@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (2.0, 0.5)])
def test_nkd_equals_its_sums_over_single_classes(temperature, gamma):
    student, teacher = logits()
    expected = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), TARGET, strict=True):
        expected -= softmax(t)[y] * math.log(softmax(s)[y])
        s, t = (softmax(np.delete(z, y), temperature) for z in (s, t))
        expected -= gamma * temperature**2 * sum(t * np.log(s))
    loss = methods.get("nkd")(temperature=temperature, gamma=gamma)
    close(loss(student, teacher, TARGET), expected / B)


@pytest.mark.parametrize(
    ("temperature", "beta", "gamma"), [(1.0, 1.0, 1.0), (4.0, 2.0, 0.0), (2.0, 0.0, 3.0)]
)
def test_dist_equals_numpys_correlations(temperature, beta, gamma):
    student, teacher = logits()
    s, t = (np.stack([softmax(row, temperature) for row in z.numpy()]) for z in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    loss = methods.get("dist")(temperature=temperature, beta=beta, gamma=gamma)
    torch.testing.assert_close(
        float(loss(student, teacher, TARGET)),
        float(temperature**2 * (beta * rows + gamma * columns)),
        rtol=1e-5,  # the 1e-8 in the product of the norms
        atol=0,
    )


@given(share=st.lists(st.floats(0.2, 1), min_size=B, max_size=B), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_dist_ignores_scale_and_shift_of_each_row_of_probabilities(share, seed):
    student, teacher = logits(seed)
    share = torch.tensor(share, dtype=torch.float64)[:, None]
    changed = share * F.softmax(student, dim=1) + (1 - share) / K
    loss = methods.get("dist")(gamma=0.0)
    torch.testing.assert_close(
        loss(changed.log(), teacher, TARGET), loss(student, teacher, TARGET), rtol=1e-4, atol=1e-5
    )


def test_dist_ignores_a_shift_of_each_class_over_the_batch():
    student, teacher = logits()
    p = F.softmax(student, dim=1)
    shift = torch.tensor([0.3, -0.1, 0.2, 0.0, -0.4], dtype=torch.float64)  # sums to 0
    changed = 0.5 * p + 0.5 * p.mean(0) + 0.1 * p.min() * shift
    loss = methods.get("dist")(beta=0.0)
    torch.testing.assert_close(
        loss(changed.log(), teacher, TARGET), loss(student, teacher, TARGET), rtol=1e-4, atol=1e-5
    )


def test_dist_is_next_to_nothing_at_equality_and_greatest_at_opposites():
    student, _ = logits()
    loss = methods.get("dist")(gamma=0.0)
    p = F.softmax(student, dim=1)
    assert 0 <= loss(student, student, TARGET) < 1e-5
    close(loss((0.4 - 0.2 * p).log(), student, TARGET).round(decimals=5), 2)


def test_dist_that_compares_nothing_is_refused():
    with pytest.raises(SpecError, match="compare nothing; set one above 0"):
        methods.get("dist")(beta=0.0, gamma=0.0)


def test_hard_label_is_surprise_at_the_teachers_choice_whatever_the_label():
    # -log softmax([0, log 3])[1] = -log 3/4, and -log softmax([0, 0])[0] = log 2
    student = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    teacher = torch.tensor([[-1.0, 5.0], [0.1, 0.0]])
    loss = methods.get("hard_label")()
    for target in (torch.tensor([0, 1]), torch.full((2, 2), 0.5)):
        assert float(loss(student, teacher, target)) == pytest.approx(math.log(4 / 3 * 2) / 2)


def test_function_matching_is_kd_at_temperature_one_and_uses_no_label():
    student, teacher = logits()
    method = methods.get("function_matching")
    close(
        method()(student, teacher, TARGET),
        methods.get("kd")(temperature=1.0)(student, teacher, TARGET),
    )
    assert method.alpha == 1
    with pytest.raises(TypeError):
        method(temperature=2.0)


def test_wsld_value_by_hand():
    # Label 0. Student: even, CE log 2. Teacher [log 3, 0]: CE log 4/3. At T = 2 the teacher's odds
    # are sqrt(3) to 1, the student's even.
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    weight = 1 - math.exp(-math.log(2) / (math.log(4 / 3) + 1e-7))
    p = math.sqrt(3) / (1 + math.sqrt(3))
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    close(methods.get("wsld")()(student, teacher, torch.tensor([0])), 4 * weight * divergence)


def test_wsld_ignores_samples_that_the_student_has_learned():
    teacher = torch.tensor([[1.0, 0.0, 0.0]])
    student = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    right, wrong = (methods.get("wsld")()(student, teacher, torch.tensor([y])) for y in (0, 1))
    assert right < 1e-4
    assert wrong > 1


def test_wsld_uses_mixed_labels_as_mixtures():
    student, teacher = logits()
    loss = methods.get("wsld")()
    sure = F.one_hot(TARGET, K).double()
    close(loss(student, teacher, sure), loss(student, teacher, TARGET))
    mixed = 0.7 * sure + 0.3 * sure.roll(1, dims=1)
    assert loss(student, teacher, mixed) != loss(student, teacher, sure)


def test_wsld_weights_have_no_gradient():
    """With one sample the loss is weight * KL, so its gradient is parallel to KL's."""
    student, teacher = (z[:1].requires_grad_() for z in logits())
    gradients = [
        torch.autograd.grad(
            methods.get(name)(temperature=2.0)(student, teacher, TARGET[:1]), student
        )
        for name in ("wsld", "kd")
    ]
    torch.testing.assert_close(
        *(F.normalize(gradient, dim=1) for (gradient,) in gradients), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_label_smoothing_with_the_task_equals_pytorchs(smoothing):
    student, _ = logits()
    method = methods.get("label_smoothing")
    task = F.cross_entropy(student, TARGET)
    found = (1 - smoothing) * task + smoothing * method()(student, None, TARGET)
    close(found, F.cross_entropy(student, TARGET, label_smoothing=smoothing))
    assert method.alpha == 0.1


def test_label_smoothing_uses_no_teacher_and_is_least_at_the_uniform():
    method = methods.get("label_smoothing")
    assert method.reads == frozenset()
    student = torch.zeros(B, K, dtype=torch.float64, requires_grad=True)
    value = method()(student, None, TARGET)
    value.backward()
    close(value.detach(), math.log(K))
    assert student.grad.abs().max() < 1e-15
