from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch import methods
from kdsearch.distiller import Distiller, check
from kdsearch.errors import SpecError
from kdsearch.spec import DistillSpec
from kdsearch.taps import Outputs

K = 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


class Toy(nn.Module):
    """A network of three or two stages whose maps shrink (CNN) or keep their grid (ViT)."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], stride, stride=stride)
            if stride > 1
            else nn.Conv2d(widths[i], widths[i + 1], 3, padding=1)
            for i, stride in enumerate(strides)
        )
        self.head = nn.Linear(channels[-1], K)

    def forward(self, images):
        maps, found = images, []
        for stage in self.stages:
            maps = torch.tanh(stage(maps))
            found.append(maps)
        embedding = maps.mean((2, 3))
        return Outputs(self.head(embedding), embedding, tuple(found))


KINDS = {
    "cnn": lambda: Toy((4, 6, 8), (1, 2, 2)),
    "wide cnn": lambda: Toy((8, 12), (2, 2)),
    "vit": lambda: Toy((10, 10, 10, 10), (4, 1, 1, 1)),
}
PAIRS = [("cnn", "wide cnn", 16), ("cnn", "vit", 32), ("vit", "cnn", 16)]


def networks(student="cnn", teacher="wide cnn", resolution=16):
    """Return the student, its images and the teacher's outputs on them at another resolution."""
    torch.manual_seed(0)
    model, images = KINDS[student](), torch.randn(8, 3, 16, 16)
    shown = F.interpolate(images, (resolution, resolution))
    with torch.no_grad():
        taught = KINDS[teacher]()(shown)
    return model, images, taught


def distiller(spec, student, teacher, resolution=16, **settings):
    return Distiller(
        spec,
        student=student,
        teacher=teacher,
        student_resolution=16,
        teacher_resolution=resolution,
        **settings,
    )


def cases():
    for name in methods.names():
        need = methods.get(name).need
        mappings = ["last", "even", "stride", "0:1,-1:-1"] if need == "stages" else [None]
        yield from ((name, mapping) for mapping in mappings if need != "nothing")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} from {pair[1]}")
@pytest.mark.parametrize(("name", "mapping"), list(cases()))
def test_twenty_steps_lower_the_term(name, mapping, pair):
    model, images, taught = networks(*pair)
    losses = distiller(DistillSpec(method=name, mapping=mapping), model(images), taught, pair[2])
    parameters = [*model.parameters(), *losses.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    curve = []
    for _ in range(21):
        value = losses(model(images), taught, TARGET)[name]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    assert curve[-1] < curve[0]


def test_total_follows_the_formula():
    model, images, taught = networks()
    spec = DistillSpec(method="rkd", alpha=0.3, weight=7.0, temperature=2.0)
    out = model(images)
    found = distiller(spec, out, taught, label_smoothing=0.1)(out, taught, TARGET)

    task = F.cross_entropy(out.logits, TARGET, label_smoothing=0.1)
    rkd = methods.get("rkd")()(out.embedding, taught.embedding, TARGET)
    kd = methods.get("kd")(temperature=2.0)(out.logits, taught.logits, TARGET)
    assert list(found) == ["task", "rkd", "kd", "loss"]
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["rkd"], rkd)
    torch.testing.assert_close(found["kd"], kd)
    torch.testing.assert_close(found["loss"], 0.7 * task + 0.3 * (7.0 * rkd + kd))


@pytest.mark.parametrize("name", methods.names())
def test_defaults_come_from_the_method(name):
    model, images, taught = networks()
    out, method = model(images), methods.get(name)
    found = distiller(DistillSpec(method=name), out, taught)(out, taught, TARGET)
    term = found.get(name, torch.tensor(0.0))
    torch.testing.assert_close(
        found["loss"], (1 - method.alpha) * found["task"] + method.alpha * method.weight * term
    )


def test_temperature_and_knobs_reach_the_method():
    model, images, taught = networks()
    out = model(images)
    spec = DistillSpec(method="dkd", temperature=2.0, knobs={"beta": 3.0})
    found = distiller(spec, out, taught)(out, taught, TARGET)
    by_hand = methods.get("dkd")(temperature=2.0, beta=3.0)(out.logits, taught.logits, TARGET)
    assert list(found) == ["task", "dkd", "loss"]
    torch.testing.assert_close(found["dkd"], by_hand)


def test_alias_reports_under_the_methods_name():
    model, images, taught = networks()
    out = model(images)
    found = distiller(DistillSpec(method="attention_transfer"), out, taught)(out, taught, TARGET)
    assert list(found) == ["task", "at", "loss"]


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        (DistillSpec(method="none"), set()),
        (DistillSpec(method="kd"), {"logits"}),
        (DistillSpec(method="rkd"), {"embedding"}),
        (DistillSpec(method="at"), {"stages"}),
        (DistillSpec(method="at", temperature=4.0), {"stages", "logits"}),
    ],
)
def test_need_names_what_the_teacher_must_deliver(spec, need):
    model, images, taught = networks()
    losses = distiller(spec, model(images), taught)
    assert losses.need == need
    assert losses.needs_teacher is bool(need)


