"""What README promises of each command, on a study of two trials of one epoch."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from quick import traced
from shell import SHAPES, SPACE, Copies, Shell, Studies, contents, ended_trials

from kdsearch.deploy.targets._local import CpuTarget
from kdsearch.deploy.timing import Round
from kdsearch.study.open import load_study, open_study
from kdsearch.study.study import searched

FILES = {
    "study.yaml",
    "study.db",
    "front.json",
    "trials.csv",
    "report.html",
    "report.md",
    "figures/front.svg",
    "figures/curves.svg",
    "teacher/teacher.safetensors",
    *(
        f"best/{name}"
        for name in (
            "student.onnx",
            "student.safetensors",
            "config.yaml",
            "metrics.json",
            "README.md",
        )
    ),
}


def test_study_leaves_what_readme_lists(finished: Studies) -> None:
    study = finished("plain").path
    assert "Front of plain" in finished("plain").stdout
    found = {str(p.relative_to(study)) for p in study.rglob("*") if p.is_file()}
    assert found >= FILES
    front = json.loads((study / "front.json").read_text())
    assert front["study"] == "plain"
    assert front["counts"]["complete"] == 2
    assert front["images"]["val"] > 0 < front["seconds"]["finish"]
    weights = {p.parent.name for p in study.glob("trials/*/student.safetensors")}
    shown = [*front["front"], *front["controls"]]
    assert weights == {f"{entry['trial']:06d}" for entry in shown}


@pytest.mark.as_shipped
def test_a_study_without_shortcuts_ships_a_file_that_was_measured(shell: Shell) -> None:
    """The one study here whose file is exported and timed as a user's."""
    answer = shell.run("--name", "shipped", "--budget-ms", "10", "--trials", "1")
    assert answer.code == 0, answer
    found = json.loads((shell.out / "shipped" / "best" / "metrics.json").read_text())["onnx"]
    assert found["max_relative_logit_difference"] < 1e-4
    assert 0 < found["latency_low_ms"] < found["latency_ms"] < found["latency_high_ms"] < 10


def test_config_of_the_best_trains_it_again_bit_for_bit(finished: Studies, shell: Shell) -> None:
    best = finished("plain").path / "best"
    name = "trained-again"
    answer = shell.type(
        *("distill", "--config", str(best / "config.yaml"), "--name", name),
        *("--out", str(shell.out), "--json"),
    )
    assert answer.code == 0, answer
    first = json.loads((best / "metrics.json").read_text())
    assert json.loads(answer.stdout)["accuracy"] == first["accuracy"]
    again = shell.out / name / "best" / "student.safetensors"
    assert again.read_bytes() == (best / "student.safetensors").read_bytes()
    assert list((shell.out / name / "tensorboard").iterdir())


def test_a_share_of_the_teacher_and_a_goal_hold_also_on_resume(shell: Shell) -> None:
    """The teacher has 2.56 MFLOPs; any student above 2 % reaches the goal."""
    line = ("--name", "share", "--budget-mflops", "0.5x", "--trials", "2", "--until", "0.02")
    answer = shell.run(*line)
    assert answer.code == 0, answer
    assert "Budget: 1.28 MFLOPs, half of the teacher's 2.56 MFLOPs" in answer.stdout
    assert "No further trial: trial 0 reaches --until 0.02 with" in answer.stdout
    assert "--until 0.02 is reached: trial" in " ".join(load_study(shell.out / "share").facts.notes)
    front = json.loads((shell.out / "share/front.json").read_text())
    assert front["budget"] == {"latency_ms": None, "flops": 1.28e6, "params": None}
    assert front["teacher_within_budget"] is False
    assert front["chance"] == pytest.approx(0.103, abs=0.001)
    assert front["images"] == {"train": 1079, "val": 359, "test": 359}
    report = (shell.out / "share/report.md").read_text()
    assert "--budget-mflops 0.5x" in report
    assert "--until 0.02" in report
    again = shell.run("--name", "share", "--budget-mflops", "0.5x")
    assert again.code == 0, again
    assert "The study is finished: nothing was trained" in again.stdout
    assert "Budget:" not in again.stdout
    message = shell.refused_run("--name", "share", "--budget-mflops", "0.4x")
    assert "--budget-mflops: 1.28 -> 0.4x" in message


