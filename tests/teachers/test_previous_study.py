"""A student teaches the next study with the weights and the eyes it had; what cannot is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from quick import quick
from toy_data import CPU, toy_data

from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError, StudyError
from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.weights import save_weights
from kdsearch.study.callbacks import Callback
from kdsearch.study.open import load_study
from kdsearch.study.options import RunOptions
from kdsearch.tasks.classification import Classification
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.previous_study import find_student
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.validation import evaluate
from kdsearch.trials.context import load_data
from kdsearch.workflows.run import run_study

SPACE = """\
student:
  family:
    choice:
      resnet:
        width: {float: [0.125, 0.5]}
        depth: 3
method: {name: {choice: {none: {}}}}
train: {epochs: 1, lr: {float: [0.04, 0.3], log: true}}
"""


class Silent(Callback):
    """Tells nobody."""


@pytest.fixture(scope="module")
def study(fast_path: Path) -> Path:
    """Return the folder of a study of two trials, one of which lost its weights."""
    space = fast_path / "space.yaml"
    space.write_text(SPACE)
    given = {"space": str(space), "subset": 200, "teacher_epochs": 1}
    options = RunOptions(trials=2, device="cpu")
    with quick():
        return run_study(given, Silent(), out=fast_path, name="phones", options=options).path


@pytest.fixture(scope="module")
def data(study: Path) -> ImageData:
    return load_data(load_study(study).config, study.parent)[0]


def load(name: str, data: ImageData, tmp_path: Path, epochs: int | None = None) -> Model:
    spec = TeacherSpec(name=name, epochs=epochs)
    return load_teacher(spec, data, cache_dir=tmp_path / "cache", seed=0, device=CPU)


def refusal(name: str, data: ImageData, tmp_path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load(name, data, tmp_path)
    return str(caught.value)


def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / study.name))  # the store knows it by name


def kept_and_lost(study: Path) -> tuple[list[int], list[int]]:
    numbers = range(len(load_study(study).records()))
    files = {n: study / "trials" / f"{n:06d}" / "student.safetensors" for n in numbers}
    kept = [n for n in numbers if files[n].is_file()]
    return kept, [n for n in numbers if n not in kept]


def test_what_a_study_shipped_teaches_with_the_answer_of_its_file(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    teacher = load(f"study:{study}", data, tmp_path)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    logits = teacher(data.val.at(slice(None)))
    session = onnxruntime.InferenceSession(study / "best" / "student.onnx")
    (shipped,) = session.run(
        None, {session.get_inputs()[0].name: teacher.preprocess(data.val.at(slice(None))).numpy()}
    )
    np.testing.assert_allclose(logits.numpy(), shipped, rtol=1e-4, atol=1e-4)
    assert torch.equal(
        load(f"study:{study / 'best'}", data, tmp_path)(data.val.at(slice(None))), logits
    )


def test_a_trial_teaches_as_well_as_it_was_judged(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    kept, _ = kept_and_lost(study)
    records = load_study(study).records()
    for number in kept:
        teacher = load(f"study:{study}#{number}", data, tmp_path)
        assert evaluate(teacher, data.val, Classification(), CPU) == records[number].val
    number = json.loads((study / "front.json").read_text())["shipped"]["trial"]
    trial = load(f"study:{study}#{number}", data, tmp_path)
    shipped = load(f"study:{study}", data, tmp_path)
    assert torch.equal(trial(data.val.at(slice(None))), shipped(data.val.at(slice(None))))


def test_other_images_are_shown_as_those_it_was_trained_on(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    """And so a bare trial, which does not say how that was, teaches on no others."""
    kept, _ = kept_and_lost(study)
    other = replace(data, key="other", mean=(0.9,), std=(2.0,))
    teacher = load(f"study:{study}", other, tmp_path)
    assert (teacher.preprocess.mean, teacher.preprocess.std) == (data.mean, data.std)
    message = refusal(f"study:{study}#{kept[0]}", other, tmp_path)
    assert "a trial teaches on its own study's images alone" in message
    assert f"study:{study}, the best student, teaches on any" in message


def test_a_trial_without_weights_is_refused_and_those_with_weights_are_named(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    folder = copied(study, tmp_path)
    kept, _ = kept_and_lost(study)
    (folder / "trials" / f"{kept[0]:06d}" / "student.safetensors").unlink()
    left, lost = kept_and_lost(folder)
    assert left
    assert kept[0] in lost
    message = refusal(f"study:{folder}#{kept[0]}", data, tmp_path)
    assert "its weights were not kept" in message
    assert message.endswith(", ".join(f"study:{folder}#{number}" for number in left))
    assert "the study has no such trial" in refusal(f"study:{folder}#99", data, tmp_path)


def test_before_a_study_has_shipped_its_trials_can_teach(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    folder = copied(study, tmp_path)
    shutil.rmtree(folder / "best")
    kept, _ = kept_and_lost(folder)
    message = refusal(f"study:{folder}", data, tmp_path)
    assert f"there is no {folder / 'best' / 'config.yaml'}; trials with weights: " in message
    assert f"study:{folder}#{kept[0]}" in message
    assert load(f"study:{folder}#{kept[0]}", data, tmp_path).preprocess.channels == 1


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert refusal(f"study:{here}", toy_data(), tmp_path).endswith("best/config.yaml")
    with pytest.raises(StudyError, match="there is no study at"):
        load(f"study:{here}#1", toy_data(), tmp_path)
    assert "unknown teacher 'study:'" in refusal("study:", toy_data(), tmp_path)


def test_a_study_named_without_its_prefix_gets_the_prefix_as_a_hint(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    message = refusal(str(study), data, tmp_path)
    assert f"(the student of that study is named study:{study})" in message


def test_a_student_teaches_the_classes_that_it_knows_by_name(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    images = data.val.at(slice(5))
    whole = load(f"study:{study}", data, tmp_path)(images)

    turned = replace(data, classes=tuple(reversed(data.classes)))
    in_order = load(f"study:{study}", turned, tmp_path)
    assert in_order.classes is None
    torch.testing.assert_close(in_order(images), whole.flip(1))

    more = replace(data, classes=("new", "3", "newer", "1"))
    some = load(f"study:{study}", more, tmp_path)
    assert some.classes == (1, 3)
    torch.testing.assert_close(some(images), whole[:, [3, 1]])

    three = toy_data()
    assert load(f"study:{study}", three, tmp_path).classes == ()


def test_a_student_of_other_classes_is_fine_tuned(
    study: Path, data: ImageData, tmp_path: Path
) -> None:
    three = toy_data()

    tuned = load(f"study:{study}", three, tmp_path, epochs=1)

    assert tuned(three.val.at(slice(None))).shape == (60, 3)
    before, after = load(f"study:{study}", data, tmp_path).state_dict(), tuned.state_dict()
    moved = {name: (after[name] - before[name]).abs().max() for name in before if "stem" in name}
    weights = [moved[name] for name in moved if name.endswith("weight")]
    assert 0 < max(weights) < 0.05


def test_a_new_head_comes_on_an_unchanged_body(study: Path, data: ImageData) -> None:
    earlier = find_student(str(study), data)
    old, new = (earlier.build(Classification(list(map(str, range(n))))).eval() for n in (10, 4))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(old.features(x).embedding, new.features(x).embedding)
    assert new(x).shape == (2, 4)


def test_a_library_student_needs_no_download(
    study: Path, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pretrained weights were the start of a training whose end is in the folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = copied(study, tmp_path) / "best"
    name = "mobilenetv3_small_050"
    network = timm.create_model(name, num_classes=10, in_chans=1).eval()
    save_weights(network, folder / "student.safetensors")
    config = {"student": f"timm:{name}", "resolution": 8, "set": {"student.init": "pretrained"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    teacher = load(f"study:{folder}", data, tmp_path)
    expected = network(teacher.preprocess(data.val.at(slice(4)))).detach()
    assert torch.equal(teacher(data.val.at(slice(4))), expected)
    assert bare(teacher.network).state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("config.yaml", "student: resnet", "does not name a student (KeyError('set'))"),
        ("config.yaml", "student: [", "does not name a student"),
        ("config.yaml", "student: resnt\nset: {}", "did you mean 'resnet'"),
        ("config.yaml", "student: vit\nset: {}", "do not fit the network"),
        ("student.onnx", "no file of ONNX's", "does not state the images"),
        ("student.onnx", "", "does not state the images"),
        ("student.safetensors", "none", "is not a readable weights file"),
    ],
)
def test_a_damaged_folder_is_refused(
    study: Path, data: ImageData, tmp_path: Path, file: str, content: str, text: str
) -> None:
    folder = copied(study, tmp_path)
    (folder / "best" / file).write_text(content)
    assert text in refusal(f"study:{folder}", data, tmp_path)


def test_a_spec_names_the_file_of_its_weights(study: Path) -> None:
    kept, _ = kept_and_lost(study)
    assert TeacherSpec(name=f"study:{study}").weights_file == study / "best/student.safetensors"
    own = TeacherSpec(name=f"study:{study}#{kept[0]}").weights_file
    assert own == study / "trials" / f"{kept[0]:06d}" / "student.safetensors"
    assert TeacherSpec(name="timm:resnet18", weights="w.pt").weights_file == Path("w.pt")
    assert TeacherSpec().weights_file is None
    with pytest.raises(SpecError, match="has weights of its own"):
        TeacherSpec(name=f"study:{study}", weights="w.pt")
