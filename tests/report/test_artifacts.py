"""front.json, trials.csv and report.html are derived: deleted and written again, they are equal."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, look_up, opened, run_to

from kdsearch.errors import StudyError
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.study.facts import Refit
from kdsearch.study.open import load_study
from kdsearch.study.refit import missing, trained
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import LATENCY, SCHEMA

TEACHER = {
    "name": "auto",
    "val": 0.99,
    "test": None,
    "flops": 5_000_000,
    "params": 300_000,
    "latency_ms": 1.5,
    "knows_all": True,
}
ENTRY = {
    "trial",
    "val",
    "test",
    "flops",
    "params",
    "latency_ms",
    "latency_spread_ms",
    "latency_low_ms",
    "latency_high_ms",
    "config",
}
# The layout of front.json that DESIGN.md promises to its readers.
LAYOUT: dict[str, set[str]] = {
    "budget": {"latency_ms", "flops", "params"},
    "target": {"device", "runtime", "threads", "batch"},
    "teacher": {"name", "val", "test", "flops", "params", "knows_all", *LATENCY},
    "counts": {"complete", "pruned", "rejected", "failed", "reused", "rejected_early"},
    "seconds": {"teacher", "search", "refit", "outputs", "finish", "wall"},
    "images": {"train", "val", "test"},
    "epochs": {"looks", "controls", "further", "shipped"},
}
SPREAD = {"mean", "sd", "low", "high", "values"}
GAIN = {"difference", "low", "high", "p", "pairs"}
# What `--refit` adds; a test split that was not read is None.
TRAINED = {"method", "trials", "seeds", "val", "test"}
CANDIDATE = {"trial", "roles", "shipped", "trained", "controls"}
CONTROL = {"trained", "gain", "test_gain"}
TOGETHER = {"over", "candidates", "gain", "test_gain"}
TOP = {
    *("schema", "study", "task", "metric", "front", "controls", "best", "baselines", "stopping"),
    *("min_accuracy", "candidates", "gains", "shipped", "chance", "teacher_within_budget"),
    *("classes", "details", "answers", "advice", "file"),
    *LAYOUT,
}


@pytest.fixture(scope="module")
def study(fast_path: Path) -> OpenStudy:
    """Return a finished study: 10 trials, two controls of the best, one of another."""
    with opened(fast_path / "phones") as study:
        study.update_facts(teacher=TEACHER, teacher_seconds=2.5, trials=10)
        run_to(study, 9)
        lost = study.ask()
        study.tell(lost, replace(look_up(lost), state="failed", val=None, reason="it, broke\n"))
        other, best = study.front()[0], study.front()[-1]
        for of, method, val in ((other, "none", 0.5), (best, "none", 0.6), (best, "at", 0.7)):
            proposal = study.ask_control({**of.params, "method.name": method}, of.number)
            study.tell(proposal, replace(look_up(proposal), state="complete", val=val, seconds=3.0))
        read = {str(best.number): 0.75}
        study.update_facts(best=best.number, shipped=best.number, test=read, notes=["A note"])
        write_derived(study)
        return study


def front_json(study: OpenStudy) -> dict[str, object]:
    content: dict[str, object] = json.loads((study.path / "front.json").read_text("utf-8"))
    return content


def test_front_json_has_the_promised_fields_and_no_others(study: OpenStudy) -> None:
    content = front_json(study)
    assert content.keys() == TOP
    for name, fields in LAYOUT.items():
        assert content[name].keys() == fields, name
    assert len(content["front"]) > 1
    for entry in [*content["front"], *content["controls"], content["shipped"]]:
        assert entry.keys() == ENTRY


def test_front_json_has_the_promised_fields_of_refits(fast_path: Path) -> None:
    with opened(fast_path / "refitted") as study:
        study.update_facts(teacher=TEACHER, images={"val": 40, "test": 30})
        run_to(study, 8)
        wanted = Refit(count=2, seeds=2)
        study.update_facts(refit=wanted)
        for proposal in missing(study, wanted):
            study.tell(proposal, look_up(proposal))
        test = {str(record.number): 0.5 for record in trained(study)}
        study.update_facts(test=test)
        write_derived(study)
        content = front_json(study)
    sides = [each["trained"] for each in content["candidates"]]
    for each in content["candidates"]:
        assert each.keys() == CANDIDATE
        for control in each["controls"]:
            assert control.keys() == CONTROL
            assert control["gain"].keys() == control["test_gain"].keys() == GAIN
            sides.append(control["trained"])
    assert len(sides) == 4
    for side in sides:
        assert side.keys() == TRAINED
        assert side["val"].keys() == side["test"].keys() == SPREAD
    assert [entry["over"] for entry in content["gains"]] == ["none"]
    for entry in content["gains"]:
        assert entry.keys() == TOGETHER
        assert entry["gain"].keys() == GAIN


def test_front_json_agrees_with_the_store(study: OpenStudy) -> None:
    content, records = front_json(study), study.records()
    best = study.front()[-1]
    states = [record.state for record in records if record.control_of is None]
    assert content["schema"] == SCHEMA == 2
    assert (content["study"], content["task"]) == ("phones", "classification")
    assert content["metric"] == "accuracy"
    assert content["budget"] == {"latency_ms": None, "flops": 15e6, "params": None}
    assert content["teacher"] == dict.fromkeys(LATENCY) | TEACHER
    assert content["counts"] == {
        "complete": states.count("complete"),
        "rejected": states.count("rejected"),
        "failed": states.count("failed"),
        "pruned": 0,
        "reused": 0,
        "rejected_early": 0,
    }
    assert len(states) == 10
    assert content["best"] == best.number
    assert content["seconds"] == {
        "teacher": 2.5,
        "search": 0.0,
        "refit": 9.0,
        "outputs": 0.0,
        "finish": 0.0,
        "wall": 0.0,
    }
    front = content["front"]
    assert [entry["trial"] for entry in front] == [record.number for record in study.front()]
    assert front[-1] == {
        "trial": best.number,
        "val": best.val,
        "test": 0.75,
        "flops": best.cost.flops,
        "params": best.cost.params,
        "latency_ms": best.cost.latency_ms,
        "latency_spread_ms": None,
        "latency_low_ms": None,
        "latency_high_ms": None,
        "config": best.params,
    }
    assert [(c["val"], c["config"]["method.name"]) for c in content["controls"]] == [
        (0.6, "none"),
        (0.7, "at"),
    ]


def test_facts_of_the_study_are_in_the_summary(study: OpenStudy) -> None:
    entry = {
        "name": "timm:resnet18",
        "flops": 7,
        "params": 5,
        "latency_ms": 0.5,
        "latency_spread_ms": 0.1,
    }
    assert summarise(study).baselines == ()
    study.update_facts(baselines=[entry], images={"val": 40, "test": 30}, finish_seconds=1.5)
    content = summarise(study).to_json()
    ends = {"latency_low_ms": None, "latency_high_ms": None}  # an older study's has none
    assert content["baselines"] == ({**entry, **ends},)
    assert content["images"] == {"train": None, "val": 40, "test": 30}
    assert content["seconds"]["finish"] == 1.5  # type: ignore[index]
    study.update_facts(baselines=[], images={}, finish_seconds=0.0)


def test_trials_csv_has_one_row_a_trial(study: OpenStudy) -> None:
    with (study.path / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    records = study.records()
    assert [int(row["trial"]) for row in rows] == [record.number for record in records]
    for row, record in zip(rows, records, strict=True):
        assert row["state"] == record.state
        assert row["val"] == ("" if record.val is None else str(record.val))
        assert row["flops"] == ("" if record.cost is None else str(record.cost.flops))
        assert row["reason"] == record.reason
        assert row["control_of"] == ("" if record.control_of is None else str(record.control_of))
        for name, value in record.params.items():
            assert row[name] == str(value)


def test_the_report_is_written_whole_and_names_the_study(study: OpenStudy) -> None:
    html = (study.path / "report.html").read_text(encoding="utf-8")
    assert html.rstrip().endswith("</html>")
    assert "phones" in html
    assert "A note" in html


def test_derived_files_deleted_and_written_again_are_the_same(study: OpenStudy) -> None:
    names = ("front.json", "trials.csv", "report.html", "report.md", "figures/front.svg")
    files = [study.path / name for name in names]
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    write_derived(load_study(study.path))
    assert [file.read_bytes() for file in files] == before


def test_a_study_without_a_complete_trial_has_no_best(fast_path: Path) -> None:
    with opened(fast_path / "hopeless", replace(REQUEST, budget_mflops=0.5)) as study:
        study.update_facts(teacher=TEACHER)
        proposal = study.ask()
        study.tell(proposal, replace(look_up(proposal), state="rejected", val=None, curve=()))
        summary = write_derived(study)
    assert (summary.best, summary.front, summary.best_entry()) == (None, (), None)
    assert summary.counts.rejected == 1
    assert front_json(study)["front"] == []


def test_a_study_that_has_only_begun_has_nothing_to_report(fast_path: Path) -> None:
    with opened(fast_path / "begun") as study, pytest.raises(StudyError, match="'begun'"):
        summarise(study)


def test_a_best_that_has_left_the_front_gives_way_to_the_most_accurate(study: OpenStudy) -> None:
    study.update_facts(best=10_000)
    summary = summarise(study)
    assert summary.best == study.front()[-1].number
    study.update_facts(best=summary.best)


def test_the_command_runs_the_same_study_again(study: OpenStudy) -> None:
    html = (study.path / "report.html").read_text(encoding="utf-8")
    text = re.sub('<span class="whole">(.*?)</span>', r"\1", html)
    assert f"--budget-mflops 15.0 --seed 3 --out {study.path.parent}" in text


def test_text_from_outside_gives_no_formula_and_no_escape_sequence(fast_path: Path) -> None:
    family = '=HYPERLINK("http:,,evil","x").py:Plain'
    with opened(fast_path / "outside") as study:
        run_to(study, 2)
        lost = study.ask()
        study.tell(
            lost,
            replace(
                look_up(lost), state="failed", val=None, reason="@evil \x1b[2J\x1b]0;owned\x07"
            ),
        )
        asked = study.ask_control({"student.family": family, "method.name": "none"}, 0)
        study.tell(asked, replace(look_up(asked), state="failed", val=None, reason="-1 \u202etxt"))
        study.update_facts(teacher=TEACHER, notes=["note \x1b[31m"])
        write_derived(study)
    for name in ("trials.csv", "report.html", "report.md", "front.json"):
        text = (fast_path / "outside" / name).read_text(encoding="utf-8")
        assert not {"\x1b", "\x07", "\u202e"} & set(text), name
    with (fast_path / "outside" / "trials.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{family}" in cells
    assert "'@evil \\x1b[2J\\x1b]0;owned\\x07" in cells
    assert not [cell for cell in cells if cell[:1] in "=@+\t" and cell]
