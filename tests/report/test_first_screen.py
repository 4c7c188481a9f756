"""The first screen answers at a glance, with the numbers of the shipped file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import LIMIT_MS, Study, make_study
from plotly.offline import get_plotlyjs
from table_study import REQUEST, opened, run_to

from kdsearch.report import words
from kdsearch.report.advice import advice, located
from kdsearch.report.answers import (
    NO,
    NO_CONTROL,
    NOT_KNOWN,
    NOT_MEASURABLE,
    PASSED,
    YES,
    answers,
)
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.report.tiles import tiles
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Answer, Images, ShippedFile, Summary
from kdsearch.tasks.base import Metric

FILE = ShippedFile(bytes=315_217, val=0.97, contention=1.0, one_round=False)
IOU = Metric(key="miou", label="mean IoU", image_variance=0.04)


def shipped(file: ShippedFile = FILE, images: int = 10_000) -> Study:
    summary, records = make_study()
    summary = replace(summary, file=file, images=Images(val=images, test=images))
    return replace(summary, answers=answers(summary, records)), records


def page_of(study: Study) -> str:
    summary, records = study
    html = render(summary, records, rankings=(), notes=[], command="kdsearch run")
    return html.replace("\u00a0", " ")


def told(summary: Summary) -> dict[str, str]:
    """Return value and small print of each tile, by title."""
    found = {tile.title: f"{tile.value}; {tile.detail}" for tile in tiles(summary)}
    return {title: text.replace("\u00a0", " ") for title, text in found.items()}


def test_the_tiles_state_the_shipped_entry_and_its_file() -> None:
    summary, _ = shipped()
    best = summary.shipped
    assert best is not None
    assert best.test is not None
    assert best.latency_ms is not None
    assert best.latency_high_ms is not None
    found = told(summary)
    assert found["Accuracy on test"].startswith(f"{100 * best.test:.2f} ± ")
    assert f"validation {100 * best.val:.2f} %" in found["Accuracy on test"]
    value = re.match(r"([\d.]+) ms \(([\d.]+) to ([\d.]+)\)", found["Latency"])
    assert value is not None
    assert float(value[1]) == pytest.approx(best.latency_ms, rel=0.005)
    assert float(value[3]) == pytest.approx(best.latency_high_ms, rel=0.005)
    assert found["Size"] == "0.315 MB; student.onnx"
    latency = next(tile for tile in tiles(summary) if tile.title == "Latency")
    assert latency.share == pytest.approx(best.latency_high_ms / LIMIT_MS)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(0.99, "4.00 points below"), (0.9, "5.00 points above"), (0.95, "equal to")],
)
def test_the_score_states_its_distance_to_the_teacher_and_its_error(
    theirs: float, expected: str
) -> None:
    summary, _ = shipped()
    assert summary.shipped is not None
    teacher = replace(summary.teacher, test=theirs)
    best = replace(summary.shipped, test=0.95)
    detail = told(replace(summary, shipped=best, teacher=teacher))["Accuracy on test"]
    assert f"; {expected} the teacher's {100 * theirs:.2f} %; validation " in detail
    assert detail.endswith("; \u00b1: one standard error")


def test_a_student_of_the_teachers_name_is_told_apart_from_it() -> None:
    summary, _ = shipped()
    best = summary.shipped
    assert best is not None
    family = words.family(best.config)
    more = replace(summary.teacher, name=family, params=4 * best.params)
    text = verdict(replace(summary, teacher=more), []).replace("\u00a0", " ")
    assert f"a {family} student with 25 % of the teacher's parameters, " in text
    equal = replace(more, params=best.params)
    assert "parameters" not in verdict(replace(summary, teacher=equal), [])


def test_the_latency_states_the_device_and_a_gain_its_interval() -> None:
    found = told(shipped(images=100_000)[0])
    assert "on cpu, 1 thread" in found["Latency"]
    helped = found["Did distillation help?"]
    assert re.search(r"\+\d\.\d\d points \(95 %: \+\d\.\d\d to \+\d\.\d\d\) of test", helped)


def test_page_markdown_and_tiles_have_the_same_texts() -> None:
    summary, records = study = shipped()
    text = markdown(summary, records, rankings=(), notes=[], command="kdsearch run")
    html = page_of(study)
    for tile in tiles(summary):
        assert tile.value.replace("\u00a0", " ") in html, tile
        assert tile.value in text, tile


def test_an_interval_has_equal_decimals() -> None:
    best = make_study()[0].shipped
    assert best is not None
    best = replace(best, latency_ms=0.0831, latency_low_ms=0.0814, latency_high_ms=0.102)
    assert words.latency(best).replace("\u00a0", " ") == "0.0831 ms (0.0814 to 0.1020)"


@pytest.mark.parametrize(
    ("images", "expected"), [(100_000, YES), (200, NOT_MEASURABLE)], ids=["many", "few"]
)
def test_distillation_helped_where_the_interval_on_test_excludes_0(
    images: int, expected: str
) -> None:
    """The made-up controls are 1.1 and 2.2 points below."""
    none, kd = answers(*shipped(images=images)[:1], shipped()[1])
    assert (none.over, kd.over) == ("none", "kd")
    assert none.answer == expected
    assert none.split == "test"
    assert none.low is not None
    assert none.difference is not None
    assert none.high is not None
    assert none.low < none.difference < none.high


def test_a_loss_is_a_no_and_a_student_without_controls_not_known() -> None:
    summary, records = shipped(images=100_000)
    controls = tuple(replace(entry, test=0.999) for entry in summary.controls)
    lost = answers(replace(summary, controls=controls), records)
    assert [answer.answer for answer in lost] == [NO, NO]
    alone = [record for record in records if not record.kind]
    unknown = answers(replace(summary, controls=()), alone)
    assert [(answer.answer, answer.why) for answer in unknown] == [
        (NOT_KNOWN, "no control was trained")
    ] * 2


def with_short_controls(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the records with controls of four epochs."""
    return [
        replace(record, curve=record.curve[:4], val=record.curve[3]) if record.kind else record
        for record in records
    ]


