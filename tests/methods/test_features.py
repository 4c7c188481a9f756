"""What each method on features must give: values by hand, invariances, what learns, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_losses import GOLDEN, assert_golden, golden
from torch import Tensor, nn

from kdsearch import methods
from kdsearch.errors import SpecError
from kdsearch.methods._exits import Exit
from kdsearch.methods.base import Setting
from kdsearch.methods.reviewkd import hierarchical_distance
from kdsearch.models.features import Outputs, gradient_of, head_of
from kdsearch.models.maps import tokens_to_map

B, K, D = 4, 5, 12
TARGET = torch.tensor([0, 1, 2, 4])
WITH_MODULES = ("mgd", "ofa", "reviewkd", "self_distill", "srrl", "vid", "vitkd")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(name: str) -> dict:
    (found,) = (case for case in GOLDEN["parts"] if case["name"] == name)
    return found


def maps(*, seed: int, channels: tuple[int, ...] = (6, 8, 9), side: int = 8) -> list[Tensor]:
    return [randn(B, c, side >> i, side >> i, seed=seed + i) for i, c in enumerate(channels)]


def outputs(*, seed: int, width: int = D) -> Outputs:
    return Outputs(
        randn(B, K, seed=seed), randn(B, width, seed=seed + 1), tuple(maps(seed=seed + 2))
    )


def signals(name: str):
    """Return (student, teacher, setting) that fit a method, its adapters' work done."""
    torch.manual_seed(0)
    method = methods.get(name)
    setting = Setting(teacher_head=(randn(K, D, seed=90), randn(K, seed=91)))
    if method.need == "outputs":
        return outputs(seed=0), outputs(seed=50) if method.reads else None, setting
    return maps(seed=0), maps(seed=50), setting


def prepared(name: str, **knobs):
    student, teacher, setting = signals(name)
    loss = methods.get(name)(**knobs)
    loss.prepare(student, teacher, setting)
    return loss, student, teacher


def each(signal, change):
    return signal.map(change) if isinstance(signal, Outputs) else [change(f) for f in signal]


@pytest.mark.parametrize("name", WITH_MODULES)
def test_every_parameter_is_registered_and_learns(name):
    loss, student, teacher = prepared(name)
    assert list(loss.parameters())
    before = loss(student, teacher, TARGET)
    before.backward()
    for found, parameter in loss.named_parameters():
        assert parameter.dtype is torch.float64
        assert parameter.grad is not None, found
        assert parameter.grad.abs().sum() > 0, found


@pytest.mark.parametrize("name", WITH_MODULES)
def test_evaluation_is_deterministic_and_takes_one_sample(name):
    loss, student, teacher = prepared(name)
    loss.eval()
    rows = [loss(student, teacher, TARGET) for _ in range(2)]
    assert torch.equal(*rows)
    one = each(student, lambda f: f[:1])
    other = None if teacher is None else each(teacher, lambda f: f[:1])
    assert loss(one, other, TARGET[:1]).isfinite()


@pytest.mark.parametrize("name", ["mgd", "vitkd"])
def test_masks_come_from_the_global_generator_and_differ(name):
    loss, student, teacher = prepared(name)
    torch.manual_seed(1)
    first, second = (loss(student, teacher, TARGET) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, loss(student, teacher, TARGET))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["vid", "cwd", "pkd", "mgd"])
def test_the_loss_of_several_pairs_is_the_sum_over_them(name):
    loss, student, teacher = prepared(name)
    loss.eval()
    total = loss(student, teacher, TARGET)
    apart = []
    for i in range(len(student)):
        single, _, _ = prepared(name)
        single.prepare(student[i : i + 1], teacher[i : i + 1], Setting())
        state = {k: v for k, v in loss.state_dict().items() if k.split(".")[1] == str(i)}
        state = {".".join([k.split(".")[0], "0", *k.split(".")[2:]]): v for k, v in state.items()}
        single.load_state_dict(state)
        apart.append(single.eval()(student[i : i + 1], teacher[i : i + 1], TARGET))
    torch.testing.assert_close(torch.stack(apart).sum(), total)


# vid


