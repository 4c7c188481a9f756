"""Losses on relations: values by loops or by hand, the papers' invariances, memory, refusals."""

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
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs

B, D = 6, 8
N = 40
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])
INDEX = torch.tensor([3, 7, 11, 12, 30, 39])
SEEDS = st.integers(0, 99)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def embeddings(seed=0):
    return random(B, D, seed=seed), random(B, D, seed=seed + 1000)


def unit(rows):
    rows = rows.numpy() if isinstance(rows, torch.Tensor) else rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def close(found, expected):
    found = torch.as_tensor(found).item()
    torch.testing.assert_close(found, float(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["pkt", "cc", "cosine", "infonce"])
def test_gradient_is_that_of_finite_differences(name):
    torch.manual_seed(0)
    loss = methods.get(name)()
    student, teacher = embeddings()
    loss.prepare(student, teacher, Setting())
    assert torch.autograd.gradcheck(lambda e: loss(e, teacher, TARGET), student.requires_grad_())


def test_sp_value_by_hand():
    # Samples (1, 0), (1, 1): Gram [[1, 1], [1, 2]], rows over sqrt(2) and sqrt(5). Of orthogonal
    # ones it is the identity. Differences squared: (1 - a)^2 + a^2 + b^2 + (1 - 2 b)^2, over B^2.
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64).reshape(2, 2, 1, 1)
    teacher = 7 * torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2)
    a, b = 1 / math.sqrt(2), 1 / math.sqrt(5)
    expected = ((1 - a) ** 2 + a**2 + b**2 + (1 - 2 * b) ** 2) / 4
    close(methods.get("sp")()([student], [teacher], torch.zeros(2)), expected)


def test_sp_sums_its_pairs_of_any_channels_and_sizes():
    loss = methods.get("sp")()
    student = [random(B, 3, 4, 4), random(B, 6, 2, 2, seed=1)]
    teacher = [random(B, 5, 8, 8, seed=2), random(B, 2, 3, 1, seed=3)]
    pairs = zip(student, teacher, strict=True)
    close(loss(student, teacher, TARGET), sum(loss([s], [t], TARGET) for s, t in pairs))


@given(scale=st.floats(0.01, 100), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_sp_ignores_the_scale_of_a_stage_and_a_rotation_of_its_channels(scale, seed):
    loss = methods.get("sp")()
    student, teacher = random(B, 3, 2, 2, seed=seed), random(B, 4, 2, 2, seed=seed + 1)
    turn, _ = torch.linalg.qr(random(3, 3, seed=seed + 2))
    turned = torch.einsum("bchw,dc->bdhw", scale * student, turn)
    torch.testing.assert_close(
        loss([turned], [teacher / scale], TARGET), loss([student], [teacher], TARGET)
    )


def test_pkt_equals_its_sums_over_pairs_of_samples():
    student, teacher = embeddings()
    s, t = ((unit(e) @ unit(e).T + 1) / 2 for e in (student, teacher))
    expected = 0.0
    for i in range(B):
        for j in range(B):
            p, q = t[i, j] / t[i].sum(), s[i, j] / s[i].sum()
            expected += p * math.log(p / q) / B**2
    found = methods.get("pkt")()(student, teacher, TARGET)
    assert float(found) == pytest.approx(expected, rel=1e-5)  # 1e-7 beside each probability


@pytest.mark.parametrize("name", ["pkt", "cc"])
@given(scale=st.floats(0.1, 100), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_lengths_and_directions_of_the_axes_do_not_matter(name, scale, seed):
    loss = methods.get(name)()
    student, teacher = embeddings(seed)
    turn, _ = torch.linalg.qr(random(D, D, seed=seed + 1))
    lengths = 1 + random(B, 1, seed=seed + 2).square()
    torch.testing.assert_close(
        loss(lengths * student @ turn, scale * teacher, TARGET),
        loss(student, teacher, TARGET),
        rtol=1e-4,  # the 1e-7 of PKT
        atol=1e-9,
    )


@pytest.mark.parametrize("name", ["pkt", "cc", "infonce"])
def test_embeddings_may_differ_in_width(name):
    torch.manual_seed(0)
    student, _ = embeddings()
    assert methods.get(name)()(student, random(B, 3), TARGET).isfinite()


def test_cc_equals_its_sums_over_pairs_of_samples():
    student, teacher = (unit(e) for e in embeddings())
    expected = 0.0
    for i in range(B):
        for j in range(B):
            s, t = (
                math.exp(-0.8)
                * sum((0.8 * (e[i] @ e[j])) ** p / math.factorial(p) for p in range(3))
                for e in (student, teacher)
            )
            expected += (s - t) ** 2 / B**2
    close(methods.get("cc")()(*embeddings(), TARGET), expected)


def test_cc_approximates_the_gaussian_kernel_it_expands():
    # Equal and orthogonal samples: exp(-0.4 * 0) = 1 and exp(-0.4 * 2); the third order adds .04
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    gap = 1 - math.exp(-0.8)
    found = methods.get("cc")()(student, teacher, torch.zeros(2))
    assert float(found) == pytest.approx(2 * gap**2 / 4, rel=0.2)


def test_cosine_value_by_hand():
    # Angles of 0, 90 and 180 degrees: 1 - cosine is 0, 1 and 2
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0]]).expand(3, 2)
    assert methods.get("cosine")()(student, teacher, torch.zeros(3)) == 1


