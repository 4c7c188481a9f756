"""Weights that students start from: found before anything is trained, and named by content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from toy_trial import DATA, context

from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student, load_student
from kdsearch.errors import SpecError, StudyError
from kdsearch.models.weights import read_facts
from kdsearch.space import default_of
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.config import StudyConfig
from kdsearch.study.config_changes import refuse_changes
from kdsearch.trials.start import (
    families_of,
    files_of,
    require_teacher,
    with_weights,
    without_missing,
)
from kdsearch.trials.trial import WEIGHTS, run_trial
from kdsearch.workflows.resolve import with_default_space

NETWORK = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return written(tmp_path_factory.mktemp("weights") / "net.safetensors")


def written(path: Path) -> Path:
    save_file(timm.create_model(NETWORK.partition(":")[2]).state_dict(), path)
    return path


def test_families_are_those_that_may_start_so() -> None:
    space = parse_space("""
student:
  family:
    choice:
      resnet: {init: {choice: [pretrained, scratch]}}
      vit: {init: scratch}
      convnext: {}
  init: {choice: [scratch, teacher]}
""")
    assert families_of(space, "pretrained") == ["resnet"]
    assert families_of(space, "teacher") == ["convnext"]


def test_a_study_is_named_by_the_content_of_its_weights(weights: Path, tmp_path: Path) -> None:
    def config(file: Path) -> StudyConfig:
        given = StudyConfig(student_weights=str(file))
        return with_weights(given, [NETWORK], sole=NETWORK)

    first, copy = config(weights), tmp_path / "net.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert files_of(first) == {NETWORK: weights}
    assert config(copy).pretrained_key == first.pretrained_key
    torch.manual_seed(1)
    written(copy)
    with pytest.raises(StudyError, match=r"the content of the pretrained weights: .* -> "):
        refuse_changes("study", first, config(copy))


def test_all_that_is_missing_is_one_error_before_the_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SpecError) as error:
        with_weights(StudyConfig(), [NETWORK, "vit"], sole=None)
    assert f"give --pretrained-weights {NETWORK}=FILE" in str(error.value)
    assert "no pretrained weights of 'vit'" in str(error.value)
    with pytest.raises(SpecError, match="no student starts from it"):
        with_weights(StudyConfig(student_weights=f"vit={__file__}"), [], sole=None)


@pytest.mark.parametrize("space", ["classification-mobile", "transfer"])
def test_a_built_in_space_starts_from_the_weights_there_are(
    space: str, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    known = "timm:tf_efficientnet_lite0"
    config = StudyConfig(
        space=find_space(space).text, pretrained_weights=f"{known}={weights}", batch_size=8
    )
    families = families_of(config.search_space())
    found, lines = without_missing(config)
    assert families_of(found.search_space(), "pretrained") == [known]
    missing = [each for each in families_of(config.search_space(), "pretrained") if each != known]
    is_optional = space == "classification-mobile"
    what = "start from scratch" if is_optional else "are left out"
    known_by = "Pretrained weights are missing; these families"
    assert lines[0] == f"{known_by} {what}: {', '.join(missing)}"
    assert lines[1].startswith(f"The pretrained weights of {missing[0]} are not on this machine")
    assert "give --pretrained-weights " in lines[1]
    left = families_of(found.search_space())
    assert left == (families if is_optional else [known])
    walked = found.search_space().walk(lambda name, dim: default_of(dim))
    assert walked[f"student.{known}.init"] == "pretrained"


@pytest.mark.parametrize(
    ("images", "without"), [(1000, "transfer"), (5000, "classification-mobile")]
)
def test_a_default_space_without_its_weights_is_named(
    images: int, without: str, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    data = SimpleNamespace(size=(64, 64), labelled=range(images), task="classification")
    name, config, lines = with_default_space(StudyConfig(data="photos"), data)
    assert (name, config.space) == ("classification-scratch", find_space(name).text)
    passed_over = f"The space {without} is left out, as its pretrained weights are missing; "
    assert lines[0] == f"{passed_over}classification-scratch takes its place"
    assert len(lines) == len(set(lines))
    assert any("give --pretrained-weights timm:" in line for line in lines[1:])

    given = StudyConfig(data="photos", pretrained_weights=f"timm:tf_efficientnet_lite0={weights}")
    name, _, lines = with_default_space(given, data)
    assert name == without
    assert not any("left out, as its" in line for line in lines)


def test_a_space_of_nothing_but_missing_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SpecError) as error:
        without_missing(StudyConfig(space=find_space("transfer").text))
    for family in ("timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_100"):
        assert f"give --pretrained-weights {family}=FILE" in str(error.value)


def test_a_teacher_of_another_architecture_is_refused_before_the_search(tmp_path: Path) -> None:
    teachers = context(tmp_path).teachers
    with pytest.raises(
        SpecError, match=r"student.init teacher: vit: the architecture of the teach"
    ):
        require_teacher(["vit"], teachers)
    require_teacher([], teachers)


@pytest.fixture
def candidate() -> Candidate:
    return Candidate(
        student=StudentSpec(family=NETWORK, init="pretrained", knobs={"depth": 0.0}, resolution=32),
        distill=DistillSpec(method="none"),
        train=TrainSpec(epochs=1, batch_size=16, lr=1e-4),
    )


def test_a_trial_trains_and_keeps_what_it_started_from(
    weights: Path, tmp_path: Path, candidate: Candidate
) -> None:
    shared = replace(context(tmp_path), weights={NETWORK: weights})
    outcome = run_trial(candidate, shared, tmp_path / "trial")
    assert outcome.state == "complete", outcome.reason
    assert outcome.inherited > 0.9
    file = tmp_path / "trial" / WEIGHTS
    student = load_student(candidate.student, DATA, file)
    assert read_facts(file).keys() == {"mean", "std", "sha256"}
    assert student.preprocess.mean == pytest.approx((0.449,) * DATA.channels, abs=0.05)
    _, params = count(student.network, input_shape=student.preprocess.input_shape)
    assert file.stat().st_size < 4.2 * params + 60_000  # nothing of the blocks left out


def test_no_price_depends_on_the_init(tmp_path: Path, candidate: Candidate) -> None:
    student = build_student(candidate.student, DATA)
    scratch = build_student(StudentSpec(family=NETWORK, knobs={"depth": 0.0}, resolution=32), DATA)
    shape = student.preprocess.input_shape
    assert count(student.network, input_shape=shape) == count(scratch.network, input_shape=shape)


def test_a_rejected_candidate_reads_no_weights(tmp_path: Path, candidate: Candidate) -> None:
    missing = {NETWORK: tmp_path / "nothing.safetensors"}
    shared = replace(context(tmp_path, Budget(flops=1.0)), weights=missing)
    outcome = run_trial(candidate, shared, tmp_path / "t")
    assert outcome.state == "rejected"
