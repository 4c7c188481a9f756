from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch import methods
from kdsearch.errors import SpecError
from kdsearch.methods.base import Setting
from kdsearch.models import students
from kdsearch.models.features import Outputs, gradient_of
from kdsearch.spec import DistillSpec, StudentSpec
from kdsearch.tasks.classification import Classification
from kdsearch.training.distiller import Distiller, Side, check, temperature_knob
from kdsearch.training.distiller.recipe import resolve

TASK = Classification()

K = 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
SAMPLES = 40


class Toy(nn.Module):
    """Two to four stages whose maps shrink (CNN), or keep their grid and attend (ViT)."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], stride, stride=stride)
            if stride > 1
            else nn.Conv2d(widths[i], widths[i + 1], 3, padding=1)
            for i, stride in enumerate(strides)
        )
        self.attends = len(channels) > 1 and len(set(channels)) == 1
        self.qkv = nn.Conv2d(channels[-1], 3 * channels[-1], 1)
        self.head = nn.Linear(channels[-1], K)

    def forward(self, images):
        maps, found, attention = images, [], []
        for stage in self.stages:
            maps = torch.tanh(stage(maps))
            found.append(maps)
            if self.attends:
                attention.append(self.qkv(maps))
        embedding = maps.mean((2, 3))
        return Outputs(self.head(embedding), embedding, tuple(found), tuple(attention))


KINDS = {
    "cnn": lambda: Toy((4, 6, 8), (1, 2, 2)),
    "wide cnn": lambda: Toy((8, 12), (2, 2)),
    "vit": lambda: Toy((12, 12, 12, 12), (4, 1, 1, 1)),
}
PAIRS = [("cnn", "wide cnn", 16), ("cnn", "vit", 32), ("vit", "cnn", 16)]


class Pair:
    """A student, images of 16 pixels, and a teacher's outputs on them at its resolution."""

    def __init__(self, student="cnn", teacher="wide cnn", resolution=16, seed=0):
        torch.manual_seed(seed)
        self.model, self.images = KINDS[student](), torch.randn(8, 3, 16, 16)
        network = KINDS[teacher]()
        shown = F.interpolate(self.images, (resolution, resolution)).requires_grad_()
        self.taught = replace(
            gradient_of(network(shown)).map(torch.Tensor.detach), index=torch.arange(8)
        )
        head = network.head.weight.detach(), network.head.bias.detach()
        self.side = Side(outputs=self.taught, resolution=resolution, head=head)

    def out(self):
        return self.model(self.images)

    def distiller(self, spec, *, teachers=None, **settings):
        return Distiller(
            spec,
            task=TASK,
            student=Side(outputs=self.out(), resolution=16),
            teachers=[self.side] if teachers is None else teachers,
            setting=Setting(samples=SAMPLES, batch_size=8),
            **settings,
        )

    def losses(self, spec, **settings):
        """Return the losses of a recipe on the images."""
        return self.distiller(spec, **settings)(self.out(), [self.taught], TARGET)


def bare_side(outputs):
    return Side(outputs=outputs, resolution=16)


def cases():
    """Yield every method between two CNNs; one of each need between other pairs; mapping `all`."""
    needs = set()
    for name in methods.names("classification"):
        method = methods.get(name)
        if method.need == "nothing":
            continue
        yield name, None, PAIRS[0]
        if method.need not in needs:
            needs.add(method.need)
            yield from ((name, None, pair) for pair in PAIRS[1:])
        if method.is_pairwise:
            yield name, "all", PAIRS[0]


@pytest.mark.parametrize(("name", "mapping", "pair"), list(cases()))
def test_a_step_along_the_gradient_lowers_the_term(name, mapping, pair):
    """In eval mode nothing is masked, sampled or stored, so the term is a function of weights."""
    pair = Pair(*pair)
    losses = pair.distiller(DistillSpec(method=name, mapping=mapping)).eval()
    parameters = [*pair.model.parameters(), *losses.parameters()]

    def term():
        torch.manual_seed(0)
        return losses(pair.out(), [pair.taught], TARGET)[name]

    before = term()
    found = torch.autograd.grad(before, parameters, allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    ]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert any(g.any() for g in gradients[: len(list(pair.model.parameters()))])
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-3 / length * gradient
    assert term() < before


