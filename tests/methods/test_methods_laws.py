"""Laws that every method obeys (a new file in kdsearch/methods enters by itself), and its own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import methods
from kdsearch.errors import SpecError
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs, gradient_of

NAMES = tuple(name for name in methods.names() if not methods.get(name).tasks)  # of all tasks
B, K = 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
LEAVES = {
    "logits": [(B, K)],
    "nothing": [(B, K)],
    "embedding": [(B, 8)],
    "stages": [(B, 3, 4, 4), (B, 6, 2, 2)],
    "attention": [(B, 24, 4, 4), (B, 24, 2, 2)],
    "outputs": [(B, 3, 4, 4), (B, 6, 2, 2)],
}
MAY_BE_ZERO = (
    *("dist.beta", "dist.gamma", "mgd.ratio"),
    *("rkd.angle", "rkd.distance", "self_distill.hint"),
)
HEAD = torch.linspace(-1, 1, K * 6, dtype=torch.float64).sin().reshape(K, 6)


def leaves(name, *, seed=0, scale=1.0, dtype=torch.float64):
    """Return the tensors that a student's and a teacher's signals are made of."""
    random = torch.Generator().manual_seed(seed)
    return [
        [
            (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
            for shape in LEAVES[methods.get(name).need]
        ]
        for _ in range(2)
    ]


def signal(name, tensors):
    """Return one side's signal, as a method needs it: Outputs hang together as a network's do."""
    need = methods.get(name).need
    if need in ("stages", "attention"):
        return tensors
    if need != "outputs":
        return tensors[0]
    embedding = tensors[-1].mean((2, 3))
    return Outputs(embedding @ HEAD.T.to(embedding), embedding, tuple(tensors))


def taught(name, tensors):
    """Return a teacher's signal, with all that a method may read; None for one that needs none."""
    method = methods.get(name)
    if not method.reads and method.need != "nothing":
        return None
    if method.need != "outputs":
        return signal(name, tensors)
    full = gradient_of(signal(name, [found.detach().requires_grad_() for found in tensors]))
    return replace(full, index=torch.arange(len(tensors[0])))


def prepared(name, student, teacher):
    """Return the method, its modules made for these signals, in evaluation mode."""
    torch.manual_seed(0)
    loss = methods.get(name)()
    head = (HEAD.to(student[0].dtype), None)
    setting = Setting(samples=2 * B, batch_size=B, teacher_head=head)
    loss.prepare(signal(name, student), taught(name, teacher), setting)
    return loss.eval()


def value_of(name, student, teacher, target=TARGET, *, seed=0, loss=None):
    loss = loss or prepared(name, student, teacher)
    torch.manual_seed(seed)
    return loss(signal(name, student), taught(name, teacher), target)


def requested(tensors):
    return [found.clone().requires_grad_() for found in tensors]


def signals(name, *, seed=0):
    """Return a student's and a teacher's signal."""
    student, teacher = leaves(name, seed=seed)
    return signal(name, student), signal(name, teacher)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_loss_is_one_finite_number(name):
    student, teacher = leaves(name)
    value = value_of(name, requested(student), teacher)
    assert value.shape == ()
    assert value.isfinite()


def test_gradient_reaches_the_student_and_never_the_teacher(name):
    student, teacher = map(requested, leaves(name))
    received = taught(name, teacher)
    loss = prepared(name, student, teacher)
    value = loss(signal(name, student), received, TARGET)
    if loss.need == "nothing":
        assert not value.requires_grad
        return
    value.backward()
    assert any(found.grad is not None and found.grad.abs().sum() > 0 for found in student)
    if loss.need != "outputs":
        assert all(found.grad.abs().sum() > 0 for found in student)
    assert all(found.grad is None for found in teacher)


def test_modules_of_a_method_learn_and_its_teacher_does_not(name):
    student, teacher = map(requested, leaves(name))
    loss = prepared(name, student, teacher).train()
    value = loss(signal(name, student), taught(name, teacher), TARGET)
    if value.requires_grad:
        value.backward()
    for key, parameter in loss.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert all(found.grad is None for found in teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_of_a_thousand_give_finite_loss_and_gradient(name, dtype):
    student, teacher = leaves(name, scale=1000.0, dtype=dtype)
    student = requested(student)
    value = value_of(name, student, teacher)
    assert value.isfinite()
    if methods.get(name).need != "nothing":
        assert value.dtype is torch.float32
        value.backward()
        assert all(found.grad is None or found.grad.isfinite().all() for found in student)


def test_autocast_changes_nothing(name):
    student, teacher = leaves(name, dtype=torch.float32)
    student = requested(student)
    loss = prepared(name, student, teacher)
    outside = value_of(name, student, teacher, loss=loss)
    mine, received = signal(name, student), taught(name, teacher)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(mine, received, TARGET)
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=0)


def test_equal_signals_have_distance_zero(name):
    method = methods.get(name)
    if method.is_distance and method.need != "nothing":
        student, _ = leaves(name)
        student = requested(student)
        value = value_of(name, student, [found.detach().clone() for found in student])
        assert abs(value.item()) < 1e-12


