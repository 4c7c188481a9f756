"""The spaces that ship are sound; a user's is refused with every mistake and its line."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from kdsearch import methods
from kdsearch.data.base import DETECTION, SEGMENTATION
from kdsearch.errors import SpaceError
from kdsearch.models import dense, heads, students
from kdsearch.space import Choice, Constant, Float, Int, SearchSpace, Value
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Candidate
from kdsearch.study.builtin_spaces import builtin, check_space, default_spaces, find_space
from kdsearch.tasks.segmentation import Segmentation
from kdsearch.training import distiller

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "spaces.md"
HEAD = "student: {family: {choice: {resnet: , vit: }}}\n"


def walks(space: SearchSpace) -> list[dict[str, Value]]:
    """Return walks that between them take every option, at both ends of every range."""
    widest = max([2, *(len(d.options) for _, d in space.all_dims() if isinstance(d, Choice))])
    found = []
    for turn in range(widest):

        def pick(_: str, dim: Float | Int | Choice, turn: int = turn) -> Value:
            if isinstance(dim, Choice):
                return dim.options[turn % len(dim.options)]
            return dim.high if turn % 2 else dim.low

        found.append(space.walk(pick))
    return found


def mistakes(text: str) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        parse_space(text, source="s.yaml", check=check_space)
    return str(caught.value).splitlines()


sound = cache(find_space)  # raises SpaceError for a space with a mistake


@pytest.mark.parametrize("name", builtin())
def test_a_space_that_ships_offers_only_candidates_that_exist(name: str) -> None:
    for params in walks(sound(name)):
        candidate = Candidate.from_params(params)
        body, head = heads.split(candidate.student.knobs)
        students.check(replace(candidate.student, knobs=body))
        if head:
            task = DETECTION if name.startswith(DETECTION) else SEGMENTATION
            heads.build(head, maps=(8, 16, 32), strides=(4, 8, 16), num_classes=2, task=task)
        distiller.check(candidate.distill)


@pytest.mark.parametrize("name", builtin())
def test_a_built_in_space_names_its_command(name: str) -> None:
    header = builtin()[name].read_text(encoding="utf-8").split("\nstudent:")[0].splitlines()
    assert all(line.startswith("# ") for line in header)
    assert any("kdsearch run" in line for line in header)


def test_spaces_ship_for_digits_for_each_size_and_for_each_half_of_the_search() -> None:
    assert builtin().keys() == {
        "digits",
        "classification-small",
        "classification-mobile",
        "classification-scratch",
        "detection-mobile",
        "detection-small",
        "heterogeneous",
        "methods-only",
        "architecture-only",
        "resnet-kd",
        "segmentation-mobile",
        "segmentation-small",
        "transfer",
    }


@pytest.mark.parametrize("name", builtin())
def test_a_space_that_ships_takes_the_line_of_class_weights_in_the_docs(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    line = re.search(r"^`(class_weights: .+)`$", page, re.MULTILINE)
    assert line is not None
    text = builtin()[name].read_text(encoding="utf-8")
    added = parse_space(text.replace("\ntrain:\n", f"\ntrain:\n  {line[1]}\n"), check=check_space)
    assert added.dims["train.class_weights"] == Choice(options=(0.0, 0.5, 1.0))
    assert "train.class_weights" not in sound(name).dims
    walked = added.walk(lambda _, dim: dim.options[-1] if isinstance(dim, Choice) else dim.low)
    assert Candidate.from_params(walked).train.class_weights == 1.0


@pytest.mark.parametrize("name", [name for name in builtin() if name.startswith("segmentation-")])
def test_each_candidate_of_a_space_for_segmentation_is_a_body_under_a_head(name: str) -> None:
    for params in walks(sound(name)):
        spec = Candidate.from_params(params).student
        size = Segmentation(["a", "b"]).input_size((384, 512), spec.resolution)
        with torch.device("meta"):
            network = dense.build(spec, channels=3, num_classes=2, size=size).eval()
            maps = network.maps(torch.empty(1, 3, *size))
        limit = int(str(spec.knobs.get("head.output_stride", 32)))
        assert size[1] // maps[-1].shape[3] == min(32, limit)
        assert max(size) == (spec.resolution or 512)


def test_methods_only_holds_every_method_with_the_ranges_it_declares() -> None:
    space = sound("methods-only")
    dims = dict(space.all_dims())
    offered = dims["method.name"]
    assert isinstance(offered, Choice)
    classifies = [name for name in methods.names() if not methods.get(name).tasks]
    assert set(classifies) <= set(offered.options)
    for name in classifies:
        prefix = f"method.{name}."
        own = {key.removeprefix(prefix): d for key, d in dims.items() if key.startswith(prefix)}
        ranges = {
            key: replace(dim, default=None) if isinstance(dim, Float | Int) else dim
            for key, dim in own.items()
        }
        assert ranges == dict(methods.get(name).ranges)
    student = {key: d for key, d in dims.items() if key.startswith("student.resnet.")}
    assert all(isinstance(dim, Constant) for dim in student.values())


def test_an_optimizer_may_own_its_rate() -> None:
    text = HEAD + (
        "train: {optimizer: {choice: {sgd: {lr: 0.1}, adamw: {lr: {float: [0.001, 0.002]}}}}}\n"
    )
    space = parse_space(text, source="s.yaml", check=check_space)
    walked = space.walk(lambda _, dim: dim.options[1] if isinstance(dim, Choice) else dim.low)
    train = Candidate.from_params(walked).train
    assert (train.optimizer, train.lr) == ("adamw", 0.001)


def test_values_of_a_method_are_tried_before_any_trial() -> None:
    text = HEAD + (
        "method: {name: {choice: {kd: {temperature: {float: [-1.0, 4.0]}, alpha: 2.0},\n"
        "  at: {temperature: 4.0, mapping: {choice: [lats]}},\n"
        "  at+kd: {kd: {temperature: 4.0}, temperature_schedule: cosine}}}}\n"
    )
    found = mistakes(text)
    assert len(found) == 4
    assert any("unknown knob 'temperature' for method 'at'" in line for line in found)
    assert any("temperature" in line and "-1.0 is not a number > 0" in line for line in found)
    assert any("alpha" in line and "2.0 is not in [0, 1]" in line for line in found)
    assert any("mapping" in line and "did you mean 'last'" in line for line in found)


def test_a_default_space_suits_the_images_and_the_last_needs_no_weights() -> None:
    assert default_spaces("digits", 8, 1000) == ("digits",)
    assert default_spaces("mine", 32, 1000) == ("classification-small",)
    assert default_spaces("mine", 64, 4999) == ("transfer", "classification-scratch")
    many = ("classification-mobile", "classification-scratch")
    assert default_spaces("mine", 64, 5000) == many
    for task in (SEGMENTATION, DETECTION):
        assert default_spaces("mine", 64, 1000, task) == (f"{task}-small",)


def test_a_space_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)
    assert find_space(str(path)).text == HEAD
    assert find_space("digits").text == builtin()["digits"].read_text(encoding="utf-8")
    with pytest.raises(SpaceError, match=r"'digts' is neither .* \(did you mean 'digits'\?\)"):
        find_space("digts")


ONE_MISTAKE = {
    "student: {family: resnt}": (
        1,
        "unknown student family 'resnt' (did you mean 'resnet'?); known: convnext, ",
    ),
    "student: {family: {choice: {resnet: ,\n vitt: {depth: 4}}}}": (
        2,
        "unknown student family 'vitt' (did you mean 'vit'?)",
    ),
    "student: {family: timm:resnt18}": (
        1,
        "timm has no model 'resnt18' (did you mean 'resnet18'?)",
    ),
    "student:\n  family:\n    {choice: [vit, vitt]}": (2, "unknown student family 'vitt'"),
    "student: {resolution: 8}": (1, "the space has no 'student.family'"),
    f"{HEAD}method: {{name: kdd}}": (2, "unknown method 'kdd' (did you mean 'kd'?)"),
    f"{HEAD}train: {{lrr: 1}}": (2, "unknown key 'lrr' (did you mean 'lr'?); known: epochs, "),
    f"{HEAD}tarin: {{lr: 1}}": (2, "unknown section 'tarin' (did you mean 'train'?)"),
    f"{HEAD}train: {{lr: -1}}": (2, "train.lr: -1.0"),
    f"{HEAD}train:\n  epochs: {{int: [0, 5]}}": (3, "train.epochs: 0"),
    f"{HEAD}train: {{optimizer: {{choice: [sgd, adam]}}}}": (2, "train.optimizer: 'adam'"),
    f"{HEAD}train: {{epochs: {{float: [1, 5.5]}}}}": (2, "train.epochs: "),
    "student:\n  family:\n    choice:\n      resnet:\n        wdith: 1": (
        5,
        "unknown knob 'wdith' for family 'resnet' (did you mean 'width'?); known: width, depth, ",
    ),
    "student:\n  family: resnet\n  resnet:\n    depth: {int: [1, 9]}": (
        4,
        "student resnet at 32 px: depth 1 is not a whole number in [3, 512]",
    ),
    "student:\n  family: resnet\n  head: {output_stride: {choice: [16, 12]}}": (
        3,
        "head.output_stride: 12 is not one of 8, 16, 32",
    ),
    "student:\n  family: resnet\n  vit: {depth: 4}": (3, "'vit' is no family of this space"),
    f"{HEAD}method:\n  name: kd\n  kd: {{beta: 1}}": (
        4,
        "unknown knob 'beta' for method 'kd'; known: temperature, alpha, weight, mapping",
    ),
    f"{HEAD}method:\n  name: kd\n  dkd: {{beta: 1}}": (4, "'dkd' is no method of this space"),
}


@pytest.mark.parametrize("text", ONE_MISTAKE, ids=lambda text: text[-40:])
def test_what_no_candidate_may_have_is_named_with_its_line(text: str) -> None:
    line, message = ONE_MISTAKE[text]
    (found,) = mistakes(text)
    assert found.startswith(f"s.yaml:{line}: ")
    assert message in found


def test_mistakes_of_form_and_of_content_are_reported_together_in_order() -> None:
    text = """
student:
  family:
    choice:
      resnet:
        wdith: {float: [0.5, 1]}
  resolution: [8, 16]
method:
  name: kd
  kd:
    temperature: 1e-3
    alpha: {float: [2, 1]}
train:
  epochs: 0
"""
    found = mistakes(text)
    assert [line.split(" ")[0] for line in found] == [
        f"s.yaml:{number}:" for number in (6, 7, 11, 12, 14)
    ]
    assert "'wdith'" in found[0]
    assert "a list is not a dimension" in found[1]
    assert "write 0.001" in found[2]
    assert "low 2.0 is above high 1.0" in found[3]
    assert "train.epochs: 0" in found[4]