def test_without_a_teacher_the_loss_is_the_task():
    model, images, _ = networks()
    out = model(images)
    found = distiller(DistillSpec(method="none", alpha=0.0), out, None)(out, None, TARGET)
    assert list(found) == ["task", "loss"]
    assert torch.equal(found["loss"], found["task"])


def test_adapters_are_made_only_where_channels_differ():
    model, images, taught = networks("cnn", "wide cnn")
    channels = [8, 12]  # the student's last map has 8 channels, the teacher's maps 8 and 12
    sizes = []
    for stage in range(len(channels)):
        spec = DistillSpec(method="fitnet", mapping=f"-1:{stage}")
        sizes.append([tuple(p.shape) for p in distiller(spec, model(images), taught).parameters()])
    assert sizes == [[], [(12, 8, 1, 1), (12,), (12,)]]
    assert not list(distiller(DistillSpec(method="at"), model(images), taught).parameters())


def test_gradient_reaches_student_and_adapters():
    model, images, taught = networks("cnn", "vit", 32)
    losses = distiller(DistillSpec(method="fitnet", mapping="even"), model(images), taught, 32)
    losses(model(images), taught, TARGET)["fitnet"].backward()
    assert all(p.grad is not None for p in [*losses.parameters(), *model.stages.parameters()])
    assert all(p.grad.abs().sum() > 0 for p in model.stages.parameters())


def test_stages_meet_by_stride_across_resolutions():
    """A map of 8 x 8 has stride 2 at 16 pixels and stride 4 at 32: it pairs with 4 x 4."""
    model, images, _ = networks()
    with torch.no_grad():
        taught = KINDS["cnn"]()(F.interpolate(images, (32, 32)))
    spec = DistillSpec(method="fitnet", mapping="stride")
    same = distiller(spec, model(images), taught, 32)
    assert same.terms[0].pairs == [(0, 0), (1, 1), (2, 2)]
    single = Outputs(taught.logits, taught.embedding, taught.stages[2:])  # 8 x 8 of 32: stride 4
    assert distiller(spec, model(images), single, 32).terms[0].pairs == [(2, 0)]


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
    model, images, taught = networks()
    out = model(images)
    found = distiller(DistillSpec(method=name, knobs={"power": 1.0}), out, taught)(
        out, taught, TARGET
    )
    torch.testing.assert_close(found[name], F.l1_loss(out.logits, taught.logits))
    torch.testing.assert_close(found["loss"], 0.75 * found["task"] + 0.25 * found[name])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (DistillSpec(method="kdd"), "unknown method 'kdd'.*did you mean"),
        (
            DistillSpec(method="dkd", knobs={"betta": 1.0}),
            r"unknown knob 'betta' \(did you mean 'beta'\?\); it accepts temperature, beta",
        ),
        (DistillSpec(method="at", knobs={"p": 2}), "unknown knob 'p'; it accepts no knobs"),
        (DistillSpec(method="rkd", knobs={"angle": -1.0}), r"rkd\.angle: -1\.0"),
        (DistillSpec(method="kd", temperature=2.0, knobs={"temperature": 4.0}), "given twice"),
        (DistillSpec(method="kd", mapping="last"), "methods that compare stages; 'kd' compares"),
        (DistillSpec(method="at", mapping="lats"), "did you mean 'last'"),
        (DistillSpec(method="none", alpha=0.5), r"hears no teacher.*method\.alpha = 0\.5"),
        (DistillSpec(method="none", temperature=4.0), r"no use for method\.temperature = 4\.0"),
        (DistillSpec(method="none", mapping="last"), r"no use for method\.mapping = 'last'"),
    ],
)
def test_contradictory_recipe_is_refused_without_a_network(spec, says):
    with pytest.raises(SpecError, match=says):
        check(spec)


@pytest.mark.parametrize("name", methods.names())
def test_recipe_of_defaults_passes(name):
    check(DistillSpec(method=name))


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_classes_must_agree_where_logits_are_compared(name):
    model, images, taught = networks()
    other = Outputs(torch.zeros(8, K + 1), taught.embedding, taught.stages)
    with pytest.raises(SpecError, match=r"equal B, K; .*\[8, 5\] of the student and \[8, 6\]"):
        distiller(DistillSpec(method=name), model(images), other)


def test_binary_task_is_refused_by_dkd_before_training():
    binary = Outputs(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(SpecError, match="at least 3 classes"):
        distiller(DistillSpec(method="dkd"), binary, binary)


def test_teacher_without_stages_is_told_which_methods_remain():
    model, images, taught = networks()
    bare = Outputs(taught.logits, taught.embedding)
    with pytest.raises(SpecError, match=r"the teacher shows none; .*: dkd, kd, none, rkd"):
        distiller(DistillSpec(method="at"), model(images), bare)


def test_missing_teacher_is_refused():
    model, images, taught = networks()
    out = model(images)
    with pytest.raises(SpecError, match="'kd' needs a teacher"):
        distiller(DistillSpec(method="kd"), out, None)
    with pytest.raises(SpecError, match="'kd' was given no teacher's outputs"):
        distiller(DistillSpec(method="kd"), out, taught)(out, None, TARGET)
