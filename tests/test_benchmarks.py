"""The formulas of the benchmarks are those of the methods: equal values and gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from benchmarks import (
    bars,
    formulas,
    input_pipeline,
    input_share,
    int8_training,
    latency_holds,
    live_teacher,
    method_cost,
    packing,
    peer,
    refit_holds,
    reject,
    scheduling,
    trial_profile,
    trials,
    warm_start,
    whole_study,
)
from benchmarks.__main__ import SPEED, found, main, together
from benchmarks.formulas.base import Known
from benchmarks.paired import Ratio, alternate, quartiles
from benchmarks.stopwatch import REST, Stopwatch
from kdsearch import data as datasets
from kdsearch import methods
from kdsearch.data.base import ImageSet
from kdsearch.data.views import to_input
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.deploy.timing import Latency
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs, gradient_of
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, StudentSpec, TrainSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
from kdsearch.study.study import TrialOutcome
from kdsearch.training.ema import ModelEma

B, K = 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
SHAPES = [(B, 6, 8, 8), (B, 6, 4, 4), (B, 6, 2, 2)]
HEAD = torch.linspace(-1, 1, K * 6, dtype=torch.float64).sin().reshape(K, 6)
SAMPLES = 40


def network_says(*, seed):
    """Return Outputs that hang together as a network's do, and the maps that they come from."""
    random = torch.Generator().manual_seed(seed)
    maps, attention = (
        [
            torch.randn(b, c * wide, h, w, generator=random, dtype=torch.float64).requires_grad_()
            for b, c, h, w in SHAPES
        ]
        for wide in (1, 3)
    )
    embedding = maps[-1].mean((2, 3))
    outputs = Outputs(embedding @ HEAD.T, embedding, tuple(maps), tuple(attention))
    return outputs, [*maps, *attention]


def result_of(make, name):
    """Return a loss, its gradients in the student, and the length of that in its own weights."""
    student, made_of = network_says(seed=0)
    teacher = gradient_of(network_says(seed=1)[0]).map(torch.Tensor.detach)
    teacher = replace(teacher, index=torch.arange(B))
    mine, theirs = (method_cost.signal(methods.get(name), side) for side in (student, teacher))
    torch.manual_seed(2)
    loss = make(mine, theirs)
    torch.manual_seed(3)
    value = loss(mine, theirs, TARGET)
    value.backward()
    own = [p.grad.norm() for p in loss.parameters()] if isinstance(loss, nn.Module) else []
    return value, *(found.grad for found in made_of), torch.tensor(own).norm()


def test_every_method_that_teaches_has_a_formula():
    assert formulas.names() == tuple(name for name in methods.names() if name != "none")


@pytest.mark.parametrize("name", formulas.names())
def test_formula_gives_the_value_and_the_gradients_of_the_method(name):
    def of_package(student, teacher):
        loss = methods.get(name)()
        known = Setting(samples=SAMPLES, batch_size=B, teacher_head=(HEAD, None))
        loss.prepare(student, teacher, known)
        return loss

    def by_hand(student, teacher):
        known = Known(samples=SAMPLES, head=(HEAD, None))
        loss = formulas.formula(name, student, teacher, known)
        return loss.double() if isinstance(loss, nn.Module) else loss

    torch.testing.assert_close(
        result_of(by_hand, name), result_of(of_package, name), rtol=1e-5, atol=1e-9
    )


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
    told = json.loads(file.read_text())
    assert list(told["methods"]) == ["kd", "minilm"]
    assert all(row["step"]["ratio"]["median"] > 0 for row in told["methods"].values())
    assert "minilm" in capsys.readouterr().out


def test_formula_that_is_not_the_methods_is_refused(monkeypatch):
    monkeypatch.setitem(formulas.FORMULAS, "kd", formulas.FORMULAS["hard_label"])
    with pytest.raises(ValueError, match="kd: the loss is"):
        method_cost.compare("kd", method_cost.cnn_pair(2), method_cost.step_of, seconds=0.0)


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