def test_total_follows_the_formula():
    pair = Pair()
    knobs = {"rkd.weight": 7.0, "kd.temperature": 2.0}
    spec = DistillSpec(method="rkd+kd", alpha=0.3, knobs=knobs)
    out, taught = pair.out(), pair.taught
    found = pair.losses(spec, label_smoothing=0.1)

    task = F.cross_entropy(out.logits, TARGET, label_smoothing=0.1)
    rkd = methods.get("rkd")()(out.embedding, taught.embedding, TARGET)
    kd = methods.get("kd")(temperature=2.0)(out.logits, taught.logits, TARGET)
    assert list(found) == ["task", "rkd", "kd", "loss"]
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["rkd"], rkd)
    torch.testing.assert_close(found["kd"], kd)
    torch.testing.assert_close(found["loss"], 0.7 * task + 0.3 * (7.0 * rkd + kd))


@pytest.mark.parametrize("name", methods.names("classification"))
def test_defaults_come_from_the_method(name):
    method = methods.get(name)
    found = Pair().losses(DistillSpec(method=name))
    term = found.get(name, torch.tensor(0.0))
    torch.testing.assert_close(
        found["loss"], (1 - method.alpha) * found["task"] + method.alpha * method.weight * term
    )


def test_temperature_and_knobs_reach_the_method():
    pair = Pair()
    found = pair.losses(DistillSpec(method="dkd", knobs={"temperature": 2.0, "beta": 3.0}))
    by_hand = methods.get("dkd")(temperature=2.0, beta=3.0)(
        pair.out().logits, pair.taught.logits, TARGET
    )
    assert list(found) == ["task", "dkd", "loss"]
    torch.testing.assert_close(found["dkd"], by_hand)


def test_alias_reports_under_the_methods_name():
    found = Pair().losses(DistillSpec(method="attention_transfer"))
    assert list(found) == ["task", "at", "loss"]


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        (DistillSpec(method="none"), set()),
        (DistillSpec(method="kd"), {"logits"}),
        (DistillSpec(method="rkd"), {"embedding"}),
        (DistillSpec(method="at"), {"stages"}),
        (DistillSpec(method="at+kd"), {"stages", "logits"}),
    ],
)
def test_needed_features_are_those_that_the_terms_read(spec, need):
    losses = Pair().distiller(spec)
    assert losses.needed_features == need
    assert losses.needs_teacher is bool(need)


def test_without_a_teacher_the_loss_is_the_task():
    pair = Pair()
    losses = pair.distiller(DistillSpec(method="none", alpha=0.0), teachers=[])
    found = losses(pair.out(), [], TARGET)
    assert list(found) == ["task", "loss"]
    assert torch.equal(found["loss"], found["task"])


def test_adapters_are_made_only_where_channels_differ():
    pair = Pair("cnn", "wide cnn")
    channels = [8, 12]  # the student's last map has 8 channels, the teacher's maps 8 and 12
    sizes = []
    for stage in range(len(channels)):
        spec = DistillSpec(method="fitnet", mapping=f"-1:{stage}")
        sizes.append([tuple(p.shape) for p in pair.distiller(spec).parameters()])
    assert sizes == [[], [(12, 8, 1, 1), (12,), (12,)]]
    assert not list(pair.distiller(DistillSpec(method="at")).parameters())


def test_gradient_reaches_student_and_adapters():
    pair = Pair("cnn", "vit", 32)
    losses = pair.distiller(DistillSpec(method="fitnet", mapping="even"))
    losses(pair.out(), [pair.taught], TARGET)["fitnet"].backward()
    stages = pair.model.stages
    assert all(p.grad is not None for p in [*losses.parameters(), *stages.parameters()])
    assert all(p.grad.abs().sum() > 0 for p in stages.parameters())


