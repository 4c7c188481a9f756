"""The public names of `import kdsearch`: exactly these, each with an example, typed and lazy."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib.resources import files

import pytest
import torch

import kdsearch
from kdsearch.study.config import StudyConfig
from kdsearch.study.options import RunOptions, options_of

FUNCTIONS = ["check", "distill", "export_study", "load_study", "measure", "run", "search"]
TYPES = [
    "Budget",
    "Callback",
    "Candidate",
    "Cost",
    "SearchSpace",
    "StopStudy",
    "Study",
    "StudyConfig",
    "TrialRecord",
]
ERRORS = [
    "BudgetError",
    "CostError",
    "DataError",
    "ExportError",
    "KDSearchError",
    "SpaceError",
    "SpecError",
    "StudyError",
    "StudyInterruptedError",
    "TrainingError",
    "TrialsFailedError",
]
REGISTRIES = ["methods", "students", "tasks"]


def test_the_package_has_exactly_its_public_names() -> None:
    names = sorted([*FUNCTIONS, *TYPES, *ERRORS, *REGISTRIES, "__version__"])
    assert sorted(kdsearch.__all__) == sorted(dir(kdsearch)) == names
    for name in names:
        assert getattr(kdsearch, name) is getattr(kdsearch, name)
    with pytest.raises(AttributeError, match="'kdsearch' has no attribute 'nothing'"):
        _ = kdsearch.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*FUNCTIONS, *TYPES])
def test_a_public_name_has_a_docstring_with_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(kdsearch, name)) or ""
    example = " ".join(text.partition("Example: ")[2].split())
    compile(example, name, "exec")
    assert example, name


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_a_docstring_and_one_base(name: str) -> None:
    error = getattr(kdsearch, name)
    assert error.__doc__
    assert issubclass(error, kdsearch.KDSearchError)


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_lists_its_plug_ins_and_gives_each_by_name(name: str) -> None:
    registry = getattr(kdsearch, name)
    assert registry.names()
    for plugin in registry.names()[:3]:
        assert registry.get(plugin).__module__.rpartition(".")[2] == plugin


def test_a_method_is_called_by_itself() -> None:
    logits = torch.randn(4, 10)
    loss = kdsearch.methods.get("kd")(temperature=4.0)(logits, logits, torch.zeros(4).long())
    assert loss.abs() < 1e-6


def test_run_takes_every_option_of_a_study_by_its_name() -> None:
    """A budget is one argument, and a callback is an object, not a path."""
    options = {*options_of(StudyConfig), *options_of(RunOptions)}
    limits = {"budget_ms", "budget_mflops", "budget_mparams"}
    parameters = inspect.signature(kdsearch.run).parameters
    assert parameters.keys() == (options - limits) | {"budget", "out", "name"}
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {p.default for name, p in parameters.items() if name != "out"} == {None}
    for name in FUNCTIONS:
        hints = inspect.get_annotations(getattr(kdsearch, name))
        assert hints.keys() == {*inspect.signature(getattr(kdsearch, name)).parameters, "return"}


def test_every_option_has_a_help_text_and_a_panel() -> None:
    for cls in (StudyConfig, RunOptions):
        for name, option in options_of(cls).items():
            assert option.help.endswith("."), name
            assert option.panel
    hidden = {item.name for item in fields(StudyConfig)} - options_of(StudyConfig).keys()
    assert hidden == {
        "data_key",
        "weights_key",
        "pretrained_key",
        "budget_shares",
        "look_epochs",
        "nms_ms",
        "left_out",
        "without_weights",
        "storage",
        "storage_study",
    }


def test_the_package_is_typed() -> None:
    assert files("kdsearch").joinpath("py.typed").is_file()