@given(scale=st.floats(0.01, 100), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_cosine_is_one_minus_pytorchs_and_ignores_lengths(scale, seed):
    student, teacher = embeddings(seed)
    expected = 1 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(methods.get("cosine")()(scale * student, teacher, TARGET), expected)


def test_infonce_equals_its_sums_over_negatives():
    torch.manual_seed(0)
    student, teacher = embeddings()
    loss = methods.get("infonce")(tau=0.5)
    found = loss(student, teacher, TARGET)
    s, t = unit(loss.project(student).detach()), unit(teacher)
    expected = 0.0
    for i in range(B):
        scores = [math.exp(s[i] @ t[j] / 0.5) for j in range(B)]
        expected -= math.log(scores[i] / sum(scores)) / B
    close(found, expected)


def test_infonce_of_unrelated_embeddings_is_chance():
    loss = methods.get("infonce")()
    same = torch.ones(B, D)
    assert loss(same, same, TARGET).item() == pytest.approx(math.log(B))


def test_infonce_learns_to_identify_samples_by_its_projection():
    torch.manual_seed(0)
    loss = methods.get("infonce")()
    student, teacher = random(B, D), random(B, 12, seed=1)
    loss.prepare(student, teacher, Setting())
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    values = []
    for _ in range(60):
        value = loss(student, teacher, TARGET)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


def outputs(embedding, index=None):
    return Outputs(torch.zeros(len(embedding), 3), embedding, index=index)


def crd(negatives=64, seed=0, samples=N, **knobs):
    """Return the loss, prepared, and a student's and a teacher's outputs of different widths."""
    torch.manual_seed(seed)
    loss = methods.get("crd")(negatives=negatives, **knobs)
    student = outputs(random(B, D).float())
    teacher = outputs(random(B, 5, seed=1).float(), INDEX)
    loss.prepare(student, teacher, Setting(samples=samples))
    return loss, student, teacher


def test_crd_equals_its_sums_over_positives_and_negatives():
    loss, student, teacher = crd(tau=0.2)
    for memory in (loss.of_student, loss.of_teacher):
        memory.rows.copy_(F.normalize(memory.rows, dim=1))
    loss.classes.copy_(torch.arange(N) % 4)
    count = N - 1  # of the 64 requested
    s = unit(loss.embed_student(student.embedding).detach())
    t = unit(loss.embed_teacher(teacher.embedding).detach())
    banks = (s, loss.of_teacher.rows.double().numpy()), (t, loss.of_student.rows.double().numpy())

    torch.manual_seed(5)
    drawn = torch.randint(N, (count,)).numpy()
    torch.manual_seed(5)
    found = loss.eval()(student, teacher, TARGET)

    expected = 0.0
    for seen, rows in banks:
        own = [math.exp(seen[b] @ rows[INDEX[b]] / 0.2) for b in range(B)]
        other = [[math.exp(seen[b] @ rows[n] / 0.2) for n in drawn] for b in range(B)]
        z = N * np.mean([[own[b], *other[b]][i] for b in range(B) for i in range(count + 1)])
        for b in range(B):
            p = own[b] / z
            expected -= math.log(p / (p + count / N)) / B
            far = [
                math.log((count / N) / (e / z + count / N))
                for e, n in zip(other[b], drawn, strict=True)
                if n % 4 != TARGET[b]
            ]
            expected -= count * np.mean(far) / B
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_crd_gradient_reaches_both_embeddings_and_never_the_teacher():
    loss, student, teacher = crd()
    student.embedding.requires_grad_()
    teacher.embedding.requires_grad_()
    loss(student, teacher, TARGET).backward()
    assert student.embedding.grad.abs().sum() > 0
    assert teacher.embedding.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in loss.parameters())