def test_stages_are_paired_by_stride_across_resolutions():
    """A map of 8 x 8 has stride 2 at 16 pixels and stride 4 at 32: it pairs with 4 x 4."""
    pair = Pair("cnn", "cnn", 32)
    spec = DistillSpec(method="fitnet", mapping="stride")
    assert pair.distiller(spec).terms[0].losses[0].pairs == [(0, 0), (1, 1), (2, 2)]
    single = replace(pair.taught, stages=pair.taught.stages[2:])  # 8 x 8 of 32: stride 4
    alone = pair.distiller(spec, teachers=[Side(outputs=single, resolution=32)])
    assert alone.terms[0].losses[0].pairs == [(2, 0)]


PLUGIN = """
from kdsearch.methods.base import DistillLoss

class LogitRegression(DistillLoss):
    need = "logits"
    alpha = 0.25

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, student, teacher, target):
        return (student - teacher).abs().pow(self.power).mean()
"""


def test_method_of_the_user_plugs_in_by_path(tmp_path: Path):
    file = tmp_path / "regression.py"
    file.write_text(PLUGIN)
    name = f"{file}:LogitRegression"
    pair = Pair()
    found = pair.losses(DistillSpec(method=name, knobs={"power": 1.0}))
    torch.testing.assert_close(found[name], F.l1_loss(pair.out().logits, pair.taught.logits))
    torch.testing.assert_close(found["loss"], 0.75 * found["task"] + 0.25 * found[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DistillSpec(method="kdd"), "unknown method 'kdd'.*did you mean"),
        (
            DistillSpec(method="dkd", knobs={"betta": 1.0}),
            r"unknown knob 'betta' \(did you mean 'beta'\?\); it accepts temperature, beta",
        ),
        (DistillSpec(method="at", knobs={"p": 2}), "unknown knob 'p'; it accepts no knobs"),
        (DistillSpec(method="rkd", knobs={"angle": -1.0}), r"rkd\.angle: -1\.0"),
        (DistillSpec(method="at", knobs={"temperature": 4.0}), "unknown knob 'temperature'"),
        (DistillSpec(method="kd", knobs={"temperature": 0.0}), r"kd\.temperature: 0\.0 is not"),
        (DistillSpec(method="kd", mapping="last"), "methods that compare stages; 'kd' compares"),
        (DistillSpec(method="at", mapping="lats"), "did you mean 'last'"),
        (DistillSpec(method="none", alpha=0.5), r"has no teacher.*method\.alpha = 0\.5"),
        (DistillSpec(method="none", mapping="last"), r"does not use method\.mapping = 'last'"),
        (DistillSpec(method="kd+"), r"a name is missing next to '\+'"),
        (DistillSpec(method="none", balance="gradnorm"), r"does not use method\.balance"),
        (DistillSpec(method="kd+at", knobs={"kd.mapping": "last"}), "compares logits, not stages"),
        (DistillSpec(method="kd", alpha=0.9, alpha_schedule="linear:1->2"), "takes alpha to 1.8"),
        (
            DistillSpec(
                method="kd", knobs={"temperature": 0.5}, temperature_schedule="linear:1->3"
            ),
            r"takes the temperature of 'kd' to -0\.5",
        ),
        (DistillSpec(method="kd+none"), "none has no teacher"),
        (DistillSpec(method="kd+kd"), "names a term twice"),
        (DistillSpec(method="kd+at", weight=2.0), r"set kd\.weight or at\.weight"),
        (
            DistillSpec(method="kd+at", knobs={"kd.tempreture": 2.0}),
            r"unknown knob 'kd\.tempreture' \(did you mean 'kd\.temperature'\?\)",
        ),
        (DistillSpec(method="kd+at", knobs={"at.weight": -1.0}), r"at\.weight: -1\.0 is not"),
        (DistillSpec(method="reviewkd", mapping="all"), "compares its pairs together"),
        (DistillSpec(method="at", temperature_schedule="linear"), r"has a temperature; use at\+kd"),
    ],
)
def test_a_contradictory_recipe_is_refused_without_a_network(spec, message):
    with pytest.raises(SpecError, match=message):
        check(spec)


