"""What `check` says of a teacher is computed by hand; what it refuses, a trial would fail of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdsearch import methods
from kdsearch.cli.live import StudyConsole
from kdsearch.errors import SpecError
from kdsearch.space import Value
from kdsearch.study.config import StudyConfig
from kdsearch.workflows.calibration import best_temperature, measure_calibration
from kdsearch.workflows.check import check
from kdsearch.workflows.check_report import CheckReport, MethodCheck

SPACE = """\
student:
  family:
    choice:
      resnet: {width: {float: [0.125, 0.25]}, depth: {int: [3, 4]}}
method:
  name:
    choice:
      kd:
      kd+at: {at.weight: {float: [100.0, 10000.0], log: true}}
train: {batch_size: 16}
"""
STUDENT: dict[str, Value] = {
    "student.family": "resnet",
    "student.resnet.width": 0.125,
    "student.resnet.depth": 3,
}
TEACHERS = """\
from torch import nn

def on_digits(*layers):
    net = nn.Sequential(*layers)
    net.mean, net.std, net.resolution = (0.5,), (0.5,), 8
    return net

def flat():
    return on_digits(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

def wide():
    maps = nn.Conv2d(1, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1)
    return on_digits(*maps, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of untrained teachers on digits; the layers of `flat` keep no maps."""
    file = tmp_path_factory.mktemp("teacher") / "teachers.py"
    file.write_text(TEACHERS)
    return str(file)


def checked(out: Path, config: StudyConfig, **settings: Value) -> CheckReport:
    params = STUDENT | {name.replace("__", "."): value for name, value in settings.items()}
    with StudyConsole(quiet=True) as callback:
        return check(config, callback, out=out, params=params, device="cpu")


def by_name(found: CheckReport) -> dict[str, MethodCheck]:
    return {tried.method: tried for tried in found.methods}


def two_logits(*confidences: float) -> torch.Tensor:
    """Return logits [N, 2] that give the first class these probabilities."""
    return torch.tensor([[math.log(c / (1 - c)), 0.0] for c in confidences], dtype=torch.float64)


def test_calibration_of_four_samples_by_hand() -> None:
    # Bins are 1/15 wide. 0.95 (right) and 0.94 (wrong) share the last one, (0.933, 1]: its
    # accuracy is 0.5, its confidence 0.945. 0.7 (right) and 0.55 (wrong) are alone.
    found = measure_calibration(two_logits(0.95, 0.94, 0.7, 0.55), torch.tensor([0, 1, 0, 1]))
    assert found.images == 4
    assert found.accuracy == 0.5
    assert found.confidence == pytest.approx((0.95 + 0.94 + 0.7 + 0.55) / 4)
    assert found.ece == pytest.approx((2 * (0.945 - 0.5) + (1 - 0.7) + 0.55) / 4)
    assert found.nll == pytest.approx(-math.log(0.95 * 0.06 * 0.7 * 0.45) / 4)


def test_confidence_at_the_edge_of_a_bin_belongs_to_the_lower_one() -> None:
    # 1 falls into the last bin, with 0.94; a single sample's error is |right - confidence|.
    certain = torch.tensor([[100.0, 0.0], [math.log(0.94 / 0.06), 0.0]], dtype=torch.float64)
    found = measure_calibration(certain, torch.tensor([0, 1]))
    assert found.ece == pytest.approx(0.97 - 0.5)


def test_three_times_the_logits_want_three_times_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=logits).sample()
    best = best_temperature(logits, labels)
    scaled = best_temperature(3 * logits, labels)
    assert best is not None
    assert scaled == pytest.approx(3 * best, rel=1e-9)

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, labels))

    assert nll(best) < min(nll(1.01 * best), nll(best / 1.01))


def test_no_temperature_is_best_for_one_who_is_always_right_or_knows_nothing() -> None:
    logits = torch.eye(3)
    assert best_temperature(logits, torch.tensor([0, 1, 2])) is None
    assert best_temperature(logits, torch.tensor([1, 2, 0])) is None


def test_dkd_is_unusable_on_two_classes_with_a_reason(tmp_path: Path, out: Path) -> None:
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for place, name in enumerate(("dark", "light")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number).integers(0, 100, (8, 8, 3))
                Image.fromarray((noise + 150 * place).astype("uint8")).save(
                    folder / f"{number}.png"
                )
    config = StudyConfig(data=str(tmp_path), image_size=8, teacher_epochs=1)
    tried = by_name(checked(out, config, train__batch_size=8))
    refused = {name for name, found in tried.items() if not found.usable}
    assert refused == {"dkd", "nkd"}
    assert "needs at least 3 classes, not 2; use kd" in tried["dkd"].reason
    assert tried["kd"].loss is not None
    assert math.isfinite(tried["kd"].loss)


def test_methods_that_need_stages_are_unusable_without_them(teachers: str, out: Path) -> None:
    found = checked(out, StudyConfig(teacher=f"{teachers}:flat"))
    tried = by_name(found)
    assert sorted(tried) == list(methods.names("classification"))
    for name, method in tried.items():
        reads = methods.get(name).reads
        assert method.usable != bool(reads & {"stages", "attention", "gradient"}), method
    assert "the teacher has none" in tried["at"].reason
    assert any("nothing to save: resnet" in note for note in found.notes)


def test_batch_of_one_refuses_relations(teachers: str, out: Path) -> None:
    found = checked(out, StudyConfig(teacher=f"{teachers}:wide"), train__batch_size=1)
    refused = {tried.method for tried in found.methods if not tried.usable}
    assert refused == {name for name in methods.names() if methods.get(name).min_batch > 1}
    for name in refused:
        assert "needs at least 2 of them, not 1" in by_name(found)[name].reason
    # 128 * 9 * (1 + 128) * 64 multiply-adds and the head, against 31 thousand
    assert found.teacher_flops == pytest.approx(128 * 9 * 129 * 64 + 1280, rel=0.01)
    assert any("A wide gap in FLOPs" in note and "resnet 3" in note for note in found.notes)


def test_class_token_refuses_grad_cam(teachers: str, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("student: {family: deit}\nmethod: {name: {choice: [at, grad_cam]}}\n")
    with StudyConsole(quiet=True) as callback:
        config = StudyConfig(teacher=f"{teachers}:wide")
        found = by_name(check(config, callback, out=out, space=str(file), device="cpu"))
    assert found["at"].usable
    assert "class token" in found["grad_cam"].reason


def test_a_space_sets_the_methods_and_teachers_are_blended(
    teachers: str, out: Path, tmp_path: Path
) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    config = StudyConfig(teacher=f"{teachers}:wide,{teachers}:flat")
    seen = []
    with StudyConsole(quiet=True) as callback:
        found = check(
            config,
            callback,
            out=out,
            space=str(file),
            device="cpu",
            on_try=lambda number, total, what: seen.append((number, total, what)),
        )
    assert [tried.method for tried in found.methods] == ["kd", "kd+at"]
    assert found.methods[0].usable
    assert "the teacher has none" in found.methods[1].reason  # the second one
    assert seen == [(0, 2, "kd on resnet"), (1, 2, "kd+at on resnet")]
    assert found.batch_size == 16
    assert [teacher.name for teacher in found.teachers] == [
        f"{teachers}:wide",
        f"{teachers}:flat",
        "blend of all",
    ]
    assert [student.size for student in found.students] == ["smallest", "largest"]
    small, large = found.students
    assert small.knobs == {"width": 0.125, "depth": 3}
    assert large.knobs == {"width": 0.25, "depth": 4}
    assert small.flops is not None
    assert found.teacher_flops is not None
    assert small.flops_ratio == pytest.approx(found.teacher_flops / small.flops)


def test_a_teachers_blend_with_itself_is_itself(teachers: str, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("student: {family: resnet}\n")
    with StudyConsole(quiet=True) as callback:
        config = StudyConfig(teacher="auto,auto", teacher_epochs=1)
        found = check(config, callback, out=out, space=str(file), device="cpu")
    one, other, blend = found.teachers
    assert one == other
    assert blend.validation.accuracy == one.validation.accuracy > 0.5
    assert blend.validation.nll == pytest.approx(one.validation.nll, rel=1e-5)
    assert [tried.method for tried in found.methods] == ["kd"]


def test_student_that_cannot_be_built_is_a_wrong_request(teachers: str, out: Path) -> None:
    with pytest.raises(SpecError, match="depth 1"):
        checked(out, StudyConfig(teacher=f"{teachers}:flat"), student__resnet__depth=1)
