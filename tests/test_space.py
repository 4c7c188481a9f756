"""A space file is read whole or refused whole; a walk gives exactly the dimensions that apply."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from kdsearch.documents import MAX_BYTES
from kdsearch.errors import SpaceError
from kdsearch.space import Choice, Constant, Float, Int, SearchSpace, Value
from kdsearch.space_yaml import load_space, parse_space

SPACE = """
student:
  family:
    choice:
      resnet:
        width: {float: [0.25, 2.0], log: true}
        depth: {int: [3, 9]}
        kernel: {choice: [3, 5]}
      vit:
        depth: {int: [4, 12], step: 4}
      timm:small_050:
  resolution: 32
method:
  name:
    choice:
      kd: {temperature: {float: [1, 8]}}
      none:
train:
  epochs: 5
  lr: 0.001
"""


def pick_first(_name: str, dim: Float | Int | Choice) -> Value:
    return dim.options[0] if isinstance(dim, Choice) else dim.low


def pick_last(_name: str, dim: Float | Int | Choice) -> Value:
    return dim.options[-1] if isinstance(dim, Choice) else dim.high


def refusal(text: str) -> str:
    with pytest.raises(SpaceError) as caught:
        parse_space(text, source="s.yaml")
    return str(caught.value)


def test_walk_gives_the_dims_of_the_options_picked_and_the_constants() -> None:
    assert parse_space(SPACE).walk(pick_first) == {
        "student.family": "resnet",
        "student.resnet.width": 0.25,
        "student.resnet.depth": 3,
        "student.resnet.kernel": 3,
        "student.resolution": 32,
        "method.name": "kd",
        "method.kd.temperature": 1.0,
        "train.epochs": 5,
        "train.lr": 0.001,
    }
    assert parse_space(SPACE).walk(pick_last) == {
        "student.family": "timm:small_050",
        "student.resolution": 32,
        "method.name": "none",
        "train.epochs": 5,
        "train.lr": 0.001,
    }


def test_a_walk_picks_no_constant_and_no_dimension_that_does_not_apply() -> None:
    requested: list[str] = []

    def pick(name: str, dim: Float | Int | Choice) -> Value:
        requested.append(name)
        return "vit" if name == "student.family" else pick_last(name, dim)

    parse_space(SPACE).walk(pick)

    assert requested == ["student.family", "student.vit.depth", "method.name"]


def test_options_own_dims_at_any_depth() -> None:
    text = "a: {choice: {x: {b: {choice: {y: {c: {int: [1, 2]}}}}}}}"
    assert parse_space(text).walk(pick_last) == {"a": "x", "x.b": "y", "x.y.c": 2}


def test_all_dims_lists_the_owned_ones_too() -> None:
    dims = dict(parse_space(SPACE).all_dims())
    assert list(dims) == [
        "student.family",
        "student.resolution",
        "method.name",
        "train.epochs",
        "train.lr",
        "student.resnet.width",
        "student.resnet.depth",
        "student.resnet.kernel",
        "student.vit.depth",
        "method.kd.temperature",
    ]
    assert dims["student.resnet.width"] == Float(low=0.25, high=2.0, log=True)
    assert dims["student.vit.depth"] == Int(low=4, high=12, step=4)
    assert dims["student.resnet.kernel"] == Choice(options=(3, 5))
    assert dims["train.lr"] == Constant(value=0.001)


def test_every_walk_has_a_group_whole_or_not_at_all() -> None:
    space = parse_space(SPACE)
    groups = [set(group) for group in space.groups()]
    assert len(groups) == 4
    for pick in (pick_first, pick_last):
        walked = set(space.walk(pick))
        assert all(group <= walked or not group & walked for group in groups)
        assert walked <= set.union(*groups)


def test_fixed_replaces_or_adds_a_constant() -> None:
    space = parse_space(SPACE)
    assert space.fixed("train.epochs", 2).walk(pick_first)["train.epochs"] == 2
    assert space.fixed("train.ema", 0.5).walk(pick_first)["train.ema"] == 0.5
    assert space.walk(pick_first)["train.epochs"] == 5


def test_where_names_the_file_and_the_line() -> None:
    space = parse_space(SPACE, source="s.yaml")
    assert space.where("method.kd.temperature") == "s.yaml:16"
    assert space.where("student.vit") == "s.yaml:9"
    assert space.where("no.such") == "s.yaml"


def test_membership_is_that_of_the_range_and_of_the_type() -> None:
    assert 1 in Float(low=0.5, high=2)
    assert 2.5 not in Float(low=0.5, high=2)
    assert "1" not in Float(low=0.5, high=2)
    assert True not in Float(low=0.5, high=2)
    assert 3 in Int(low=3, high=4)
    assert 3.5 not in Int(low=3, high=4)
    assert True not in Int(low=0, high=4)
    assert "b" not in Choice(options=("a",))


MISTAKES = {
    "a: 1e-3": "a: YAML reads '1e-3' as text; write 0.001",
    "a: 20e6": "a: YAML reads '20e6' as text; write 20000000.0",
    "a: 1e-9": "a: YAML reads '1e-9' as text; write 1.0e-09",
    "a: {float: [1e-3, 1]}": "a: YAML reads '1e-3' as text; write 0.001",
    "a: {float: [2, 1]}": "a: low 2.0 is above high 1.0",
    "a: {float: [0, 1], log: true}": "a: a log range must start above 0, not at 0.0",
    "a: {float: [0, .inf]}": "a: '.inf' is not a number, a truth value or a text",
    "a: .nan": "a: '.nan' is not a number, a truth value or a text",
    "a: {int: [0, 1.5]}": "a: 1.5 is not a whole number",
    "a: {int: [false, 3]}": "a: False is not a whole number",
    "a: {int: [0, 5], step: 2}": "a: steps of 2 from 0 do not end at 5",
    "a: {float: [0, 1], step: 0.3}": "a: steps of 0.3 from 0.0 do not end at 1.0",
    "a: {int: [0, 5], step: 0}": "a: step 0 must be positive and cannot be combined with log",
    "a: {int: [0, 5], step: 1.0}": "a: 1.0 is not a whole number",
    "a: {int: [1, 5], log: 1}": "a: log is true or false, not 1",
    "a: {int: [1, 5, 9]}": "a: expected {int: [low, high]}",
    "a: {float: 3}": "a: expected {float: [low, high]}",
    "a: {float: [[1], 2]}": "a: expected a single value",
    "a: {float: [0, 1], int: [0, 2]}": "a: unknown key 'int'; known: log, step, default",
    "a: {flaot: [0, 1]}": (
        "a: unknown kind of dimension 'flaot' (did you mean 'float'?); known: float, int, choice"
    ),
    "a: {float: [1, 2], stp: 1}": (
        "a: unknown key 'stp' (did you mean 'step'?); known: log, step, default"
    ),
    "a: {choice: [1], log: true}": "a: unknown key 'log' next to 'choice'",
    "a: [1, 2]": "a: a list is not a dimension; write {choice: [...]}",
    "a: {}": "a: an empty mapping is not a dimension",
    "a: ": "a: '' is not a number, a truth value or a text",
    "a: 2001-02-03": "a: '2001-02-03' is not a number, a truth value or a text",
    "a: 2001-13-03": "a: '2001-13-03': month must be in 1..12",
    "a: {choice: []}": "a: a choice needs at least one option",
    "a: {choice: [x, x]}": "a: a choice lists an option twice: ['x', 'x']",
    "a: {choice: 3}": "a: expected {choice: [a, b]} or {choice: {a: …, b: …}}",
    "a: {choice: {x: 3}}": "a: option 'x' must own a mapping of dimensions",
    "a: {choice: {x: , x: }}": "'x' is defined twice",
    "a: {float: [0, 1], float: [0, 2]}": "'float' is defined twice",
    "a: {b: 1, b: 2}": "'b' is defined twice",
    "a: {b: 1, a.b: 2}\na.b: 3": "'a.b' is defined here and in line 1",
    "a: {? [x] : 1}": "a name must be plain text",
    f"a: {{float: [0, 1{'0' * 400}]}}": "a: int too large to convert to float",
    "a: {int: [0, 10000000000000000]}": (
        "a: 10000000000000000 is not a number within +-9007199254740992"
    ),
    "a: !!python/name:os.system x": (
        "the tag 'tag:yaml.org,2002:python/name:os.system' is not supported; write a plain value"
    ),
    "a: !!python/object:os.x {choice: [a]}": (
        "the tag 'tag:yaml.org,2002:python/object:os.x' is not supported; write a plain value"
    ),
    "a: &a {b: *a}": "'*a': references are not supported; write the value",
    "[" * 2000: "more than 20 levels deep",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:40])
def test_a_mistake_is_named_with_its_line(text: str) -> None:
    last = text.count("\n") + 1
    assert refusal(text) == f"s.yaml:{last}: {MISTAKES[text]}"


def test_every_mistake_is_reported_at_once_in_the_order_of_lines() -> None:
    text = """