@pytest.mark.parametrize("name", methods.names())
def test_recipe_of_defaults_passes(name):
    check(DistillSpec(method=name))


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_classes_must_agree_where_logits_are_compared(name):
    pair = Pair()
    other = replace(pair.taught, logits=torch.zeros(8, K + 1))
    with pytest.raises(SpecError, match=r"equal B, K; .*\[8, 5\] of the student and \[8, 6\]"):
        pair.distiller(DistillSpec(method=name), teachers=[bare_side(other)])


def test_binary_task_is_refused_by_dkd_before_training():
    binary = bare_side(Outputs(torch.zeros(1, 2), torch.zeros(1, 3)))
    with pytest.raises(SpecError, match="at least 3 classes"):
        Distiller(DistillSpec(method="dkd"), task=TASK, student=binary, teachers=[binary])


def test_a_teacher_without_stages_is_refused_with_the_methods_that_need_none():
    pair = Pair()
    bare = bare_side(Outputs(pair.taught.logits, pair.taught.embedding))
    with pytest.raises(SpecError, match=r"the teacher has none; .*: .*dkd, .*kd, .*none, .*rkd"):
        pair.distiller(DistillSpec(method="at"), teachers=[bare])


def test_missing_teacher_is_refused():
    pair = Pair()
    with pytest.raises(SpecError, match="'kd' needs a teacher"):
        pair.distiller(DistillSpec(method="kd"), teachers=[])
    with pytest.raises(SpecError, match="given no teacher's outputs"):
        pair.distiller(DistillSpec(method="kd"))(pair.out(), [], TARGET)


def test_batches_too_small_for_relations_are_refused():
    pair = Pair()
    with pytest.raises(SpecError, match=r"at least 2 of them, not 1; raise train\.batch_size"):
        Distiller(
            DistillSpec(method="rkd"),
            task=TASK,
            student=bare_side(pair.out()),
            teachers=[pair.side],
            setting=Setting(batch_size=1),
        )


def test_terms_joined_by_plus_add_up_with_their_own_settings():
    pair = Pair()
    spec = DistillSpec(
        method="at+kd",
        alpha=0.4,
        knobs={"at.weight": 3.0, "at.mapping": "last", "kd.weight": 2.0, "kd.temperature": 3.0},
    )
    found = pair.losses(spec)
    at = methods.get("at")()([pair.out().stages[-1]], [pair.taught.stages[-1]], TARGET)
    kd = methods.get("kd")(temperature=3.0)(pair.out().logits, pair.taught.logits, TARGET)
    assert list(found) == ["task", "at", "kd", "loss"]
    torch.testing.assert_close(found["loss"], 0.6 * found["task"] + 0.4 * (3 * at + 2 * kd))


def test_each_term_has_its_own_temperature():
    spec = DistillSpec(method="kd+dkd+at", knobs={"kd.temperature": 2.5})
    assert [term.temperature for term in resolve(spec).terms] == [2.5, 4.0, None]


@pytest.mark.parametrize(
    ("method", "knob"), [("kd", "temperature"), ("dkd", "temperature"), ("at+kd", "kd.temperature")]
)
def test_the_temperature_is_a_knob_of_the_one_part_that_has_one(method, knob):
    assert temperature_knob(method) == knob


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("at", r"method 'at' has no temperature; at\+kd adds a part with one"),
        ("none", "method 'none' has no temperature; use kd"),
        ("kd+dkd", r"several temperatures; set each: --set method\.kd\.temperature=4, --set"),
    ],
)
def test_a_temperature_for_no_part_or_for_several_is_refused(method, message):
    with pytest.raises(SpecError, match=message):
        temperature_knob(method)


