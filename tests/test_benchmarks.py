"""Benchmarks compare like with like, and judge a bar as they say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import detection_data
import numpy as np
import optuna
import pytest
import torch
from torch import nn

from benchmarks import (
    bars,
    each_method,
    input_pipeline,
    input_share,
    latency_holds,
    live_teacher,
    method_cost,
    packing,
    reject,
    scheduling,
    trials,
    warm_start,
    yolo_file,
)
from benchmarks.__main__ import SPEED, found, main, together
from benchmarks.paired import Ratio, alternate, quartiles
from kdsearch import data as datasets
from kdsearch.data.base import ImageSet
from kdsearch.data.views import to_input
from kdsearch.deploy.pricing import build_student
from kdsearch.deploy.timing import Latency
from kdsearch.methods import METHODS
from kdsearch.spec import Budget, Candidate, StudentSpec
from kdsearch.study.open import open_study
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.tasks._average_precision import MAP50
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.distiller import check

pytestmark = pytest.mark.slow  # scripts, not the package


def test_a_callable_that_does_twice_as_much_takes_twice_as_long():
    a = torch.randn(100_000)
    times = alternate([lambda: (a.exp(), a.exp()), a.exp], seconds=0.3)
    assert 1.6 < times.ratio(0, 1).median < 2.5
    assert times.ratio(1, 0).low <= times.ratio(1, 0).median <= times.ratio(1, 0).high


@pytest.fixture
def threads():
    """Put back the number of threads, which a benchmark sets for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_method_cost_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "cost.json"
    method_cost.main(["kd", "minilm", "--batch", "2", "--seconds", "0.1", "--json", str(file)])
    message = json.loads(file.read_text())
    assert list(message["methods"]) == ["kd", "minilm"]
    assert all(row["step"]["ratio"]["median"] > 0 for row in message["methods"].values())
    assert "minilm" in capsys.readouterr().out


def test_benchmarks_are_found_by_name(capsys):
    assert "method_cost" in {name for name, _, _ in found()}
    assert main([]) == 0
    assert main(["method_costs"]) == 2
    assert "no benchmark 'method_costs'" in capsys.readouterr().err


def test_all_speed_benchmarks_are_found():
    assert set(SPEED) <= {name for name, _, _ in found()}


def a_row(**changed):
    measured = Ratio(median=2.0, low=1.5, high=2.5)
    return bars.Row(**{"case": "a", "measured": measured, "unit": "x", "bar": 2.0, **changed})


@pytest.mark.parametrize(
    ("changed", "is_met"),
    [
        ({}, True),
        ({"bar": 1.9}, False),
        ({"is_floor": True}, True),
        ({"is_floor": True, "bar": 2.1}, False),
    ],
)
def test_bar_is_a_ceiling_or_a_floor_and_itself_keeps_it(changed, is_met):
    assert a_row(**changed).is_met is is_met


def test_missed_bar_shows_in_table_json_and_status(tmp_path, capsys):
    def with_bar(bar):
        rows = [a_row(), a_row(case="b", bar=bar)]
        return lambda argv: bars.tell("it", "What.", lambda: rows, Path(argv[1]))

    file = tmp_path / "all.json"
    assert together([with_bar(2.0)], []) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert together([with_bar(2.0), with_bar(1.0)], ["--json", str(file)]) == 1
    assert capsys.readouterr().out.count("MISSED") == 1
    results = json.loads(file.read_text())
    assert [[row["is_met"] for row in one["rows"]] for one in results] == [
        [True, True],
        [True, False],
    ]
    assert results[0]["rows"][0]["measured"] == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_quartiles_are_those_of_the_blocks():
    assert quartiles(np.array([4.0, 0.0, 1.0, 3.0, 2.0])) == Ratio(median=2, low=1, high=3)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """Return what trials share: a batch, and a teacher whose outputs are kept."""
    return trials.context(
        trials.image_data(1),
        trials.teacher(),
        tmp_path_factory.mktemp("cache"),
        budget=Budget(flops=1),
    )


def test_live_and_cached_epochs_learn_the_same(lesson):
    live, cached, plain = (
        trials.epoch(trials.SMALL, method, lesson, source=source)()[0].losses
        for method, source in (
            ("kd", trials.Live(lesson.teachers[0])),
            ("kd", None),
            ("none", None),
        )
    )
    assert live == pytest.approx(cached, rel=1e-4)
    assert plain["task"] == pytest.approx(cached["task"], rel=1e-6)
    assert "kd" not in plain