a: {float: [2, 1]}
b: [1]
c:
  d: {choice: {x: {e: 1e-3}, y: 7}}
f: {int: [1, 2]}
"""
    lines = refusal(text).splitlines()
    assert [line.split()[0] for line in lines] == [
        "s.yaml:2:",
        "s.yaml:3:",
        "s.yaml:5:",
        "s.yaml:5:",
    ]


def test_mistakes_of_a_check_are_listed_with_the_readers_own() -> None:
    text = "a: 1\nb: [1]\nc: 2\n"
    with pytest.raises(SpaceError) as caught:
        parse_space(text, source="s", check=lambda _: [("c", "no c here"), ("a", "no a either")])
    assert str(caught.value).splitlines() == [
        "s:1: no a either",
        "s:2: b: a list is not a dimension; write {choice: [...]}",
        "s:3: no c here",
    ]


@pytest.mark.parametrize("text", ["", "# nothing", "~", "word", "- 1", "{}"])
def test_a_file_that_is_not_a_mapping_is_refused(text: str) -> None:
    assert refusal(text) == "s.yaml: expected a mapping of names to dimensions"


@pytest.mark.parametrize("text", ["a:\n\t- b", "a: \x00", "a: 1\n---\nb: 2", "a: [1"])
def test_text_that_is_not_one_yaml_document_is_refused(text: str) -> None:
    assert re.fullmatch(r"s\.yaml(:\d)?: not YAML: .+", refusal(text))


def test_a_bomb_of_references_is_refused_before_it_grows() -> None:
    bomb = "a: &a0 {x: 1, y: 2}\n" + "".join(
        f"b{i}: &a{i + 1} {{x: *a{i}, y: *a{i}}}\n" for i in range(40)
    )
    lines = refusal(bomb).splitlines()
    assert len(lines) == 80
    assert lines[0] == "s.yaml:2: '*a0': references are not supported; write the value"


def test_no_tag_runs_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    refusal(f"a: !!python/object/apply:os.mkdir ['{made}']")
    assert not made.exists()


def too_large(path: Path) -> None:
    path.write_text("a: 1 #" + "x" * MAX_BYTES)


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "not UTF-8": lambda path: path.write_bytes(b"a: \xff"),
    "too large": too_large,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    FILES[kind](path)
    with pytest.raises(SpaceError, match=r"s\.yaml"):
        load_space(path)


def test_load_equals_parse(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SPACE, encoding="utf-8")
    space = load_space(path)
    assert space.text == SPACE
    assert dict(space.dims) == dict(parse_space(SPACE).dims)
    assert space.where("student.family") == f"{path}:3"


names = st.text("abcdwxyz", min_size=3, max_size=5).filter(
    lambda name: name not in ("float", "int", "choice")
)
hundredths = st.integers(1, 10_000).map(lambda value: value / 100)
ranges = st.one_of(
    st.tuples(hundredths, hundredths, st.booleans()).map(
        lambda t: {"float": sorted(t[:2]), "log": t[2]}
    ),
    st.tuples(st.integers(1, 99), st.integers(1, 99), st.booleans()).map(
        lambda t: {"int": sorted(t[:2]), "log": t[2]}
    ),
    st.lists(st.one_of(st.integers(0, 9), names), min_size=1, unique=True).map(
        lambda options: {"choice": options}
    ),
    st.one_of(st.booleans(), st.integers(0, 9), hundredths, names),
)
dims = st.recursive(
    ranges,
    lambda inner: st.dictionaries(
        names.map("option-{}".format), st.dictionaries(names, inner, max_size=2), min_size=1
    ).map(lambda owned: {"choice": {k: v or None for k, v in owned.items()}}),
    max_leaves=6,
)


def parsed(groups: dict[str, object]) -> SearchSpace:
    """Return a space; draws with two options of one name side by side are left out."""
    try:
        return parse_space(json.dumps({name: {name: dim} for name, dim in groups.items()}))
    except SpaceError as error:
        if "is defined here and in" not in str(error):
            raise
        reject()


spaces = st.dictionaries(names.map("group-{}".format), dims, min_size=1, max_size=4).map(parsed)


@given(spaces, st.data())
def test_walk_is_a_function_of_its_picks_and_stays_inside_the_dims(
    space: SearchSpace, data: st.DataObject
) -> None:
    picked: dict[str, Value] = {}

    def pick(name: str, dim: Float | Int | Choice) -> Value:
        if isinstance(dim, Choice):
            picked[name] = data.draw(st.sampled_from(dim.options))
        elif isinstance(dim, Int):
            picked[name] = data.draw(st.integers(dim.low, dim.high))
        else:
            picked[name] = data.draw(st.floats(dim.low, dim.high))
        return picked[name]

    params = space.walk(pick)

    every = dict(space.all_dims())
    assert all(value in every[name] for name, value in params.items())
    assert set(space.dims) <= set(params) <= set(every)
    assert {name for name in params if not isinstance(every[name], Constant)} == set(picked)
    assert space.walk(lambda name, _: picked[name]) == params