def test_a_control_of_fewer_epochs_is_compared_after_as_many_on_validation() -> None:
    summary, records = shipped(images=100_000)
    short = with_short_controls(records)
    best = next(record for record in records if record.number == summary.best)
    none, _ = answers(summary, short)
    control = next(r for r in short if r.params["method.name"] == "none" and r.kind)
    assert none.split == "validation"
    assert none.difference == pytest.approx(best.curve[3] - control.curve[3])
    assert none.epochs == 4
    early = told(replace(summary, answers=(none,)))["Did distillation help?"]
    assert early.endswith("over training without a teacher after 4 epochs")
    assert all(answer.epochs is None for answer in summary.answers)


@pytest.mark.parametrize(
    ("distance", "knows_all", "answer"),
    [(-0.01, True, NOT_KNOWN), (-0.01, False, YES), (0.01, True, YES)],
    ids=["passed", "teacher of some classes", "below its teacher"],
)
def test_an_early_gain_says_nothing_about_a_student_that_has_passed_its_teacher(
    distance: float, knows_all: bool, answer: str
) -> None:
    """On CamVid the student stayed at its teacher's level, and the control passed both."""
    summary, records = shipped(images=10_000_000)
    best = next(record for record in records if record.number == summary.best)
    early = with_short_controls(records)
    teacher = replace(summary.teacher, val=best.val + distance, knows_all=knows_all)
    summary = replace(summary, teacher=teacher)
    none, _ = answers(summary, early)
    assert none.answer == answer
    assert (none.why == PASSED) is (answer == NOT_KNOWN)
    shown = told(replace(summary, answers=(none,)))["Did distillation help?"]
    assert shown.endswith(f"after 4 epochs; {PASSED}") is (answer == NOT_KNOWN)
    in_full, _ = answers(summary, records)
    assert in_full.answer == YES


def test_a_gain_of_one_training_holds_the_noise_of_seeds() -> None:
    metric = Metric(key="accuracy", label="accuracy")
    error = words.error_of_difference(metric, 0.9, 0.9, 1_000)
    images = (2 * metric.variance(0.9, 1_000)) ** 0.5
    assert error is not None
    assert error > 1.2 * images


def test_a_busy_machine_is_a_warning_on_every_page() -> None:
    summary, records = study = shipped(replace(FILE, contention=2.3))
    text = markdown(summary, records, rankings=(), notes=[], command="kdsearch run")
    assert "The machine was busy" in page_of(study)
    assert "The machine was busy" in text
    assert "The machine was busy" not in page_of(shipped())


def test_an_unfinished_study_ships_nothing_anywhere() -> None:
    summary, records = shipped()
    unfinished = replace(summary, shipped=None, file=None)
    page = page_of((unfinished, records)).partition("<main>")[2].rpartition("</main>")[0]
    page = page.replace("What to ship", "").replace("what-to-ship", "")
    assert "to ship" not in page
    assert "best/" not in page
    assert "Nothing has been shipped yet." in page
    running = [replace(records[0], state="running", val=None), *records[1:]]
    assert "1 training still running" in page_of((unfinished, running))