def test_the_bound_asks_the_teacher_about_every_image_once(lesson):
    teacher, seen = lesson.teachers[0], []
    first = next(module for module in teacher.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    live_teacher.alone(teacher, lesson)()
    hook.remove()
    assert sum(seen) == len(lesson.data.train)


def test_input_is_what_the_student_reads_of_every_image(lesson):
    made = torch.cat(input_share.inputs(lesson.data)())
    assert made.shape == (trials.BATCH, 3, trials.SIZE, trials.SIZE)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("dataset", [input_pipeline.Pictures, input_pipeline.Tensors])
def test_pipelines_make_as_many_inputs_of_the_same_kind(dataset):
    images = trials.image_set(200)
    ours, theirs = input_pipeline.ours(images), input_pipeline.theirs(dataset(images), workers=0)
    assert input_pipeline.seen(ours) == input_pipeline.seen(theirs) == 200
    mine, its = (
        [torch.cat(parts) for parts in zip(*epoch(), strict=True)] for epoch in (ours, theirs)
    )
    assert mine[0].shape == its[0].shape
    assert mine[0].dtype == its[0].dtype == torch.float32
    torch.testing.assert_close(mine[1].bincount(), its[1].bincount())
    torch.testing.assert_close(mine[0].mean(), its[0].mean(), rtol=0, atol=0.05)


@pytest.mark.parametrize("dataset", [input_pipeline.Pictures, input_pipeline.Tensors])
def test_peer_normalises_as_we_do(dataset):
    white = ImageSet(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(1).long())
    (theirs, _), *_ = input_pipeline.theirs(dataset(white), workers=0)()
    ours = to_input(
        white.images, mean=trials.MEAN, std=trials.STD, resolution=trials.SIZE, channels=3
    )
    centre = (..., slice(4, 28), slice(4, 28))
    torch.testing.assert_close(theirs[centre], ours[centre])


def test_made_data_sets_load_and_a_second_load_gives_the_same(tmp_path):
    for path, _ in warm_start.made(tmp_path, small=60, large=30):
        first, second = (datasets.load(str(path), cache_dir=tmp_path / "cache") for _ in range(2))
        assert first.key == second.key
        assert torch.equal(first.train.at(slice(None)), second.train.at(slice(None)))
        assert first.size == ((32, 32) if path.suffix else (224, 224))


def test_a_rejected_candidate_is_priced_and_not_trained(lesson, tmp_path):
    small = StudentSpec(family="resnet", knobs={"depth": 3})
    outcome = reject.rejection(small, lesson, tmp_path)()
    assert outcome.state == "rejected"
    assert outcome.cost.flops > 0
    assert outcome.curve == ()


def test_study_and_peer_hold_as_many_trials(tmp_path):
    with open_study(tmp_path / "ours", scheduling.REQUEST, versions={}) as study:
        ours, theirs = scheduling.ours(study, []), scheduling.theirs(tmp_path)
        for _ in range(3):
            ours()
            theirs()
        mine = study.records()
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'theirs.db'}")
    peers = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / 'theirs.db'}")
    assert len(mine) == len(peers.trials) == 3
    assert all(record.state == "complete" for record in mine)
    assert all("student.family" in trial.params for trial in peers.trials)


def test_packed_trials_run_side_by_side_and_none_may_fail(tmp_path: Path) -> None:
    both = Barrier(2)

    def run(_: Candidate, directory: Path) -> TrialOutcome:
        both.wait(20)
        return TrialOutcome(
            state="complete" if directory.name != "3" else "failed", reason="broken"
        )

    chosen = packing.candidates(1)
    assert len({candidate.digest() for candidate in chosen}) == len(chosen) == 8
    assert packing.seconds([run] * 2, chosen[:2], tmp_path) > 0
    with pytest.raises(RuntimeError, match="broken"):
        packing.seconds([run] * 2, chosen[:4], tmp_path)


def test_what_was_timed_again_counts_when_it_lies_in_the_stated_interval():
    stated = Latency(ms=1.0, low_ms=0.9, high_ms=1.1, spread_ms=0.0, contention=1.0)
    rows = [
        latency_holds.Tried(student="a", stated=stated, again=(0.9, 1.1), plain=(0.89, 1.0)),
        latency_holds.Tried(student="b", stated=stated, again=(1.0, 1.2), plain=(1.11, 2.0)),
    ]
    assert latency_holds.share(rows, lambda row: row.again) == 0.75
    assert latency_holds.share(rows, lambda row: row.plain) == 0.25


def test_each_method_trains_what_is_missing_and_pairs_gains_by_seed(tmp_path):
    settings = {"data": "x", "epochs": 2}

    def made(method, seed, test):
        return each_method.Result(
            method=method, seed=seed, val=0.5, test=test, cpu_s=3.0, settings=settings
        )

    known = [made("none", 1, 0.80), made("pkd", 1, 0.81)]
    file = tmp_path / "kept.jsonl"
    rows = [*known, replace(known[0], settings={**settings, "epochs": 3})]
    file.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    read = each_method.read(file, settings)
    assert read == known
    trained = []

    def run(method, seed):
        trained.append((method, seed))
        return made(method, seed, 0.81 if method == "none" else 0.83)

    found = list(each_method.results(["none", "pkd"], 2, read, run))
    assert trained == [("none", 2), ("pkd", 2)]
    lines = each_method.table(found, MAP50, 72)
    assert lines[2] == "| none | 50.00 % | 80.50 % |  | 3 |"
    assert lines[3].startswith("| pkd | 50.00 % | 82.00 % | +1.50 (")


@torch.no_grad()
def test_a_detector_in_yolos_layout_is_a_teacher_with_the_same_boxes(tmp_path):
    data = datasets.load(str(detection_data.write(tmp_path / "shapes")), cache_dir=tmp_path)
    student = StudentSpec(
        family="resnet", knobs={"width": 0.25, "depth": 4, "head.channels": 16, "head.depth": 1}
    )
    detector = build_student(student, data).eval()
    yolo_file.write(detector, data.classes, tmp_path / "yolo.onnx")
    spec = TeacherSpec(name=f"onnx:{tmp_path / 'yolo.onnx'}")
    notes = []
    teacher = load_teacher(
        spec, data, cache_dir=tmp_path, seed=0, device=torch.device("cpu"), note=notes.append
    )
    assert f"Teacher {spec.name}: its answer is read as columns, of 3 classes" in notes
    images = data.val.at(slice(2))
    boxes, scores = teacher.network.finder(teacher.preprocess(images))
    found = torch.cat([boxes, scores], dim=2)
    torch.testing.assert_close(found, detector(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("task", "method"),
    [(task, method) for task, names in each_method.METHOD_NAMES.items() for method in names],
)
def test_each_method_of_the_table_is_one_of_its_task(task, method):
    candidate = each_method.candidate_of(method, 1, 12, task, "end")
    check(candidate.distill)
    for part in method.split("+"):
        assert not METHODS.get(part).unfit_for(task)