def test_schedules_move_alpha_weight_and_temperature_with_progress():
    pair = Pair()
    spec = DistillSpec(
        method="kd",
        alpha=0.8,
        weight=2.0,
        knobs={"temperature": 5.0},
        alpha_schedule="linear",
        weight_schedule="linear:0->1@0-0.5",
        temperature_schedule="cosine",
    )
    losses, out = pair.distiller(spec), pair.out()
    for progress, alpha, weight, temperature in ((0, 0.8, 0, 5), (0.5, 0.4, 2, 3), (1, 0, 2, 1)):
        found = losses(out, [pair.taught], TARGET, weights=losses.weights_at(progress))
        kd = methods.get("kd")(temperature=float(temperature))
        value = kd(out.logits, pair.taught.logits, TARGET)
        torch.testing.assert_close(
            found["loss"], (1 - alpha) * found["task"] + alpha * weight * value
        )


def test_progressive_order_goes_from_shallow_pairs_to_responses():
    pair = Pair("cnn", "cnn")
    spec = DistillSpec(method="kd+fitnet", order="progressive", mapping="stride")
    losses, out = pair.distiller(spec), pair.out()
    active = []
    for progress in (0.0, 0.3, 0.55, 0.8, 1.0):
        found = losses(out, [pair.taught], TARGET, weights=losses.weights_at(progress))
        pairs = zip(out.stages, pair.taught.stages, strict=True)
        parts = [F.mse_loss(s, t).item() for s, t in pairs]
        hint = found["fitnet"].item()
        stage = next((i for i, part in enumerate(parts) if abs(part - hint) < 1e-6), None)
        active.append("kd" if found["kd"] else stage)
    assert active == [0, 1, 2, "kd", "kd"]


def test_uncertainty_starts_at_the_recipes_weights_and_learns_its_own():
    pair = Pair()
    fixed = pair.losses(DistillSpec(method="kd"))
    losses = pair.distiller(DistillSpec(method="kd", balance="uncertainty"))
    found = losses(pair.out(), [pair.taught], TARGET)
    torch.testing.assert_close(found["loss"], fixed["loss"])
    found["loss"].backward()
    # d/ds of exp(-s) * part + s / 2 at s = 0
    parts = torch.stack([0.1 * found["task"], 0.9 * found["kd"]]).detach()
    torch.testing.assert_close(losses.uncertainty.raw.grad, 0.5 - parts)


def test_uncertainty_leaves_out_inactive_losses_and_stays_bounded():
    pair = Pair()
    spec = DistillSpec(
        method="fitnet+kd", mapping="last", balance="uncertainty", order="progressive", alpha=1.0
    )
    losses = pair.distiller(spec)
    losses(pair.out(), [pair.taught], TARGET, weights=losses.weights_at(0.1))["loss"].backward()
    task, hint, responses = losses.uncertainty.raw.grad
    assert hint != 0
    assert task == responses == 0
    with torch.no_grad():
        losses.uncertainty.raw.fill_(-1e6)
    torch.testing.assert_close(losses.uncertainty.log_variances, torch.full((3,), -3.0))


def test_gradnorm_brings_every_term_to_the_gradient_norm_of_the_task():
    pair = Pair()
    losses = pair.distiller(DistillSpec(method="fitnet+kd", balance="gradnorm", alpha=0.5))
    out = pair.out()
    found = losses(out, [pair.taught], TARGET)
    length = {
        name: torch.autograd.grad(found[name], out.stages[0], retain_graph=True)[0].norm()
        for name in ("task", "fitnet", "kd")
    }
    by_hand = found["task"] + sum(
        found[name] * length["task"] / length[name] for name in ("fitnet", "kd")
    )
    torch.testing.assert_close(found["loss"], 0.5 * by_hand)


def test_gradnorm_divides_a_weight_by_the_methods_default():
    pair = Pair()
    usual = pair.losses(DistillSpec(method="at", balance="gradnorm"))
    double = pair.losses(DistillSpec(method="at", balance="gradnorm", weight=2000.0))
    taught = [found["loss"] - 0.5 * found["task"] for found in (usual, double)]
    torch.testing.assert_close(taught[1], 2 * taught[0])