def test_crd_stores_the_batch_in_training_mode_only():
    loss, student, teacher = crd()
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.eval()(student, teacher, TARGET)
    torch.testing.assert_close(dict(loss.named_buffers()), before, equal_nan=True, rtol=0, atol=0)

    loss.train()(student, teacher, TARGET)
    others = torch.tensor([i for i in range(N) if i not in INDEX])
    for memory, embed, side in (
        (loss.of_student, loss.embed_student, student),
        (loss.of_teacher, loss.embed_teacher, teacher),
    ):
        name = "of_student" if memory is loss.of_student else "of_teacher"
        old = before[f"{name}.rows"]
        seen = F.normalize(embed(side.embedding), dim=1).detach()
        torch.testing.assert_close(
            memory.rows[INDEX], F.normalize(0.5 * old[INDEX] + 0.5 * seen, dim=1)
        )
        assert torch.equal(memory.rows[others], old[others])
        assert not memory.rows.requires_grad
    assert torch.equal(loss.classes[INDEX], TARGET)
    assert (loss.classes[others] == -1).all()


def test_crd_fixes_its_scale_on_the_first_batch():
    loss, student, teacher = crd()
    loss(student, teacher, TARGET)
    scale = loss.of_student.log_scale.clone()
    loss(student, teacher, TARGET)
    assert scale.isfinite()
    assert torch.equal(loss.of_student.log_scale, scale)


def test_crd_leaves_out_negatives_of_the_samples_class():
    """Where every remembered row is of the one class, it does not matter which are drawn."""
    loss, student, teacher = crd()
    loss(student, teacher, TARGET)
    loss.classes.zero_()
    values = {0: [], 1: []}
    for label, found in values.items():
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(loss.eval()(student, teacher, torch.full_like(TARGET, label)).item())
    assert values[0][0] == values[0][1] < min(values[1])
    assert values[1][0] != values[1][1]


def test_crd_is_reproducible_and_learns():
    def curve(seed):
        loss, student, teacher = crd(seed=seed)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.05, momentum=0.9)
        values = []
        for _ in range(30):
            value = loss(student, teacher, TARGET)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        return values

    first = curve(0)
    assert first == curve(0) != curve(1)
    assert first[-1] < 0.7 * first[0]


def test_crd_is_whole_after_a_resume():
    """Memories, classes and scale are all in the state; what follows is the same."""
    loss, student, teacher = crd()
    loss(student, teacher, TARGET)
    other, _, _ = crd(seed=1)
    other.load_state_dict(loss.state_dict())
    torch.manual_seed(2)
    expected = loss(student, teacher, TARGET)
    torch.manual_seed(2)
    assert torch.equal(other(student, teacher, TARGET), expected)


def test_crd_refuses_unknown_samples():
    with pytest.raises(SpecError, match=r"at least 2, not 0; infonce contrasts within the batch"):
        crd(samples=0)
    loss, student, teacher = crd()
    with pytest.raises(SpecError, match=r"indices of the training samples \(Outputs\.index\)"):
        loss(student, outputs(teacher.embedding), TARGET)


@pytest.mark.parametrize("name", ["sp", "pkt", "cc", "crd", "infonce", "dist"])
def test_one_image_a_step_is_refused_where_samples_are_compared(name):
    loss = methods.get(name)()
    signal = {
        "stages": [random(1, 2, 2, 2)],
        "embedding": random(1, D),
        "logits": random(1, 3),
        "outputs": outputs(random(1, D)),
    }[loss.need]
    with pytest.raises(SpecError, match=r"at least 2 of them, not 1; raise train\.batch_size"):
        loss.prepare(signal, signal, Setting(samples=N, batch_size=1))