def test_order_of_the_batch_does_not_matter(name):
    student, teacher = leaves(name)
    student = requested(student)
    loss = prepared(name, student, teacher)
    value = value_of(name, student, teacher, loss=loss)
    if value_of(name, student, teacher, loss=loss, seed=1) != value:
        return  # it draws at random even in evaluation: the draws are by row
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = ([found[order] for found in side] for side in (student, teacher))
    torch.testing.assert_close(value_of(name, *moved, TARGET[order], loss=loss), value)


def test_one_sample_gives_a_finite_loss_and_gradient(name):
    student, teacher = leaves(name)
    loss = prepared(name, requested(student), teacher)
    student, teacher = requested([found[:1] for found in student]), [found[:1] for found in teacher]
    value = value_of(name, student, teacher, TARGET[:1], loss=loss)
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
        assert all(found.grad is None or found.grad.isfinite().all() for found in student)


def test_constant_signals_give_a_finite_gradient(name):
    student, teacher = leaves(name)
    student = [torch.zeros_like(found, requires_grad=True) for found in student]
    value = value_of(name, student, teacher)
    if value.requires_grad:
        value.backward()
        assert all(found.grad is None or found.grad.isfinite().all() for found in student)


def test_mixed_labels_of_one_class_are_that_class(name):
    student, teacher = leaves(name)
    student = requested(student)
    loss = prepared(name, student, teacher)
    whole = F.one_hot(TARGET, K).double()
    torch.testing.assert_close(
        value_of(name, student, teacher, whole, loss=loss),
        value_of(name, student, teacher, loss=loss),
    )


def test_a_mixed_image_counts_as_its_larger_share_where_labels_are_hard(name):
    if methods.get(name).labels == "hard":
        student, teacher = leaves(name)
        loss = prepared(name, requested(student), teacher)
        whole = F.one_hot(TARGET, K).double()
        mixed = 0.7 * whole + 0.3 * whole.roll(1, dims=1)
        found = value_of(name, student, teacher, mixed, loss=loss)
        assert found == value_of(name, student, teacher, loss=loss)


def test_defaults_lie_inside_their_own_ranges(name):
    method = methods.get(name)
    knobs = inspect.signature(method).parameters
    for key, dim in method.ranges.items():
        default = knobs[key].default if key in knobs else getattr(method, key)
        assert default in dim, f"{name}.{key}: {default} is not in {dim}"


def test_every_method_has_a_space_whose_weight_is_log_uniform_around_its_constant(name):
    method = methods.get(name)
    assert bool(method.ranges) == (name not in ("none", "function_matching"))
    if "weight" in method.ranges:
        dim = method.ranges["weight"]
        assert dim.log
        assert dim.low < method.weight < dim.high


def test_shapes_that_cannot_be_compared_are_refused(name):
    student, teacher = leaves(name)
    method = methods.get(name)
    if method.reads:
        loss = prepared(name, student, teacher)
        one = [found[:1] for found in student]
        with pytest.raises(SpecError, match="with equal B"):
            loss(signal(name, one), taught(name, teacher), TARGET)


def test_a_method_that_reads_a_teacher_refuses_none(name):
    student, _ = leaves(name)
    if methods.get(name).reads:
        with pytest.raises(SpecError, match="of a teacher"):
            methods.get(name)()(signal(name, student), None, TARGET)


@pytest.mark.parametrize("name", ["kd", "dkd", "fitnet", "at"])
def test_repeating_the_batch_leaves_the_mean_as_it_is(name):
    loss = methods.get(name)()
    student, teacher = leaves(name)
    twice = (signal(name, [torch.cat([f, f]) for f in side]) for side in (student, teacher))
    torch.testing.assert_close(
        loss(*twice, torch.cat([TARGET, TARGET])),
        loss(signal(name, student), signal(name, teacher), TARGET),
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


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_two_classes_are_refused_where_only_one_is_not_the_target(name):
    logits = torch.zeros(4, 2)
    with pytest.raises(SpecError, match=rf"{name} .* at least 3 classes, not 2; use kd"):
        methods.get(name)()(logits, logits, torch.zeros(4, dtype=torch.long))


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


def test_an_impossible_number_is_refused_by_knob_and_value(name):
    for knob, argument in inspect.signature(methods.get(name)).parameters.items():
        if isinstance(argument.default, str):
            continue
        impossible = [-1, float("nan"), float("inf"), True, "hot"]
        impossible += [] if f"{name}.{knob}" in MAY_BE_ZERO else [0]
        impossible += [1.0] if knob == "ratio" else []
        impossible += [1.5] if isinstance(argument.default, int) else []
        for value in impossible:
            problem = rf"{name}\.{knob}: {value!r} (is not a|masks nothing)"
            with pytest.raises(SpecError, match=problem):
                methods.get(name)(**{knob: value})


def test_rkd_without_distances_and_angles_is_refused():
    with pytest.raises(SpecError, match="compare nothing"):
        methods.get("rkd")(distance=0.0, angle=0.0)


def test_alias_names_the_same_class():
    assert methods.get("attention_transfer") is methods.get("at")


def test_listing_the_methods_imports_no_torch():
    code = "import sys, kdsearch.methods as m; print(m.names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{methods.names()} False"


def test_a_method_class_must_declare_its_need():
    from kdsearch.methods.base import DistillLoss

    with pytest.raises(SpecError, match="Mute: `need` must be one of nothing, logits"):
        type("Mute", (DistillLoss,), {})