def test_gradnorm_keeps_the_scale_of_a_term_outside_of_its_window():
    pair = Pair("cnn", "cnn")
    spec = DistillSpec(method="fitnet+kd", mapping="last", balance="gradnorm", order="progressive")
    losses, out = pair.distiller(spec), pair.out()
    losses(out, [pair.taught], TARGET, weights=losses.weights_at(0.0))
    early = losses.gradnorm.log_scales.clone()
    assert early[0].isfinite()
    assert early[1].isnan()
    losses.gradnorm.count = 10
    losses(out, [pair.taught], TARGET, weights=losses.weights_at(0.9))
    late = losses.gradnorm.log_scales
    assert late[0] == early[0]
    assert late[1].isfinite()


@pytest.mark.parametrize("family", ["vit", "deit", "resnet"])
def test_gradnorm_measures_families_whose_maps_are_views_of_tokens(family):
    network = students.build(StudentSpec(family=family), in_channels=3, num_classes=K, data_size=16)
    student = network.features(torch.randn(8, 3, 16, 16))
    losses = Distiller(
        DistillSpec(method="at+kd", balance="gradnorm"),
        task=TASK,
        student=bare_side(student),
        teachers=[Pair().side],
    )
    losses(student, [Pair().taught], TARGET)
    scales = losses.gradnorm.log_scales.exp()
    assert ((scales > 2e-4) & (scales < 5e3) & (scales != 1)).all()


def test_all_pairs_share_each_stage_of_the_student_among_the_teachers():
    pair = Pair()
    losses = pair.distiller(DistillSpec(method="at", mapping="all"))
    out = pair.out()
    (body,) = losses.terms[0].losses
    weights = body.weights(out, pair.taught)
    assert weights.shape == (3, 2)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    single = torch.tensor(
        [
            [methods.get("at")()([s], [t], TARGET).item() for t in pair.taught.stages]
            for s in out.stages
        ]
    )
    found = losses(out, [pair.taught], TARGET)["at"]
    torch.testing.assert_close(found, (weights * single).sum())
    found.backward()
    assert all(p.grad.abs().sum() > 0 for p in body.queries.parameters())


def second(pair, **changes):
    """Return another teacher of the same images."""
    return replace(Pair("cnn", "vit", 32, seed=1).taught, **changes)


def blended(pair, spec, other):
    teachers = [pair.side, Side(outputs=other, resolution=32)]
    losses = pair.distiller(spec, teachers=teachers)
    return losses, losses(pair.out(), [pair.taught, other], TARGET)


def test_fixed_shares_mix_the_teachers_probabilities():
    pair = Pair()
    other = second(pair)
    _, found = blended(
        pair, DistillSpec(method="kd", teachers="3,1", knobs={"temperature": 1.0}), other
    )
    mixed = 0.75 * pair.taught.logits.softmax(1) + 0.25 * other.logits.softmax(1)
    kd = methods.get("kd")(temperature=1.0)(pair.out().logits, mixed.log(), TARGET)
    torch.testing.assert_close(found["kd"], kd)


def test_each_teacher_has_its_own_pairs_and_counts_by_its_share():
    pair = Pair()
    other = second(pair)
    _, found = blended(pair, DistillSpec(method="at", teachers="3,1"), other)

    alone = []
    for outputs, resolution in ((pair.taught, 16), (other, 32)):
        side = Side(outputs=outputs, resolution=resolution)
        single = pair.distiller(DistillSpec(method="at"), teachers=[side])
        alone.append(single(pair.out(), [outputs], TARGET)["at"])
    torch.testing.assert_close(found["at"], 0.75 * alone[0] + 0.25 * alone[1])


