"""`--teacher auto` on photographs starts from weights, where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from toy_data import CPU, toy_data

from kdsearch.data.base import ImageData
from kdsearch.models.model import Model
from kdsearch.models.weights import save_weights
from kdsearch.study.config import StudyConfig
from kdsearch.teachers import pretrained
from kdsearch.teachers.load import _start_of, load_teacher
from kdsearch.teachers.pretrained import (
    KNOWN,
    about_scratch,
    find_pretrained,
)
from kdsearch.teachers.spec import TeacherSpec, teacher_specs
from kdsearch.training.trainer import Epoch

SMALL = "timm:mobilenetv3_small_050"
PHOTOGRAPHS = toy_data(channels=3, size=64)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_from_hub", lambda: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights of a network that nobody trained: its features are read all the same."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(timm.create_model(SMALL.partition(":")[2], num_classes=10), file)
    return file


def test_the_largest_known_network_with_weights_comes_first(tmp_path: Path) -> None:
    files = {name: tmp_path / name.partition(":")[2] for name in (SMALL, KNOWN[3], KNOWN[1])}
    for given, expected in ((files, KNOWN[1]), ({SMALL: files[SMALL]}, SMALL)):
        found = find_pretrained(TeacherSpec(pretrained=given), PHOTOGRAPHS)
        assert found is not None
        assert (found.name, found.weights) == (expected, str(files[expected]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("auto", toy_data(channels=3, size=32)),
        ("auto", toy_data(channels=1, size=64)),
        ("cifar_resnet20", PHOTOGRAPHS),
    ],
    ids=["small", "grey", "named"],
)
def test_weights_of_photographs_are_for_photographs_and_for_auto(
    name: str, data: ImageData, tmp_path: Path
) -> None:
    spec = TeacherSpec(name=name, epochs=1, pretrained={KNOWN[0]: tmp_path / "file"})
    assert find_pretrained(spec, data) is None
    assert about_scratch(spec, data) is None


def test_a_network_of_a_library_takes_its_file_of_pretrained_weights() -> None:
    config = StudyConfig(
        teacher="timm:one,timm:two,timm:three",
        teacher_weights=",own,",
        pretrained_weights=f"timm:one={__file__},timm:two={__file__}",
    )
    assert [spec.weights for spec in teacher_specs(config)] == [__file__, "own", None]


def test_without_weights_the_cost_is_said(tmp_path: Path) -> None:
    assert "--pretrained-weights timm:" in (about_scratch(TeacherSpec(), PHOTOGRAPHS) or "")
    given = TeacherSpec(pretrained={KNOWN[0]: tmp_path / "file"})
    assert about_scratch(given, PHOTOGRAPHS) is None


def test_a_pretrained_teacher_inherits_all_but_the_head_and_sees_images_as_its_weights_did(
    weights: Path,
) -> None:
    model = _start_of(TeacherSpec(pretrained={SMALL: weights}), PHOTOGRAPHS, print)
    config = timm.get_pretrained_cfg(SMALL.partition(":")[2])
    assert model.preprocess.mean == config.mean
    assert model.preprocess.size == PHOTOGRAPHS.size
    own = {name for name, _ in model.network.named_parameters()} - model.inherited
    assert own == {"module.classifier.weight", "module.classifier.bias"}
    assert model(PHOTOGRAPHS.val.at(slice(2))).shape == (2, 3)


def test_a_pretrained_teacher_is_at_least_its_fitted_head_and_is_cached(
    weights: Path, tmp_path: Path
) -> None:
    spec = TeacherSpec(epochs=1, pretrained={SMALL: weights})
    seen: list[Epoch] = []

    def load() -> Model:
        return load_teacher(
            spec,
            PHOTOGRAPHS,
            cache_dir=tmp_path,
            seed=0,
            device=CPU,
            on_epoch=lambda epoch, _: seen.append(epoch),
        )

    teacher = load()
    assert teacher.name == SMALL
    assert [epoch.number for epoch in seen] == [0, 1]
    assert seen[1].val >= seen[0].val > 0.8
    again = load()
    assert len(seen) == 2
    images = PHOTOGRAPHS.val.at(slice(4))
    torch.testing.assert_close(again(images), teacher(images))
