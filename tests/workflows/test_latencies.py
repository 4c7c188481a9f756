"""Nobody pays for a latency that no budget limits; the report shows those of its front."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quick import fake_round
from table_study import opened, run_search
from toy_trial import DATA, PLAIN, context

from kdsearch.deploy import pricing
from kdsearch.deploy.pricing import build_student, latency_of, price
from kdsearch.deploy.targets._local import CpuTarget
from kdsearch.deploy.timing import ONE_ROUND, Latency, Round
from kdsearch.models.model import Model
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.spec import Budget, Candidate
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TeacherEntry
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.workflows.latencies import measure_latencies

SPACE = """
student: {family: resnet, resnet: {width: 0.25, depth: {int: [4, 6]}}}
method: {name: {choice: [none, kd]}}
"""
CONFIG = StudyConfig(space=SPACE, budget_mflops=100.0)
FILE = Latency(ms=7.0, low_ms=6.9, high_ms=7.1, spread_ms=0.1, contention=1.0)
TEACHER = TeacherEntry(name="t", val=0.9, test=0.9, flops=1, params=1, latency_ms=None)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of all rounds."""
    taken: list[Path] = []

    def measure_round(target: Any, timing: Any, references: Any) -> Round:
        taken.append(timing.file)
        return fake_round(target, timing, references)

    monkeypatch.setattr(CpuTarget, "measure_round", measure_round)
    return taken


def student_of(proposal: Proposal) -> Model:
    return build_student(Candidate.from_params(proposal.params).student, DATA)


def run_study(path: Path, config: StudyConfig) -> Any:
    """Return an evaluator that prices a student as a trial does; deeper is better."""
    shared = context(path, config.budget)

    def evaluate(proposal: Proposal) -> TrialOutcome:
        cost = price(student_of(proposal), budget=config.budget, latencies=shared.latencies)
        assert cost.flops is not None
        return TrialOutcome(state="complete", cost=cost, val=cost.flops / 1e8, curve=(0.1,))

    return evaluate


@pytest.mark.parametrize("budget", [Budget(), Budget(flops=1e8), Budget(params=1e8)])
def test_no_latency_is_measured_that_no_budget_limits(
    budget: Budget, tmp_path: Path, rounds: list[Path]
) -> None:
    student = build_student(Candidate.from_params({"student.family": "resnet"}).student, DATA)
    cost = price(student, budget=budget, latencies=context(tmp_path).latencies)

    assert cost.flops is not None
    assert cost.latency_ms is None
    assert not rounds


def test_a_student_of_another_origin_must_export_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []
    monkeypatch.setattr(pricing, "file_for", lambda network, *_: exported.append(str(network)))
    for family in ("resnet", "timm:test_resnet"):
        student = build_student(Candidate.from_params({"student.family": family}).student, DATA)
        price(student, budget=Budget(), latencies=context(tmp_path).latencies)

    assert len(exported) == 1


def test_a_study_without_a_latency_budget_times_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing one takes 8 s; the round that is shown is by the clock."""
    monkeypatch.setattr(CpuTarget, "_reference_time", pytest.fail)
    latencies = context(tmp_path).latencies
    student = build_student(PLAIN.student, DATA)
    found = latency_of(student, latencies, limit=math.inf)
    assert found.high_ms == pytest.approx(found.ms * ONE_ROUND)
    monkeypatch.undo()
    assert latency_of(student, latencies, limit=math.inf) == found
    full = latency_of(student, latencies)  # the one by the clock does not stand for it
    assert not full.is_cut
    assert 0.3 < full.ms / found.ms < 3
    assert latency_of(student, latencies, limit=math.inf) == full


def test_the_front_and_the_teacher_get_one_round_each_after_the_search(
    tmp_path: Path, rounds: list[Path]
) -> None:
    with opened(tmp_path / "study", CONFIG) as study:
        run_search(study, [run_study(tmp_path, CONFIG)], n_trials=6)
        study.update_facts(teacher=TEACHER)
        before = study.front()
        assert not rounds
        assert all(record.cost and record.cost.latency_ms is None for record in study.records())
        write_derived(study)  # as during the search

        shared, note = context(tmp_path), list[str]()
        for _ in range(2):
            measure_latencies(study, shared, before, shipped=(before[-1], FILE), note=note.append)
        summary = summarise(study)

        assert [record.number for record in study.front()] == [r.number for r in before]
        assert len(rounds) == len(before) - 1 + 1  # what ships has its file's; the teacher
        assert summary.teacher.latency_ms is not None
        assert summary.front[-1].latency_ms == FILE.ms
        assert summary.front[-1].latency_high_ms == FILE.high_ms
        for entry in summary.front[:-1]:
            assert entry.latency_ms is not None
            assert entry.latency_high_ms == pytest.approx(entry.latency_ms * ONE_ROUND)
        shown = {entry.trial for entry in summary.front}
        for record in study.records():
            assert record.cost is not None
            assert (record.cost.latency_ms is not None) == (record.number in shown)
        first, last, again = note  # twice: the second reads its latencies from the cache
        assert again == first
        assert re.fullmatch(r"Measuring the latency of \d+ students?", first)
        assert last == "Measuring the latency of the teacher"


def test_a_front_that_one_round_decided_is_measured_in_full(
    tmp_path: Path, rounds: list[Path]
) -> None:
    config = replace(CONFIG, budget_mflops=None, budget_ms=1e6)
    with opened(tmp_path / "study", config) as study:
        run_search(study, [run_study(tmp_path, config)], n_trials=6)
        study.update_facts(teacher=replace(TEACHER, latency_ms=1.0))
        before = study.front()
        taken, shared = len(rounds), context(tmp_path, config.budget)
        assert taken == len({record.params["student.resnet.depth"] for record in study.records()})

        note = list[str]()
        measure_latencies(study, shared, before, shipped=(before[-1], FILE), note=note.append)
        assert all(line.startswith("Measuring the latency of ") for line in note)

        least = CpuTarget.round_limits.min_rounds
        assert len(rounds) == taken + least * (len(before) - 1)  # one is the shipped file's
        assert [record.number for record in study.front()] == [r.number for r in before]
        *others, shipped = zip(summarise(study).front, before, strict=True)
        for entry, record in others:
            spec = Candidate.from_params(record.params).student
            full = latency_of(build_student(spec, DATA), shared.latencies)
            assert not full.is_cut
            assert (entry.latency_ms, entry.latency_high_ms) == (full.ms, full.high_ms)
        assert (shipped[0].latency_ms, shipped[0].latency_high_ms) == (FILE.ms, FILE.high_ms)


def test_a_latency_that_cannot_be_measured_has_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "study", CONFIG) as study:
        run_search(study, [run_study(tmp_path, CONFIG)], n_trials=6)
        study.update_facts(teacher=TEACHER)
        front, note = study.front(), list[str]()
        shared = context(tmp_path)
        monkeypatch.setattr(
            CpuTarget, "measure_round", lambda *_: fake_round(None, _NoFile(), None)
        )
        measure_latencies(study, shared, front, shipped=(front[-1], FILE), note=note.append)

        note = [line for line in note if not line.startswith("Measuring ")]
        assert len(note) == len(front) - 1 + 1
        assert all("is not known: there is no file" in line for line in note)
        assert [entry.latency_ms for entry in summarise(study).front] == [None] * (
            len(front) - 1
        ) + [FILE.ms]


class _NoFile:
    file = Path("nowhere.onnx")
