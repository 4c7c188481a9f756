"""Laws that every method obeys (a new file in kdsearch/methods enters by itself), and its own."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import methods
from kdsearch.errors import SpecError

NAMES = methods.names()
B, K = 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])


def signals(name, *, seed=0, scale=1.0, dtype=torch.float64):
    """Return a student's and a teacher's tensors, or lists of maps, as a method needs them."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"stages": [(B, 3, 4, 4), (B, 6, 2, 2)], "embedding": [(B, 8)]}
    need = methods.get(name).need
    sides = [
        [
            (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
            for shape in shapes.get(need, [(B, K)])
        ]
        for _ in range(2)
    ]
    return sides if need == "stages" else [side[0] for side in sides]


def each(signal, change):
    return [change(found) for found in signal] if isinstance(signal, list) else change(signal)


def tensors(signal):
    return signal if isinstance(signal, list) else [signal]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    return methods.get(name)()


def test_loss_is_one_finite_number(name, loss):
    value = loss(*signals(name), TARGET)
    assert value.shape == ()
    assert value.isfinite()


def test_gradient_reaches_the_student_and_never_the_teacher(name, loss):
    student, teacher = (each(side, torch.Tensor.requires_grad_) for side in signals(name))
    value = loss(student, teacher, TARGET)
    if loss.need == "nothing":
        assert not value.requires_grad
        return
    value.backward()
    assert all(found.grad.abs().sum() > 0 for found in tensors(student))
    assert all(found.grad is None for found in tensors(teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_of_a_thousand_give_finite_loss_and_gradient(name, loss, dtype):
    student, teacher = signals(name, scale=1000.0, dtype=dtype)
    each(student, torch.Tensor.requires_grad_)
    value = loss(student, teacher, TARGET)
    assert value.dtype is torch.float32 or loss.need == "nothing"
    assert value.isfinite()
    if loss.need != "nothing":
        value.backward()
        assert all(found.grad.isfinite().all() for found in tensors(student))


def test_autocast_changes_nothing(name, loss):
    student, teacher = signals(name, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, teacher, TARGET)
    assert torch.equal(inside, loss(student, teacher, TARGET))


def test_equal_signals_have_distance_zero(name, loss):
    if loss.is_distance:
        student, _ = signals(name)
        assert loss(student, each(student, torch.clone), TARGET) == 0


def test_order_of_the_batch_does_not_matter(name, loss):
    student, teacher = signals(name)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = loss(
        each(student, lambda f: f[order]), each(teacher, lambda f: f[order]), TARGET[order]
    )
    torch.testing.assert_close(moved, loss(student, teacher, TARGET))


def test_one_sample_gives_a_finite_loss_and_gradient(name, loss):
    student, teacher = (each(side, lambda f: f[:1]) for side in signals(name))
    each(student, torch.Tensor.requires_grad_)
    value = loss(student, teacher, TARGET[:1])
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
        assert all(found.grad.isfinite().all() for found in tensors(student))


def test_constant_signals_give_a_finite_gradient(name, loss):
    student, teacher = signals(name)
    student = each(student, lambda f: torch.zeros_like(f, requires_grad=True))
    value = loss(student, teacher, TARGET)
    if value.requires_grad:
        value.backward()
        assert all(found.grad.isfinite().all() for found in tensors(student))


def test_defaults_lie_inside_their_own_ranges(name):
    method = methods.get(name)
    knobs = inspect.signature(method).parameters
    for key, dim in method.ranges.items():
        default = knobs[key].default if key in knobs else getattr(method, key)
        assert default in dim, f"{name}.{key}: {default} is not in {dim}"


def test_shapes_that_cannot_be_compared_are_refused(name, loss):
    student, teacher = signals(name)
    if loss.need != "nothing":
        with pytest.raises(SpecError, match="with equal B"):
            loss(each(student, lambda f: f[:1]), teacher, TARGET)


@pytest.mark.parametrize("name", ["kd", "dkd", "fitnet", "at"])
def test_repeating_the_batch_leaves_the_mean_as_it_is(name):
    loss = methods.get(name)()
    student, teacher = signals(name)
    twice = (each(side, lambda f: torch.cat([f, f])) for side in (student, teacher))
    torch.testing.assert_close(
        loss(*twice, torch.cat([TARGET, TARGET])), loss(student, teacher, TARGET)
    )


@pytest.mark.parametrize("name", ["kd", "dkd"])
@given(temperature=st.floats(0.5, 20.0), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_scaling_logits_and_temperature_scales_the_loss_by_the_square(name, temperature, seed):
    student, teacher = signals(name, seed=seed)
    base = methods.get(name)(temperature=1.0)(student, teacher, TARGET)
    scaled = methods.get(name)(temperature=temperature)(
        temperature * student, temperature * teacher, TARGET
    )
    torch.testing.assert_close(scaled, temperature**2 * base)


@pytest.mark.parametrize("name", ["kd", "dkd"])
@given(shift=st.floats(-100, 100), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_constant_logit_shift_is_ignored(name, shift, seed):
    loss = methods.get(name)()
    student, teacher = signals(name, seed=seed)
    torch.testing.assert_close(
        loss(student + shift, teacher - shift, TARGET), loss(student, teacher, TARGET)
    )


@given(seed=st.integers(0, 99), temperature=st.floats(1.0, 10.0))
@settings(max_examples=25, deadline=None)
def test_kd_is_made_of_the_two_terms_of_dkd(seed, temperature):
    """KD = TCKD + (1 - p_y of the teacher) * NCKD (Zhao et al., eq. 5), so per sample."""
    student, teacher = signals("dkd", seed=seed)
    for i in range(B):
        row = (student[i : i + 1], teacher[i : i + 1], TARGET[i : i + 1])
        gap = 1 - F.softmax(row[1] / temperature, dim=1)[0, TARGET[i]].item()
        kd = methods.get("kd")(temperature=temperature)(*row)
        torch.testing.assert_close(methods.get("dkd")(temperature=temperature, beta=gap)(*row), kd)


def test_dkd_refuses_two_classes():
    logits = torch.zeros(4, 2)
    with pytest.raises(SpecError, match=r"at least 3 classes, not 2; use kd"):
        methods.get("dkd")()(logits, logits, torch.zeros(4, dtype=torch.long))


def test_attention_averages_the_larger_map_before_squaring():
    student = torch.tensor([1.0, -1.0, 3.0, 1.0] * 2).reshape(1, 1, 2, 4)
    # columns average in pairs to 0 and 2, squared 0 and 4, normalised 0 and 1
    teacher = torch.tensor([0.0, 5.0]).reshape(1, 1, 1, 2)
    assert methods.get("at")()([student], [teacher], torch.zeros(1)) == 0


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rkd_ignores_scale_and_place_of_the_embeddings(scale, seed):
    loss = methods.get("rkd")()
    student, teacher = signals("rkd", seed=seed)
    torch.testing.assert_close(
        loss(scale * student + 3, teacher / scale, TARGET), loss(student, teacher, TARGET)
    )


def test_rkd_compares_embeddings_of_different_width():
    student, teacher = signals("rkd")
    padded = torch.cat([student, torch.zeros(B, 3, dtype=student.dtype)], dim=1)
    torch.testing.assert_close(
        methods.get("rkd")()(padded, teacher, TARGET),
        methods.get("rkd")()(student, teacher, TARGET),
    )


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("kd", {"temperature": 0.0}),
        ("kd", {"temperature": float("nan")}),
        ("kd", {"temperature": "hot"}),
        ("dkd", {"temperature": -1.0}),
        ("dkd", {"beta": 0.0}),
        ("rkd", {"distance": -1.0}),
        ("rkd", {"angle": float("inf")}),
    ],
)
def test_impossible_knobs_are_refused_by_name_and_value(name, knobs):
    ((knob, value),) = knobs.items()
    with pytest.raises(SpecError, match=rf"{name}\.{knob}: {value!r} is not a number"):
        methods.get(name)(**knobs)


def test_rkd_without_distances_and_angles_is_refused():
    with pytest.raises(SpecError, match="compare nothing"):
        methods.get("rkd")(distance=0.0, angle=0.0)


def test_alias_names_the_same_class():
    assert methods.get("attention_transfer") is methods.get("at")


def test_listing_the_methods_imports_no_torch():
    code = "import sys, kdsearch.methods as m; print(m.names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{NAMES} False"


def test_method_class_must_say_what_it_needs():
    from kdsearch.methods.base import DistillLoss

    with pytest.raises(SpecError, match="Mute: `need` must be one of nothing, logits"):
        type("Mute", (DistillLoss,), {})