def test_a_teacher_within_the_budget_is_named_before_the_search_and_first_after_it(
    shell: Shell,
) -> None:
    answer = shell.run("--name", "kept", "--budget-mflops", "3", "--trials", "1")
    lines = answer.stdout.splitlines()
    before = next(i for i, line in enumerate(lines) if line.startswith("1 of 1, trial 0"))
    kept = "The teacher keeps this budget: 2.56 M FLOPs of 3 M FLOPs. No student is needed"
    assert any(line.startswith(kept) for line in lines[:before])
    table = next(i for i, line in enumerate(lines) if "Front of kept" in line)
    after = " ".join(word for line in lines[table:] for word in line.strip("│ ").split())
    assert "No student is needed: the teacher auto is within" in after


def test_a_finished_study_run_again_does_nothing_and_says_so(
    copied: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = copied("plain")
    before = contents(shell.out / "plain")
    monkeypatch.setattr(CpuTarget, "measure_round", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported"))
    answer = shell.run("--name", "plain")
    assert answer.code == 0, answer
    assert "The study is finished: nothing was trained, exported or measured" in answer.stdout
    assert contents(shell.out / "plain") == before


def test_more_trials_measure_no_shipped_student_again(
    copied: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = copied("plain")
    best = shell.out / "plain" / "best"
    before = contents(best)
    monkeypatch.setattr(CpuTarget, "measure_round", lambda *_: Round(ms=50.0))
    answer = shell.run("--name", "plain", "--trials", "3")  # the third is over the budget
    assert answer.code == 0, answer
    assert contents(best).keys() == before.keys()
    assert contents(best)["student.onnx"] == before["student.onnx"]


def test_lost_weights_are_named_and_cost_only_their_own_trial(copied: Copies) -> None:
    shell = copied("plain")
    path = shell.out / "plain"
    shutil.rmtree(path / "best")
    records = {r.number: r for r in load_study(path).records()}
    front = load_study(path).front()
    for record in front:
        number = record.number if record.reused_from is None else record.reused_from
        (path / "trials" / f"{number:06d}" / "student.safetensors").write_bytes(b"damaged")
    with open_study(path, load_study(path).config, versions={}) as study:
        study.update_facts(shipped=None, is_finished=False, test={})
    answer = shell.run("--name", "plain")
    for record in front:
        assert f"Trial {record.number} is left out: " in answer.stdout, answer
    assert "Traceback" not in answer.stderr
    if answer.code:  # no control had better weights
        assert answer.code == 2
        assert "are missing or damaged; restore them" in answer.stderr
    else:
        shipped = load_study(path).facts.shipped
        assert shipped is not None
        assert records[shipped].kind == "control"


def test_a_new_best_replaces_the_old_one_and_deletes_nothing_of_it(copied: Copies) -> None:
    shell = copied("plain")
    path = shell.out / "plain"
    (path / "best" / "NOTES.txt").write_text("mine")
    before = contents(path / "best")
    config = load_study(path).config
    with open_study(path, config, versions={}) as study:
        study.update_facts(shipped=99, is_finished=False)  # as if another had shipped
    answer = shell.run("--name", "plain")
    assert answer.code == 0, answer
    assert "The earlier best/ is now" in answer.stdout
    assert contents(path / "exported" / "000099") == before
    assert "NOTES.txt" not in contents(path / "best")


def test_files_of_a_study_have_the_modes_of_new_files(finished: Studies) -> None:
    path = finished("plain").path
    usual = (path / "study.yaml").stat().st_mode
    modes = {file.stat().st_mode for file in path.rglob("*") if file.is_file()}
    assert modes == {usual}


def test_only_what_ships_is_exported_without_a_latency_budget(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by torch.export; the teacher, to be timed, by the exporter that traces."""
    exports: list[bool] = []

    def export(*args: Any, **given: Any) -> Any:
        exports.append(given["dynamo"])
        return traced(*args, **given)

    monkeypatch.setattr(torch.onnx, "export", export)
    answer = shell.run("--name", "once", "--budget-mflops", "1", "--trials", "1", "--seed", "7")
    assert answer.code == 0, answer
    assert exports in ([True], [True, False])  # another study here may have timed the teacher


def test_the_winner_on_a_subset_is_trained_on_all_images(shell: Shell, tmp_path: Path) -> None:
    answer = shell.run("--name", "few", "--subset", "200", "--budget-mflops", "1", "--trials", "1")
    assert answer.code == 0, answer
    few = shell.out / "few" / "best"
    config = yaml.safe_load((few / "config.yaml").read_text())
    assert config.pop("subset") == 200
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config))
    weights = [(few / "student.safetensors").read_bytes()]
    for name, file, flags in (
        ("all", few / "config.yaml", ["--subset", "0"]),
        ("whole", tmp_path / "whole.yaml", []),
    ):
        line = ["distill", "--config", str(file), "--name", name, "--out", str(shell.out)]
        answer = shell.type(*line, *flags)
        assert answer.code == 0, answer
        best = shell.out / name / "best"
        assert "subset" not in yaml.safe_load((best / "config.yaml").read_text())
        weights.append((best / "student.safetensors").read_bytes())
    assert weights[1] == weights[2] != weights[0]


def test_a_study_on_all_images_may_be_resumed_with_a_subset_of_0(copied: Copies) -> None:
    shell = copied("plain")
    answer = shell.run("--name", "plain", "--subset", "0")
    assert answer.code == 0, answer
    assert "--subset: None -> 700" in shell.refused_run("--name", "plain", "--subset", "700")


def test_derived_files_come_back_as_they_were(finished: Studies, copied: Copies) -> None:
    shell, original = copied("plain"), finished("plain").path
    study = shell.out / "plain"
    derived = ("front.json", "trials.csv", "report.html")
    moved = (str(original.parent).encode(), str(shell.out).encode())  # in the report's commands
    before = {name: (original / name).read_bytes().replace(*moved) for name in derived}
    for name in derived:
        (study / name).unlink()
    answer = shell.type("report", "plain", "--out", str(shell.out), "--json")
    assert answer.code == 0, answer
    assert json.loads(answer.stdout) == json.loads(before["front.json"])
    assert {name: (study / name).read_bytes() for name in derived} == before


def test_the_same_seed_gives_the_same_trials(finished: Studies, shell: Shell) -> None:
    answer = shell.run("--name", "twin", *SHAPES["plain"], "--quiet")
    assert answer.code == 0, answer
    tables = []
    for study in (finished("plain").path, shell.out / "twin"):
        with (study / "trials.csv").open() as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 3  # two trials and at least one control


def test_a_study_resumes_by_its_name_alone(shell: Shell) -> None:
    assert shell.run("--name", "longer", "--trials", "1").code == 0
    (shell.folder / "space.yaml").unlink()  # the study has its own copy
    answer = shell.type("run", "--name", "longer", "--trials", "2", "--out", str(shell.out))
    assert answer.code == 0, answer
    assert "1 of 2 trials are there already" in answer.stdout
    assert len(ended_trials(shell.out / "longer")) == 2


def test_json_is_all_that_is_printed(copied: Copies) -> None:
    shell = copied("plain")
    answer = shell.type("run", "--name", "plain", "--out", str(shell.out), "--json")
    assert answer.code == 0
    printed = json.loads(answer.stdout)
    kept = json.loads((shell.out / "plain/front.json").read_text())
    assert str(shell.out) not in json.dumps(kept["advice"])  # it is true in any folder
    assert printed == kept
    assert answer.stderr == ""


def test_the_command_line_wins_over_the_config(shell: Shell) -> None:
    (shell.folder / "space.yaml").write_text(SPACE)
    flags = {
        "name": "from-file",
        "space": str(shell.folder / "space.yaml"),
        "teacher-epochs": 1,
        "trials": 7,
        "budget_mflops": 1,
        "json": True,
    }
    config = shell.folder / "config.yaml"
    config.write_text(yaml.safe_dump(flags))
    answer = shell.type("run", "--config", str(config), "--trials", "1", "--out", str(shell.out))
    assert answer.code == 0, answer
    front = json.loads(answer.stdout)
    assert front["study"] == "from-file"
    assert front["budget"]["flops"] == 1e6
    assert front["counts"]["complete"] == 1


def in_order(printed: str, *stages: str) -> None:
    """Require a line of each stage, in this order."""
    lines = iter(printed.splitlines())
    for stage in stages:
        assert any(line.startswith(stage) for line in lines), f"{stage!r} in\n{printed}"


def test_each_slow_stage_of_a_run_has_a_line_before_it(finished: Studies) -> None:
    in_order(
        finished("plain").stdout,
        *("Reading the images", "Data digits: ", "Results go to ", "Loading the teacher auto"),
        *("Evaluating the teacher on ", "Training trial 0: ", "Control for trial "),
        *("Exporting trial ", "Evaluating the teacher and "),
    )


def test_each_slow_stage_of_a_distillation_has_a_line_before_it(shell: Shell) -> None:
    line = ("distill", "--epochs", "1", "--teacher-epochs", "1", "--set", "student.width=0.125")
    answer = shell.type(*line, "--out", str(shell.out), "--name", "in-order")
    assert answer.code == 0, answer
    in_order(
        answer.stdout,
        *("Reading the images", "Data digits: ", "Results go to ", "Loading the teacher auto"),
        *("Evaluating the teacher on ", "Training resnet by kd", "Evaluating the student on "),
        *("Exporting the student", "Student: "),
    )


FIRST_LINE = """
import os, sys, typer
from kdsearch.__main__ import main
def echo(text):
    print(text, "torch" in sys.modules, sep="\\n", flush=True)
    os._exit(0)
typer.echo = echo
main(%s)
"""


@pytest.mark.parametrize(
    ("line", "first"),
    [
        (("measure", "nonsense"), "Measuring nonsense"),
        (("check", "--data", "digits", "--device", "cuda:99"), "Reading the images of 'digits'"),
        (("distill", "--temperature", "4", "--device", "cuda:99"), "Reading the images"),
        (("run", "--device", "cuda:99"), "Reading the images"),
        (("export", "nothing-here"), "Reading the images"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_first_line_comes_before_torch(line: tuple[str, ...], first: str) -> None:
    code = FIRST_LINE % list(line)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == (f"{first}\nFalse\n", 0), found


def test_models_are_measured_by_name_and_as_files(finished: Studies, shell: Shell) -> None:
    study = finished("plain").path
    family = ("resnet", "--classes", "10", "--set", "student.width=.25")
    for model in (family, (str(study / "best" / "student.onnx"),)):
        answer = shell.type("measure", *model, "--input", "1x8x8", "--json")
        assert answer.code == 0, answer
        found = json.loads(answer.stdout)
        assert 0 < found["latency"]["low_ms"] < found["latency"]["ms"] < found["latency"]["high_ms"]
        assert found["target"]["runtime"] == "onnxruntime"
    assert found["flops"] is None


def test_a_model_is_measured_by_a_command_of_the_users(shell: Shell, tmp_path: Path) -> None:
    script = tmp_path / "board.py"
    script.write_text("import os; print(float(os.environ['KDSEARCH_BATCH']) / 2)")
    command = f"cmd:{sys.executable} {script}"
    line = ("measure", "resnet", "--input", "1x8x8", "--classes", "10", "--target", command)
    answer = shell.type(*line, "--batch", "8")
    assert answer.code == 0, answer
    assert "4 ms, 95 % of processes" in answer.stdout
    script.write_text("import sys; sys.exit('no device attached')")
    answer = shell.type(*line)
    assert answer.code == 2
    assert "ended with 1" in answer.stderr
    assert "no device attached" in answer.stderr


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("methods", "dkd"),
        ("students", "mobilenet"),
        ("teachers", "cifar_resnet20"),
        ("data", "cifar10"),
        ("spaces", "digits"),
    ],
)
def test_everything_is_listed_by_name(shell: Shell, what: str, name: str) -> None:
    answer = shell.type("list", what)
    assert answer.code == 0
    assert any(line.split()[0] == name for line in answer.stdout.splitlines())


def test_guesses_and_the_front_of_an_earlier_study_are_tried_first(copied: Copies) -> None:
    shell = copied("plain")
    width = ("--set", "student.family=resnet", "--set", "student.width=0.2")
    answer = shell.type("enqueue", "plain", *width, "--out", str(shell.out))
    assert "student.resnet.width = 0.2. `kdsearch run --name plain" in answer.stdout
    assert shell.run("--name", "plain", "--trials", "3").code == 0
    tried = searched(load_study(shell.out / "plain").records())[2]
    assert tried.params["student.resnet.width"] == 0.2

    later = ("--name", "later", "--from-study", "plain", "--budget-mflops", "1", "--trials", "1")
    answer = shell.run(*later)
    front = load_study(shell.out / "plain").front()
    assert f"Tried first: {len(front)} recipes of plain" in answer.stdout
    assert load_study(shell.out / "later").records()[0].params == front[0].params
    again = shell.run(*later)
    assert again.code == 0, again
    assert "Tried first" not in again.stdout


def test_a_study_is_logged_and_timed_from_the_command_line(shell: Shell) -> None:
    callback = shell.folder / "mine.py"
    callback.write_text("def after(study, record):\n    print('after', record.number)\n")
    budget = ("--name", "observed", "--budget-mflops", "1")
    message = ("--tensorboard", "--callback", f"{callback}:after")
    first = ("--trials", "50", "--flat-after", "40", "--time-limit", "0.000001s")
    answer = shell.run(*budget, *message, *first)
    assert answer.code == 1  # no trial has begun, so nothing can be shipped
    assert "No further trial: the time limit of" in answer.stdout
    answer = shell.run(*budget, *message, "--trials", "2", "--time-limit", "1h")
    assert answer.code == 0, answer
    assert "after 0\n" in answer.stdout
    path = shell.out / "observed"
    assert "in 2 runs" in " ".join(load_study(path).facts.notes)
    assert load_study(path).facts.flat_after == 40  # as given when it began
    assert {run.name for run in (path / "tensorboard").iterdir()} >= {"000000", "000001"}
    front = json.loads((path / "front.json").read_text())
    assert front["seconds"]["wall"] > front["seconds"]["search"]
    status = shell.type("status", "observed", "--out", str(shell.out), "--json")
    found = json.loads(status.stdout)
    assert (found["state"], found["trials"], found["counts"]["complete"]) == ("ended", 2, 2)
    assert found["seconds_spent"] == front["seconds"]["wall"]
    assert "2 of 2 trials" in shell.type("status", "observed", "--out", str(shell.out)).stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--time-limit", "soon"), "or a time as 90s"),
        (("--flat-after", "-1"), "--flat-after -1: expected a number of trials, or 0 for never"),
        (("--callback", "kdsearch.nowhere:after"), "--callback"),
        (("--log", "tensorbord"), "did you mean 'tensorboard'"),
    ],
)
def test_what_cannot_log_is_refused_before_anything_runs(
    shell: Shell, flags: tuple[str, str], expected: str
) -> None:
    assert expected in shell.refused_run("--name", "unwatched", *flags)
    assert not (shell.out / "unwatched").exists()


@pytest.mark.parametrize("spend", ["1ep", "8"])
def test_a_study_keeps_to_its_spend_and_accounts_for_it(shell: Shell, spend: str) -> None:
    name = f"spent-{spend}"
    answer = shell.run("--name", name, "--spend", spend, "--budget-mflops", "1")
    assert answer.code == 0, answer
    study = load_study(shell.out / name)
    own = [record for record in study.records() if record.reused_from is None]
    trained = sum(len(record.curve) for record in own)
    assert 1 <= trained <= int(spend.removesuffix("ep"))
    epochs = json.loads((study.path / "front.json").read_text())["epochs"]
    assert epochs["looks"] + epochs["controls"] + epochs["further"] == trained
    assert epochs["shipped"] == max(len(record.curve) for record in own)
    assert ("Plan: " in answer.stdout) == (study.config.look_epochs is not None)
