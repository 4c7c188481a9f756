"""Options of commands: built from declared fields, given by the user or by --config, and parsed."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from kdsearch.cli.options import CONFIG, RUN, Config, Settings, takes
from kdsearch.errors import SpecError
from kdsearch.study.config import StudyConfig, config_of
from kdsearch.study.options import RunOptions, read_duration, read_workers


def given_by(*line: str, names: tuple[str, ...] = (*CONFIG, *RUN)) -> dict[str, object]:
    """Return what a command with these options gets from a line."""
    seen: dict[str, object] = {}
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes(*names)
    def show(
        config: Config = None, *, storage: str | None = None, given: dict[str, object]
    ) -> None:
        seen.update(given, own_storage=storage)

    app(list(line), standalone_mode=False)
    return {name: value for name, value in seen.items() if value is not None}


def test_a_command_gets_only_what_the_user_gave() -> None:
    assert given_by() == {}
    line = ("--data", "x", "--no-flip", "--seed", "0", "--workers", "auto", "--time-limit", "2h")
    assert given_by(*line, "--log", "mlflow", "--log", "wandb", "--storage", "sqlite://") == {
        "data": "x",
        "flip": False,
        "seed": 0,
        "workers": "auto",
        "time_limit": 7200.0,
        "log": ["mlflow", "wandb"],
        "own_storage": "sqlite://",
    }


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("seed: 3\nbudget-ms: 2\nflip: true\ntime_limit: 90\nteacher: null\nworkers: 2")
    line = ("--config", str(file), "--seed", "4", "--no-flip")
    assert given_by(*line) == {
        "seed": 4,
        "budget_ms": 2.0,
        "flip": False,
        "time_limit": 90.0,
        "workers": 2,
    }
    with pytest.raises(SpecError, match="unknown 'budget_ms'; known: debug, flip, seed"):
        given_by("--config", str(file), names=("seed", "flip", "time_limit", "teacher", "workers"))


def distilled(*line: str) -> dict[str, object]:
    """Return what a command with a student and a method gets from a line."""
    seen: dict[str, object] = {}
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes("seed")
    def show(
        config: Config = None,
        student: str = "resnet",
        method: str = "kd",
        weight: float | None = None,
        mapping: str | None = None,
        set: Settings = None,
    ) -> None:
        seen.update(student=student, method=method, weight=weight, mapping=mapping, set=set)

    app(list(line), standalone_mode=False)
    return seen


RECIPE = """
student: mobilenet
method: at
weight: 3
mapping: last
set: {student.width: 0.5, method.beta: 2, train.lr: 0.1}
"""


@pytest.mark.parametrize(
    ("line", "changed", "left_out"),
    [
        ([], {}, ""),
        (["--set", "train.lr=1"], {"set": ["train.lr=1"]}, ""),
        (["--method", "at"], {}, ""),
        (
            ["--method", "none"],
            {"method": "none", "weight": None, "mapping": None, "without": "method."},
            "--config: weight, mapping, method.beta left out, only for method at",
        ),
        (
            ["--method", "pkd", "--weight", "7"],
            {"method": "pkd", "weight": 7.0, "mapping": None, "without": "method."},
            "--config: mapping, method.beta left out, only for method at",
        ),
        (
            ["--set", "student.depth=3", "--student", "vit"],
            {"student": "vit", "set": ["student.depth=3"], "without": "student."},
            "--config: student.width left out, only for student mobilenet",
        ),
    ],
)
def test_the_command_line_changes_one_thing_of_a_recipe(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    changed: dict[str, object],
    left_out: str,
) -> None:
    """Knobs that it does not name stay; another method or student has none of the former's."""
    file = tmp_path / "config.yaml"
    file.write_text(RECIPE)
    gone = str(changed.get("without"))
    knobs = ["student.width=0.5", "method.beta=2", "train.lr=0.1"]
    knobs = [each for each in knobs if not each.startswith(gone)]
    recipe = {"student": "mobilenet", "method": "at", "weight": 3.0, "mapping": "last"}
    expected = recipe | changed | {"set": [*knobs, *changed.get("set", [])]}
    expected.pop("without", None)
    assert distilled("--config", str(file), *line) == expected
    assert capsys.readouterr().err.strip() == left_out


def test_what_is_given_makes_a_configuration() -> None:
    given = given_by("--seed", "7", "--subset", "0", names=CONFIG)
    assert config_of(given, StudyConfig(subset=5)) == StudyConfig(seed=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials 0: expected 1 to 1000000"),
        ({"time_limit": float("nan")}, "--time-limit nan"),
        ({"trial_timeout": -1.0}, "--trial-timeout -1"),
        ({"flat_after": -1}, "--flat-after -1: expected a number of trials, or 0"),
        ({"workers": 0}, "--workers 0: expected a number above 0, or auto"),
        ({"workers": "many"}, "--workers 'many'"),
        ({"engine": "rai"}, r"--engine 'rai' \(did you mean 'ray'\?\): expected local or ray"),
        ({"ray_address": "auto"}, "--ray-address auto is for trials on Ray: give --engine ray"),
        ({"seeds": 3}, "--seeds 3 is for refits: give --refit 3 too"),
        ({"refit": 0, "refit_epochs": 3}, "--refit-epochs 3 is for refits"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RunOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("0.5", 0.5), ("30m", 1800), ("2h", 7200), ("1.5d", 129600)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert read_duration(text, "--trial-timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "-1", "2 h", "h", "1e3", "inf", "nan", "2w", "1h30m"]
)
def test_another_duration_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(SpecError, match=r"--trial-timeout '.*': expected seconds .+ as 90s, 30m"):
        read_duration(text, "--trial-timeout")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_workers_are_a_number_or_auto(text: str) -> None:
    assert (read_workers("3", "--workers"), read_workers("auto", "--workers")) == (3, "auto")
    with pytest.raises(SpecError, match=f"--workers '{text}': expected a number above 0, or auto"):
        read_workers(text, "--workers")