def test_confidence_favours_the_teacher_that_is_right():
    pair = Pair()
    right = second(pair, logits=10 * F.one_hot(TARGET, K).float())
    losses, _ = blended(pair, DistillSpec(method="kd", teachers="confidence"), right)
    logits = torch.stack([pair.taught.logits, right.logits], 1)
    weights = losses.ensemble(pair.out().embedding, logits, TARGET)
    wrong = [F.cross_entropy(logits[:, t], TARGET, reduction="none") for t in (0, 1)]
    torch.testing.assert_close(weights, 1 - torch.stack(wrong, 1).softmax(1))
    assert (weights[:, 1] > 0.5).all()
    unlabelled = losses.ensemble(pair.out().embedding, logits, torch.full((8,), -1))
    torch.testing.assert_close(unlabelled, torch.full((8, 2), 0.5))


def test_learned_weights_find_the_teacher_that_is_right():
    pair = Pair()
    right = second(pair, logits=10 * F.one_hot(TARGET, K).float())
    losses, _ = blended(pair, DistillSpec(method="kd", teachers="learned"), right)
    out = pair.out()
    optimizer = torch.optim.SGD(losses.parameters(), lr=1.0)
    for _ in range(20):
        found = losses(out, [pair.taught, right], TARGET)
        optimizer.zero_grad()
        found["gate"].backward()
        optimizer.step()
    assert out.logits.grad_fn is not None
    assert pair.model.head.weight.grad is None  # the gate does not train the student
    logits = torch.stack([pair.taught.logits, right.logits], 1)
    assert (losses.ensemble(out.embedding, logits, TARGET)[:, 1] > 0.9).all()


def test_a_distillation_token_learns_from_the_teacher_and_the_class_token_from_labels():
    pair = Pair()
    out = pair.out()
    heads = (out.logits, out.logits.flip(1))
    student = replace(out, logits=sum(heads) / 2, heads=heads)
    losses = Distiller(
        DistillSpec(method="hard_label"),
        task=TASK,
        student=bare_side(student),
        teachers=[pair.side],
    )
    found = losses(student, [pair.taught], TARGET)
    torch.testing.assert_close(found["task"], F.cross_entropy(heads[0], TARGET))
    best = pair.taught.logits.argmax(1)
    torch.testing.assert_close(found["hard_label"], F.cross_entropy(heads[1], best))
    for unused in (DistillSpec(method="kd", alpha=0.0), DistillSpec(method="kd", weight=0.0)):
        without = Distiller(unused, task=TASK, student=bare_side(student), teachers=[pair.side])
        torch.testing.assert_close(
            without(student, [pair.taught], TARGET)["task"], F.cross_entropy(student.logits, TARGET)
        )
    alone = Distiller(DistillSpec(method="none"), task=TASK, student=bare_side(student))
    torch.testing.assert_close(
        alone(student, [], TARGET)["task"], F.cross_entropy(student.logits, TARGET)
    )


def test_unlabelled_images_learn_from_the_teacher_alone():
    pair = Pair()
    target = torch.where(torch.arange(8) < 4, TARGET, -1)
    labels = torch.where(target < 0, pair.taught.logits.argmax(1), target)
    found = pair.distiller(DistillSpec(method="dkd"))(pair.out(), [pair.taught], target)
    torch.testing.assert_close(found["task"], F.cross_entropy(pair.out().logits[:4], TARGET[:4]))
    dkd = methods.get("dkd")()(pair.out().logits, pair.taught.logits, labels)
    torch.testing.assert_close(found["dkd"], dkd)


@pytest.mark.parametrize("teachers", ["confidence", "learned"])
def test_teacher_weights_are_refused_for_one_teacher(teachers):
    with pytest.raises(SpecError, match="between several teachers; there is one"):
        Pair().distiller(DistillSpec(method="kd", teachers=teachers))


@pytest.mark.parametrize("teachers", ["0.5,0.3,0.2", "1"])
def test_shares_must_be_as_many_as_teachers(teachers):
    pair = Pair()
    with pytest.raises(SpecError, match=r"shares?.*, and there are 2 teachers"):
        blended(pair, DistillSpec(method="kd", teachers=teachers), second(pair))