def test_another_metric_is_never_called_accuracy() -> None:
    summary, _ = shipped()
    assert "ccuracy" not in str(told(replace(summary, metric=IOU)))
    assert "Mean IoU on test" in told(replace(summary, metric=IOU))


def test_a_written_page_has_its_scripts_as_their_hashes_say(tmp_path: Path) -> None:
    """A character that is escaped in them stops them: no figure would be drawn."""
    teacher = {"name": "auto", "val": 0.9, "test": None, "flops": 1, "params": 1}
    with opened(tmp_path / "study", REQUEST) as study:
        study.update_facts(teacher={**teacher, "latency_ms": None})
        run_to(study, 2)
        write_derived(study)
    assert get_plotlyjs() in (tmp_path / "study" / "report.html").read_bytes().decode()


def test_each_step_has_a_command(tmp_path: Path) -> None:
    teacher = {"name": "auto", "val": 0.2, "test": None, "flops": 10**12, "params": 1}
    with opened(tmp_path / "study", REQUEST) as study:
        study.update_facts(teacher={**teacher, "latency_ms": None}, images={"val": 9, "test": 9})
        run_to(study, 5)
        best = study.front()[-1].number
        assert advice(study, summarise(study), "kdsearch run --name study") == ()
        study.update_facts(best=best, shipped=best, images={"train": 100, "val": 900, "test": 900})
        summary = replace(summarise(study), file=replace(FILE, contention=2.0))
        passed = Answer(over="none", answer=NOT_KNOWN, why=PASSED)
        summary = replace(summary, answers=(passed,))
        steps = advice(study, summary, "kdsearch run --name study")
    text = " ".join(steps)
    assert "`kdsearch distill --config <study>/best/config.yaml --method none`" in text
    assert all(re.search("`kdsearch [a-z]+ ", step) for step in steps), steps
    for words_of in ("machine was busy", "teacher is worse than its student"):
        assert words_of in text
    others = [entry.trial for entry in summary.front if entry.trial != best]
    assert not others or f"ship <study> --trial {others[-1]}" in text
    assert str(tmp_path) not in text
    there = " ".join(located(steps, tmp_path / "renamed"))
    assert "<study>" not in there
    assert f"kdsearch measure {tmp_path}/renamed/best/student.onnx" in there
    assert not others or f"ship renamed --out {tmp_path} --trial {others[-1]}" in there
    here = " ".join(located(steps, Path("results/renamed")))
    assert not others or f"ship renamed --trial {others[-1]}" in here


@contextmanager
def shipping(path: Path) -> Iterator[OpenStudy]:
    """Open a study of three trials that ships its best."""
    teacher = {"name": "auto", "val": 0.2, "test": None, "flops": 10**12, "params": 1}
    with opened(path, REQUEST) as study:
        study.update_facts(teacher={**teacher, "latency_ms": None})
        run_to(study, 3)
        best = study.front()[-1].number
        study.update_facts(best=best, shipped=best)
        yield study


@pytest.mark.parametrize("why", [NO_CONTROL, "a student is at chance"])
def test_a_study_without_controls_says_how_to_train_them(tmp_path: Path, why: str) -> None:
    with shipping(tmp_path / "study") as study:
        unknown = Answer(over="none", answer=NOT_KNOWN, why=why)
        summary = replace(summarise(study), answers=(unknown,))
        text = " ".join(advice(study, summary, "kdsearch run"))
    assert ("`kdsearch run --name <study> --refit 1`" in text) == (why == NO_CONTROL)


def test_a_parameter_that_its_family_ends_is_no_edge(tmp_path: Path) -> None:
    with shipping(tmp_path / "study") as study:
        summary = summarise(study)
        entry = summary.shipped
        assert entry is not None
        dims = dict(study.config.search_space().all_dims())
        high = {name: dims[name].high for name in entry.config if hasattr(dims[name], "high")}
        at_end = replace(summary, shipped=replace(entry, config={**entry.config, **high}))
        command = f"kdsearch run --out {tmp_path} --space x.yaml --name study"
        for closed in ((), tuple(high)[:1], tuple(high)):
            file = replace(FILE, ends=closed)
            (*found,) = advice(study, replace(at_end, file=file), command)
            told = [line for line in found if "edge of the space" in line]
            assert len(told) == (len(closed) < len(high))
            for line in told:
                for name in high:
                    assert (f"{name} " in line) == (name not in closed)
                assert "`kdsearch run --space FILE.yaml --name <study>-wider`" in line