def test_missed_bar_is_told_in_table_json_and_status(tmp_path, capsys):
    def with_bar(bar):
        rows = [a_row(), a_row(case="b", bar=bar)]
        return lambda argv: bars.tell("it", "What.", lambda: rows, Path(argv[1]))

    file = tmp_path / "all.json"
    assert together([with_bar(2.0)], []) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert together([with_bar(2.0), with_bar(1.0)], ["--json", str(file)]) == 1
    assert capsys.readouterr().out.count("MISSED") == 1
    told = json.loads(file.read_text())
    assert [[row["is_met"] for row in one["rows"]] for one in told] == [[True, True], [True, False]]
    assert told[0]["rows"][0]["measured"] == {"median": 2.0, "low": 1.5, "high": 2.5}


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
        assert first.size == (32 if path.suffix else 224)


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


def test_a_stopwatch_counts_each_second_once_and_for_the_innermost_part(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow():
        now[0] += 1

    clock = Stopwatch(whole=["shut"])
    slow()
    with clock("outer"):
        slow()
        clock.timed("inner", slow)()
        with clock("shut"):
            clock.timed("inner", slow)()
            slow()
    for _ in clock.each("items", (slow() for _ in range(2))):
        slow()
    assert clock.seconds == {REST: 3, "outer": 1, "inner": 1, "shut": 2, "items": 2}


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_peer_counts_as_many_flops(family):
    student = build_student(StudentSpec(family=family), trials.image_data(1))
    assert peer.flops(student) == count(student.network, input_shape=(3, 32, 32))[0]


def test_peer_averages_weights_as_the_trainer_does():
    torch.manual_seed(0)
    network = build_student(trials.SMALL, trials.image_data(1)).network
    model = Model("any", network, None)
    ours, theirs = ModelEma(model, 0.3), peer.averaged(network, 0.3)
    for step in range(4):
        network(torch.randn(4, 3, 32, 32))
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        ours.update(torch.tensor(ours.share_at(step)))
        theirs.update_parameters(network)
    torch.testing.assert_close(theirs.module.state_dict(), ours.model.network.state_dict())


@pytest.mark.parametrize("prices_first", [True, False])
def test_peer_trains_what_is_over_the_budget_unless_it_prices_first(lesson, tmp_path, prices_first):
    clock = Stopwatch()
    on = peer.setting(lesson, batch_size=trials.BATCH, clock=clock, workers=0)
    recipe = TrainSpec(epochs=1, batch_size=trials.BATCH, warmup=0.0)
    candidate = Candidate(student=trials.SMALL, train=recipe)
    study = peer.create_study(tmp_path / "study.db", seed=0)
    peer.search(study, lambda _: candidate, on, n_trials=1, prices_first=prices_first)
    (trial,) = study.trials
    assert trial.state.name == ("PRUNED" if prices_first else "COMPLETE")
    assert ("backward" in clock.seconds) is not prices_first


def test_hypervolume_grows_with_what_is_above_chance_and_within_the_budget():
    told = whole_study.Told(
        points=[(1.0, 0.6, 10.0), (2.0, 0.9, 30.0), (3.0, 0.05, 1.0), (4.0, 0.7, 15.0)],
        seconds=5.0,
        parts={},
    )
    # Above 0.1 and up to 20 MFLOPs: 0.5 * 10, and from the fourth on 0.1 * 5 more.
    expected = [(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.5)]
    torch.testing.assert_close(torch.tensor(told.curve()), torch.tensor(expected))


def test_time_to_equal_is_that_to_the_lower_of_two_ends():
    high, low = [(1.0, 2.0), (3.0, 4.0), (5.0, 9.0)], [(10.0, 1.0), (20.0, 4.0), (30.0, 4.0)]
    assert whole_study.times_to_equal(high, low) == (3.0, 20.0)
    assert whole_study.times_to_equal(low, high) == (20.0, 3.0)


def test_made_study_shows_its_classes_and_shares_no_picture_between_splits(tmp_path):
    whole_study.prepare(tmp_path, whole_study.QUICK, None, None)
    data = datasets.load(str(tmp_path / "images"), cache_dir=tmp_path / "cache")
    assert [len(part) for part in (data.train, data.val, data.test)] == [128, 50, 50]
    parts = torch.cat([s.at(slice(None)).flatten(1) for s in (data.train, data.val, data.test)])
    assert len(parts.unique(dim=0)) == 228
    bright = data.train.at(slice(None)).float().unflatten(2, (4, 8)).mean((3, 4)).transpose(1, 2)
    assert torch.equal(bright.flatten(1).argmax(1), data.train.labels)


@pytest.mark.slow
def test_whole_study_compares_studies_of_processes_of_their_own(tmp_path):
    file = tmp_path / "study.json"
    whole_study.main(["--quick", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["bar"] for row in rows] == [whole_study.BAR, whole_study.STRONGER_BAR]
    for row in rows:
        assert row["measured"]["median"] > 0
        assert len(row["series"]) == 2
        for curve in row["series"].values():
            assert curve == sorted(curve)
            assert [volume for _, volume in curve] == sorted(volume for _, volume in curve)


def test_every_part_of_a_trial_is_found_in_a_profile(tmp_path):
    data = replace(trials.image_data(2), val=trials.image_set(20, seed=1))
    context = trials.context(data, trials.teacher(), tmp_path, budget=Budget(flops=1e9))
    found = trial_profile.profile(trials.SMALL, context, tmp_path, blocks=1, workers=0)
    assert all(ms > 0 for ms in found.ours_ms.values())
    assert [part for part, ms in found.peer_ms.items() if ms == 0] == ["latency"]
    assert found.peer_ms["teacher"] > 10 * found.ours_ms["teacher"]
    assert next(found.lines()).startswith("  4 steps: the peer ")


def test_what_was_timed_again_counts_when_it_lies_in_the_stated_interval():
    stated = Latency(ms=1.0, low_ms=0.9, high_ms=1.1, spread_ms=0.0, contention=1.0)
    rows = [
        latency_holds.Tried(student="a", stated=stated, again=(0.9, 1.1), plain=(0.89, 1.0)),
        latency_holds.Tried(student="b", stated=stated, again=(1.0, 1.2), plain=(1.11, 2.0)),
    ]
    assert latency_holds.share(rows, lambda row: row.again) == 0.75
    assert latency_holds.share(rows, lambda row: row.plain) == 0.25


def test_a_spread_that_holds_is_told_from_one_that_does_not():
    random = np.random.default_rng(0)
    results = random.normal(0.8, 0.02, (36, 4))
    held = refit_holds.rows(results, 400)
    assert [row.facts["of"] for row in held] == [12, 48, 144, 144]
    assert held[2].is_met
    assert held[3].facts["half_width_points"] > 1.3 * held[2].facts["half_width_points"]
    results[:, 3] += 0.2  # another seed that no interval foretells
    assert refit_holds.rows(results, 400)[0].measured.median == 0


def test_an_int8_file_is_held_against_fp32_image_by_image():
    resnet = ("resnet", {"width": 0.125, "depth": 3}, {"lr": 0.1})
    config = StudyConfig(data="digits", teacher_epochs=1)
    plain, trained = int8_training.measure(config, [resnet], epochs=1, images=100)
    assert (plain.case, trained.case) == ("resnet 0.125, as it is", "resnet 0.125, trained")
    for row in (plain, trained):
        facts = row.facts
        lost = facts["only_fp32_right"] - facts["right_unlike_fp32"]
        assert facts["of"] == 100
        assert row.measured.median == pytest.approx(lost)
        assert facts["fp32_val"] - facts["val"] == pytest.approx(lost)
        assert facts["as_its_fp32"] > 0.9
        assert facts["as_while_training"] > 0.9
    won = trained.facts["right_unlike_plain"] - trained.facts["only_plain_right"]
    assert trained.facts["val"] - plain.facts["val"] == pytest.approx(won)


def test_the_points_an_int8_file_lost_have_the_error_of_a_paired_difference():
    whole = np.array([True] * 8 + [False] * 8)
    ours = np.array([True] * 4 + [False] * 12)
    row = int8_training._row("a", whole, ours, {})
    # 4 of 16 lost: 25 points; sqrt(1/4 * 3/4) / sqrt(16) = 10.825 points.
    assert (row.measured.median, row.measured.high) == (25.0, 35.825)
    assert not row.is_met