def test_vid_with_an_identity_equals_the_reference():
    student = golden("feat_s").requires_grad_()
    loss = methods.get("vid")()
    loss.prepare([student], [golden("feat_t")], Setting())
    loss.regressors[0] = nn.Identity()
    assert_golden(loss([student], [golden("feat_t")], TARGET), student, part("vid_identity"))


def test_vid_starts_at_variance_five_and_is_least_at_the_mean_squared_error():
    loss = methods.get("vid")()
    student, teacher = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    loss.prepare([student], [teacher], Setting())
    loss.regressors[0] = nn.Identity()
    # (3 - 0)^2 / 5 + log 5, halved
    torch.testing.assert_close(
        loss([student], [teacher], TARGET).item(), (9 / 5 + math.log(5)) / 2, rtol=1e-6, atol=0
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        loss([student], [teacher], TARGET).backward()
        optimizer.step()
    torch.testing.assert_close(F.softplus(loss.log_scales[0]).item(), 9.0, rtol=1e-2, atol=0)


# cwd


def test_cwd_of_two_positions_by_hand():
    student = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    teacher = torch.tensor([2 * math.log(3), 0.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    # at tau 2 the teacher is (3/4, 1/4), the student (1/2, 1/2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = methods.get("cwd")(tau=2.0)([student], [teacher], TARGET)
    torch.testing.assert_close(found.item(), 4 * divergence)


def test_cwd_ignores_a_constant_added_to_a_channel():
    _, student, teacher = prepared("cwd")
    loss = methods.get("cwd")()
    moved = [found + randn(B, found.shape[1], 1, 1, seed=7) for found in student]
    torch.testing.assert_close(loss(moved, teacher, TARGET), loss(student, teacher, TARGET))


# pkd


def test_pkd_is_one_minus_the_correlation_of_each_channel():
    student, teacher = maps(seed=0)[:1], maps(seed=9)[:1]
    rows = [maps_[0].transpose(0, 1).flatten(1) for maps_ in (student, teacher)]
    n = rows[0].shape[1]
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows, strict=True)]
    expected = (1 - torch.stack(correlations)).mean() * (n - 1) / n
    found = methods.get("pkd")()(student, teacher, TARGET)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_pkd_ignores_scale_and_shift_of_a_channel():
    _, student, teacher = prepared("pkd")
    loss = methods.get("pkd")()
    moved = [3 * found + randn(1, found.shape[1], 1, 1, seed=7) for found in student]
    torch.testing.assert_close(
        loss(moved, teacher, TARGET), loss(student, teacher, TARGET), rtol=1e-5, atol=0
    )


def test_pkd_of_a_single_value_is_finite():
    student = torch.ones(1, 3, 1, 1, requires_grad=True)
    loss = methods.get("pkd")()([student], [torch.zeros(1, 3, 1, 1)], TARGET[:1])
    loss.backward()
    assert loss == 0
    assert student.grad.isfinite().all()


# mgd


def test_mgd_masks_whole_channels_of_single_samples():
    student, teacher = torch.ones(50, 40, 3, 3), torch.zeros(50, 40, 3, 3)
    loss = methods.get("mgd")(ratio=0.25)
    loss.prepare([student], [teacher], Setting())
    loss.generators[0] = nn.Identity()
    torch.manual_seed(0)
    kept = loss([student], [teacher], TARGET).item() * 50 * 40
    assert kept == pytest.approx(round(kept), abs=1e-3)
    assert 0.72 < kept / 2000 < 0.78  # 3 standard deviations of a share of 2000
    assert loss.eval()([student], [teacher], TARGET) == 1


def test_mgd_in_evaluation_is_the_error_of_the_generated_map():
    loss, student, teacher = prepared("mgd")
    loss.eval()
    made = [generate(found) for generate, found in zip(loss.generators, student, strict=True)]
    expected = sum(((m - t) ** 2).mean() for m, t in zip(made, teacher, strict=True))
    torch.testing.assert_close(loss(student, teacher, TARGET), expected)


# reviewkd


def test_hierarchical_distance_equals_the_reference():
    student = golden("feat_s").requires_grad_()
    assert_golden(hierarchical_distance(student, golden("feat_t")), student, part("hcl_4x4"))


def test_reviewkd_fuses_each_stage_with_the_deeper_ones():
    loss, student, teacher = prepared("reviewkd")
    loss.eval()
    seen = []
    loss.fusions[0].register_forward_hook(lambda _, args, answer: seen.append(answer[0]))
    loss(student, teacher, TARGET)
    loss([*student[:2], 2 * student[2]], teacher, TARGET)
    assert seen[0].shape == teacher[0].shape
    assert not torch.equal(*seen)


def test_reviewkd_takes_maps_of_any_size_and_narrow_students():
    loss = methods.get("reviewkd")()
    student = [randn(B, 3, 10, 6), randn(B, 2, 5, 3)]
    teacher = [randn(B, 7, 4, 4), randn(B, 16, 7, 2)]
    assert loss(student, teacher, TARGET).isfinite()
    assert [fusion.enter[0].out_channels for fusion in loss.fusions] == [2, 2, 2]


# srrl


def srrl(embedding: Tensor, head: tuple[Tensor, Tensor]):
    teacher = Outputs(F.linear(embedding, *head), embedding)
    student = replace(outputs(seed=0), stages=(randn(len(embedding), 7, 4, 4),))
    loss = methods.get("srrl")()
    loss.prepare(student, teacher, Setting(teacher_head=head))
    return loss, student, teacher


def test_srrl_of_a_shifted_embedding_by_hand():
    head = (randn(K, D, seed=1), randn(K, seed=2))
    embedding = randn(B, D, seed=3)
    loss, student, teacher = srrl(embedding, head)
    loss.connector = nn.Identity()
    shift = randn(D, seed=4)
    same = embedding[:, :, None, None].expand(-1, -1, 4, 4)
    moved = same + shift[:, None, None]
    assert loss(replace(student, stages=(same,)), teacher, TARGET) < 1e-25
    expected = (shift**2).mean() + ((head[0] @ shift) ** 2).mean()
    torch.testing.assert_close(loss(replace(student, stages=(moved,)), teacher, TARGET), expected)


def test_srrl_keeps_the_teachers_head_frozen_and_out_of_the_state():
    head = (randn(K, D, seed=1).requires_grad_(), randn(K, seed=2).requires_grad_())
    loss, student, teacher = srrl(randn(B, D, seed=3), head)
    loss(student, teacher, TARGET).backward()
    assert head[0].grad is None
    assert not any(name.startswith("head") for name in loss.state_dict())
    assert loss.head_weight.data_ptr() != head[0].data_ptr()


def test_srrl_ends_in_a_relu_only_where_the_embedding_is_not_negative():
    head = (randn(K, D, seed=1), randn(K, seed=2))
    for embedding, last in ((randn(B, D).relu(), nn.ReLU), (randn(B, D), nn.Identity)):
        loss, _, _ = srrl(embedding, head)
        assert type(loss.connector[-1]) is last


def test_srrl_refuses_a_teacher_without_a_linear_head():
    student, teacher = outputs(seed=0), outputs(seed=50)
    loss = methods.get("srrl")()
    with pytest.raises(SpecError, match=r"is not one linear layer.*use a teacher with"):
        loss.prepare(student, teacher, Setting())
    with pytest.raises(SpecError, match=r"shape \[3, 12\], but it makes 5 logits of an embedding"):
        loss.prepare(student, teacher, Setting(teacher_head=(randn(3, D), None)))
    with pytest.raises(SpecError, match="deepest stage, and it has none"):
        loss.prepare(
            replace(student, stages=()), teacher, Setting(teacher_head=(randn(K, D), None))
        )


# exits, ofa, self_distill


@pytest.mark.parametrize(
    ("side", "strides", "width"),
    [(56, [2, 2, 2, 2], 160), (7, [2], 20), (5, [2], 20), (4, [1], 10), (1, [1], 10)],
)
def test_an_exit_brings_a_map_to_four_by_four(side, strides, width):
    leave = Exit(torch.zeros(2, 10, side, side), K)
    convolutions = [step for step in leave.body if isinstance(step, nn.Conv2d)]
    assert [step.stride[0] for step in convolutions if step.groups > 1] == strides
    assert max(leave.body(torch.zeros(2, 10, side, side)).shape[2:]) <= 4
    logits, features = leave(torch.zeros(2, 10, side, side))
    assert logits.shape == (2, K)
    assert features.shape == (2, width) == (2, leave.width)


def test_an_exit_widens_to_512_at_most_and_never_narrows():
    assert Exit(torch.zeros(1, 300, 16, 16), K).width == 512
    assert Exit(torch.zeros(1, 700, 16, 16), K).width == 700


def test_ofa_sums_the_paper_s_loss_over_exits_and_logits():
    loss, student, teacher = prepared("ofa", eps=1.4)
    loss.eval()
    p = teacher.logits.softmax(1)
    expected = torch.zeros((), dtype=torch.float64)
    answers = [leave(m)[0] for leave, m in zip(loss.exits, student.stages, strict=True)]
    for logits in (*answers, student.logits):
        log_q = logits.log_softmax(1)
        for b in range(B):
            for k in range(K):
                y = float(TARGET[b] == k)
                expected = expected - ((p[b, k] + y) ** 1.4 - y) * log_q[b, k] / B
    torch.testing.assert_close(loss(student, teacher, TARGET), expected)


def test_ofa_at_eps_one_is_the_cross_entropy_with_the_teacher():
    loss, student, teacher = prepared("ofa")
    loss.exits = nn.ModuleList()
    found = loss(replace(student, stages=()), teacher, TARGET)
    torch.testing.assert_close(found, F.cross_entropy(student.logits, teacher.logits.softmax(1)))


@pytest.mark.parametrize("name", ["ofa", "self_distill"])
def test_exits_need_stages(name):
    student, teacher, _ = signals(name)
    with pytest.raises(SpecError, match="puts exits on"):
        methods.get(name)().prepare(replace(student, stages=()), teacher, Setting())


def test_self_distillation_is_the_sum_of_its_three_parts_over_the_exits():
    loss, student, _ = prepared("self_distill", temperature=2.0, hint=0.25)
    loss.eval()
    goal = (student.logits / 2).softmax(1)
    expected = torch.zeros((), dtype=torch.float64)
    assert len(loss.exits) == len(student.stages) - 1
    for leave, hint, stage in zip(loss.exits, loss.hints, student.stages, strict=False):
        features = leave.body(stage).mean((2, 3))
        logits = leave.head(features)
        hard = -logits.log_softmax(1)[range(B), TARGET].mean()
        soft = (goal * (goal.log() - (logits / 2).log_softmax(1))).sum(1).mean()
        near = ((hint(features) - student.stages[-1].mean((2, 3))) ** 2).mean()
        expected = expected + hard + 4 * soft + 0.25 * near
    torch.testing.assert_close(loss(student, None, TARGET), expected)


def test_the_exits_learn_from_the_deepest_stage_and_not_it_from_them():
    loss, student, _ = prepared("self_distill")
    student = student.map(Tensor.requires_grad_)
    loss(student, None, TARGET).backward()
    assert student.logits.grad is None
    assert student.stages[-1].grad is None
    assert all(stage.grad.abs().sum() > 0 for stage in student.stages[:-1])


def test_self_distillation_takes_indices_and_probabilities():
    loss, student, _ = prepared("self_distill")
    hard = loss(student, None, TARGET)
    torch.testing.assert_close(loss(student, None, F.one_hot(TARGET, K).float()), hard)
    assert not torch.equal(loss(student, None, torch.full((B, K), 1 / K)), hard)


# minilm


def relations(left: Tensor, right: Tensor, heads: int) -> list[Tensor]:
    """Return [N, N] probabilities, sample by sample and head by head; left: [B, D, N]."""
    width = left.shape[1] // heads
    found = []
    for a, b in zip(left, right, strict=True):
        for h in range(heads):
            rows = slice(h * width, (h + 1) * width)
            found.append((a[rows].T @ b[rows] / width**0.5).softmax(1))
    return found


@pytest.mark.parametrize(
    ("choice", "compared"),
    [
        ("qkv", [(0, 0), (1, 1), (2, 2)]),
        ("attention", [(0, 1), (2, 2)]),
        ("value", [(2, 2)]),
    ],
)
def test_minilm_is_the_divergence_of_relations_head_by_head(choice, compared):
    student, teacher = randn(2, 3 * 8, 2, 3, seed=0), randn(2, 3 * 12, 2, 3, seed=1)
    loss = methods.get("minilm")(heads=6, relations=choice)  # 4 divides 8 and 12, 5 and 6 do not
    s, t = (maps_.flatten(2).chunk(3, dim=1) for maps_ in (student, teacher))
    expected = 0.0
    for a, b in compared:
        ours, theirs = relations(s[a], s[b], 4), relations(t[a], t[b], 4)
        rows = [(q * (q / p).log()).sum(1).mean() for p, q in zip(ours, theirs, strict=True)]
        expected = expected + torch.stack(rows).mean()
    torch.testing.assert_close(loss([student], [teacher], TARGET[:2]), expected)


def test_minilm_ignores_the_order_of_tokens_and_rotations_within_a_head():
    student, teacher = randn(2, 24, 3, 3, seed=0), randn(2, 24, 3, 3, seed=1)
    loss = methods.get("minilm")(heads=2)
    before = loss([student], [teacher], TARGET[:2])
    order = torch.tensor([4, 1, 8, 0, 2, 7, 3, 6, 5])
    moved = [m.flatten(2)[:, :, order].reshape(m.shape) for m in (student, teacher)]
    torch.testing.assert_close(loss(moved[:1], moved[1:], TARGET[:2]), before)
    rotation = torch.linalg.qr(randn(4, 4, seed=5)).Q
    turned = torch.einsum("ij,bgjn->bgin", rotation, student.reshape(2, 6, 4, 9))
    torch.testing.assert_close(loss([turned.reshape(student.shape)], [teacher], TARGET[:2]), before)


def test_minilm_refuses_channels_that_are_not_three_times_d():
    with pytest.raises(SpecError, match=r"3 \* D channels each, not 24, 25"):
        methods.get("minilm")()([randn(2, 24, 2, 2)], [randn(2, 25, 2, 2)], TARGET[:2])
    with pytest.raises(SpecError, match=r"'kv' is not one of qkv, attention, value"):
        methods.get("minilm")(relations="kv")


# vitkd


def test_vitkd_in_evaluation_mimics_two_stages_and_generates_the_last():
    student, teacher = (maps(seed=seed, channels=(3, 4, 5, 6)) for seed in (0, 50))
    loss = methods.get("vitkd")(generation=0.3)
    student = each(student, Tensor.requires_grad_)
    loss.prepare(student, teacher, Setting())
    loss.eval()
    errors = [((s - t) ** 2).mean() for s, t in zip(student, teacher, strict=True)]
    made = ((loss.generator(student[3]) - teacher[3]) ** 2).mean()
    found = loss(student, teacher, TARGET)
    torch.testing.assert_close(found, errors[0] + errors[1] + 0.3 * made)
    found.backward()
    assert student[2].grad is None


def test_vitkd_counts_the_error_where_half_of_the_positions_are_masked():
    student, teacher = torch.zeros(B, 2, 5, 5), torch.zeros(B, 2, 5, 5)
    loss = methods.get("vitkd")(generation=1.0, ratio=0.5)
    loss.prepare([student], [teacher], Setting())
    loss.generator = nn.Identity()
    loss.token.data.fill_(3.0)  # at masked positions the error is 9, elsewhere 0
    found = loss([student], [teacher], TARGET)
    assert found.item() == pytest.approx(9.0)
    found.backward()
    # 12 of 25 positions are masked in each sample: d mean(token^2) / d token = 2 * 3 / 2 channels
    torch.testing.assert_close(loss.token.grad.flatten(), torch.full((2,), 3.0))


# grad_cam


class TinyCNN(nn.Module):
    """A convolution, the average over positions, a linear head."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, channels, 3, stride, padding=1)
        self.head = nn.Linear(channels, K)

    def features(self, x: Tensor) -> Outputs:
        stage = self.body(x).relu()
        embedding = stage.mean(dim=(2, 3))
        return Outputs(self.head(embedding), embedding, (stage,))


class TinyViT(nn.Module):
    """Tokens through a perceptron; the head reads their average, or the first of them."""

    def __init__(self, *, reads_first: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.mlp = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, K)
        self.reads_first = reads_first

    def features(self, x: Tensor) -> Outputs:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.mlp(tokens).tanh()
        read = self.norm(tokens)
        embedding = read[:, 0] if self.reads_first else read.mean(dim=1)
        return Outputs(
            self.head(embedding),
            embedding,
            (tokens_to_map(tokens, (x.shape[2] // 2, x.shape[3] // 2)),),
        )


def tiny(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    kinds = {"cnn": lambda: TinyCNN(6), "strided": lambda: TinyCNN(7, 2), "vit": TinyViT}
    return kinds[kind]().double()


def pair(student: str, teacher: str) -> tuple[nn.Module, Outputs, Tensor]:
    x = randn(B, 3, 8, 8)
    shown = gradient_of(tiny(teacher, 1).features(x.requires_grad_()))
    return tiny(student, 0), shown, x.detach()


def test_grad_cam_of_linear_heads_is_the_class_map():
    """Behind an average and a linear head the gradient is that head's row over H * W."""
    student, shown, x = pair("strided", "cnn")
    teacher = tiny("cnn", 1)
    predicted = shown.logits.argmax(1)
    goal = []
    for network, stage in ((teacher, shown.stages[0]), (student, student.features(x).stages[0])):
        rows = network.head.weight[predicted]
        cam = torch.einsum("bc,bchw->bhw", rows, stage)
        cam = F.avg_pool2d(cam, cam.shape[1] // 4)
        length = cam.flatten(1).norm(dim=1, keepdim=True)
        goal.append(cam.flatten(1) / length.clamp(min=1e-9))
    expected = ((goal[0] - goal[1]) ** 2).mean()
    found = methods.get("grad_cam")()(student.features(x), shown, TARGET)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("student", ["cnn", "strided", "vit"])
@pytest.mark.parametrize("teacher", ["cnn", "vit"])
def test_grad_cam_learns_through_stage_and_head(student, teacher):
    network, shown, x = pair(student, teacher)
    loss = methods.get("grad_cam")()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(network.features(x), shown, TARGET)
        value.backward()
        assert network.head.weight.grad.abs().sum() > 0
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_grad_cam_gradient_equals_finite_differences(kind):
    network, shown, x = pair(kind, "cnn")
    loss = methods.get("grad_cam")()
    weight = network.head.weight

    def value(row: Tensor) -> Tensor:
        network.head.weight.data[:] = row.detach()
        return loss(network.features(x), shown, TARGET)

    value(weight).backward()
    slope = weight.grad[1, 2].item()
    step = torch.zeros_like(weight)
    step[1, 2] = 1e-6
    start = weight.detach().clone()
    rise = (value(start + step) - value(start - step)).item() / 2e-6
    assert slope == pytest.approx(rise, rel=1e-5)


def test_grad_cam_works_under_autocast():
    network, shown, x = pair("cnn", "cnn")
    network, x = network.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network.features(x)
        value = methods.get("grad_cam")()(student, shown.map(Tensor.float), TARGET)
    assert student.stages[0].dtype is torch.bfloat16
    assert value.dtype is torch.float32
    value.backward()
    assert network.body.weight.grad.abs().sum() > 0


def test_grad_cam_refuses_outputs_without_a_gradient():
    network, shown, x = pair("cnn", "cnn")
    loss = methods.get("grad_cam")()
    with torch.no_grad(), pytest.raises(SpecError, match="no gradient leads from the logits"):
        loss(network.features(x), shown, TARGET)
    found = network.features(x)
    with pytest.raises(SpecError, match="no gradient leads from the logits"):
        loss(replace(found, stages=(found.stages[0].clone(),)), shown, TARGET)
    with pytest.raises(SpecError, match="needs the gradient of the teacher's largest logits"):
        loss(found, replace(shown, gradient=None), TARGET)
    with pytest.raises(SpecError, match="the student has none"):
        loss(replace(found, stages=()), shown, TARGET)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_grad_cam_refuses_a_class_token(side):
    network, shown, x = pair("cnn", "cnn")
    reads_first = TinyViT(reads_first=True).double()
    if side == "teacher":
        shown = gradient_of(reads_first.features(x.requires_grad_()))
    else:
        network = reads_first
    with pytest.raises(SpecError, match=f"the {side}'s logits do not depend on its deepest stage"):
        methods.get("grad_cam")()(network.features(x), shown, TARGET)


def test_head_of_a_tiny_network_makes_its_logits():
    network = tiny("cnn", 0)
    found = network.features(randn(B, 3, 8, 8))
    torch.testing.assert_close(F.linear(found.embedding, *head_of(network)), found.logits)
