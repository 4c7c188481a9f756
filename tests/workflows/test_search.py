"""`kdsearch.search`: tables in place of training, by the rules of a real study."""

from __future__ import annotations

import fcntl
import math
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

import kdsearch
from kdsearch.errors import SpaceError, SpecError, StudyError, TrialsFailedError
from kdsearch.space import Params
from kdsearch.spec import TrialRecord
from kdsearch.workflows.search import Report

SPACE = {
    "width": {"int": [1, 10]},
    "block": {"choice": {"plain": {"skip": {"int": [0, 3]}}, "wide": None}},
    "lr": {"float": [0.01, 1.0], "log": True},
}
EPOCHS = 8


def cost(params: Params) -> dict[str, float]:
    return {"flops": 1e6 * int(params["width"]) * (2 if params["block"] == "wide" else 1)}


def accuracy(params: Params) -> float:
    """Return .4 to .9: it grows with the cost and falls with the distance from lr .1."""
    return 0.5 + cost(params)["flops"] / 5e7 - 0.05 * abs(math.log10(float(params["lr"])) + 1)


def look_up(params: Params, report: Report) -> float:
    return accuracy(params)


def test_the_front_holds_what_no_other_trial_beats_within_the_budget() -> None:
    seen: list[Params] = []

    def evaluate(params: Params, report: Report) -> float:
        seen.append(params)
        return accuracy(params)

    study = kdsearch.search(
        space=SPACE, evaluate=evaluate, cost=cost, budget={"flops": 9e6}, n_trials=30, seed=1
    )
    records = study.trials
    assert sum(not record.rejected_early for record in records) == 30
    assert any(record.rejected_early for record in records)
    assert all(cost(params)["flops"] <= 9e6 for params in seen)
    points = {(accuracy(p), cost(p)["flops"]) for p in seen}
    wanted = [p for p in points if not any(o[0] >= p[0] and o[1] <= p[1] for o in points - {p})]
    front = [(record.val, record.cost.flops) for record in study.front if record.cost]
    assert front == sorted(wanted, key=lambda point: point[1])


def test_the_same_seed_gives_the_same_trials_and_another_one_others(fast_path: Path) -> None:
    def params(seed: int, path: Path | None = None) -> list[Params]:
        study = kdsearch.search(
            space=SPACE, evaluate=look_up, cost=cost, n_trials=12, seed=seed, path=path
        )
        return [record.params for record in study.trials]

    assert params(3) == params(3, fast_path / "kept") != params(4)


def test_a_study_at_a_path_resumes_and_no_other_takes_it_over(fast_path: Path) -> None:
    path = fast_path / "goes on"
    whole = kdsearch.search(space=SPACE, evaluate=look_up, cost=cost, n_trials=9)
    kdsearch.search(space=SPACE, evaluate=look_up, cost=cost, n_trials=4, path=path)
    again = kdsearch.search(space=SPACE, evaluate=look_up, cost=cost, n_trials=9, path=path)
    assert [r.params for r in again.trials] == [r.params for r in whole.trials]
    with pytest.raises(StudyError, match="seed: 0 -> 5") as caught:
        kdsearch.search(
            space=SPACE,
            evaluate=look_up,
            cost=cost,
            budget={"flops": 5e6},
            n_trials=9,
            path=path,
            seed=5,
        )
    assert str(caught.value).splitlines()[1:] == [
        "  budget['flops']: None -> 5000000.0",
        "  seed: 0 -> 5",
        "Give the same arguments to resume it, or another path.",
    ]
    with (path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match=r"wait for it, end it, or give another path$"):
            kdsearch.search(space=SPACE, evaluate=look_up, cost=cost, n_trials=9, path=path)


def curve(params: Params, epoch: int) -> float:
    return accuracy(params) * (0.5 + 0.5 * epoch / EPOCHS)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_report_answers_whether_to_go_on(workers: int) -> None:
    """A pruned trial stops where its curve ends; the others end by themselves."""
    ended: dict[str, int] = {}
    lock = threading.Lock()

    def evaluate(params: Params, report: Report) -> float:
        for epoch in range(1, EPOCHS + 1):
            if not report(epoch, curve(params, epoch)):
                break
        with lock:
            ended[repr(params)] = epoch
        return curve(params, epoch)

    study = kdsearch.search(
        space=SPACE,
        evaluate=evaluate,
        cost=cost,
        n_trials=60,
        epochs=EPOCHS,
        stopping="safe",
        workers=workers,
    )
    own = [record for record in study.trials if record.reused_from is None]
    states = Counter(record.state for record in own)
    assert states.keys() == {"complete", "pruned"}
    assert min(states.values()) > 5
    for record in own:
        last = ended[repr(record.params)]
        assert record.curve == tuple(curve(record.params, n) for n in range(1, last + 1))
        assert record.epochs == EPOCHS
        assert (last < EPOCHS) is (record.state == "pruned") is (record.val is None)
        if record.state == "pruned":
            assert record.reason.startswith(f"epoch {last} of {EPOCHS}")


def test_without_a_stopping_rule_a_report_never_stops() -> None:
    answers = set()

    def evaluate(params: Params, report: Report) -> float:
        answers.update(report(epoch, curve(params, epoch)) for epoch in (1, 2, 3))
        return accuracy(params)

    study = kdsearch.search(space=SPACE, evaluate=evaluate, cost=cost, n_trials=20, epochs=EPOCHS)
    assert answers == {True}
    assert {len(record.curve) for record in study.trials} == {3}


def test_what_evaluate_raises_fails_its_trial_and_the_third_alike_the_search() -> None:
    def evaluate(params: Params, report: Report) -> float:
        if params["block"] == "wide":
            raise ArithmeticError(f"no {params['lr']}")
        return accuracy(params)

    wide = {**SPACE, "block": "wide"}
    with pytest.raises(TrialsFailedError, match="ArithmeticError: no"):
        kdsearch.search(space=wide, evaluate=evaluate, cost=cost, n_trials=5)
    study = kdsearch.search(space=SPACE, evaluate=evaluate, cost=cost, n_trials=4, seed=5)
    ended = {(str(r.params["block"]), r.state) for r in study.trials}
    assert ended == {("wide", "failed"), ("plain", "complete")}


@pytest.mark.parametrize("limit", [None, {"flops": 9e6}])
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, ZeroDivisionError("no")])
def test_a_cost_that_is_none_fails_its_trial_alone_and_is_computed_once(
    limit: dict[str, float] | None, wrong: float | Exception
) -> None:
    calls: Counter[str] = Counter()

    def broken(params: Params) -> dict[str, float]:
        calls[repr(params)] += 1
        if params["block"] == "wide":
            if isinstance(wrong, Exception):
                raise wrong
            return {"flops": wrong}
        return cost(params)

    study = kdsearch.search(
        space=SPACE, evaluate=look_up, cost=broken, budget=limit, n_trials=4, seed=5
    )
    states = {(str(r.params["block"]), r.state) for r in study.trials}
    assert states == {("wide", "failed"), ("plain", "complete")}
    assert set(calls.values()) == {1}
    reasons = {r.reason for r in study.trials if r.state == "failed"}
    assert all("flops" in reason or "ZeroDivisionError" in reason for reason in reasons)


def test_a_cost_keeps_its_fractions() -> None:
    study = kdsearch.search(
        space={"width": {"float": [0.1, 0.9]}},
        evaluate=lambda params, report: float(params["width"]),
        cost=lambda params: {"flops": float(params["width"])},
        budget={"flops": 0.5},
        n_trials=8,
    )
    front = [(record.val, record.cost.flops) for record in study.front if record.cost]
    assert all(accuracy == cost <= 0.5 for accuracy, cost in front)
    assert len(front) == sum(not record.rejected_early for record in study.trials) == 8


def test_a_metric_may_be_negative() -> None:
    study = kdsearch.search(
        space=SPACE, evaluate=lambda params, report: accuracy(params) - 9, cost=cost, n_trials=8
    )
    assert max(r.val for r in study.trials if r.val is not None) == study.front[-1].val < 0


@pytest.mark.parametrize("where", ["evaluate", "on_trial"])
@pytest.mark.parametrize("workers", [1, 2])
def test_who_stops_the_study_gets_what_there_is(where: str, workers: int) -> None:
    calls = []

    def stop(at: str) -> None:
        calls.append(at)
        if calls.count(where) == 3:
            raise kdsearch.StopStudy("enough")

    def evaluate(params: Params, report: Report) -> float:
        stop("evaluate")
        return accuracy(params)

    study = kdsearch.search(
        space=SPACE,
        evaluate=evaluate,
        cost=cost,
        n_trials=50,
        workers=workers,
        on_trial=lambda record: stop("on_trial"),
    )
    states = Counter(record.state for record in study.trials)
    assert states.keys() <= {"complete", "interrupted"}
    assert 1 <= states["complete"] <= 5
    assert study.front


@pytest.mark.parametrize("returned", [None, "0.5", True, float("nan")])
def test_what_is_no_number_is_no_result(returned: float) -> None:
    study = kdsearch.search(
        space=SPACE, evaluate=lambda params, report: returned, cost=cost, n_trials=2
    )
    assert [record.state for record in study.trials] == ["failed", "failed"]
    with pytest.raises(TrialsFailedError, match="stopped: 3 trials in a row") as caught:
        kdsearch.search(
            space=SPACE, evaluate=lambda params, report: returned, cost=cost, n_trials=3
        )
    assert "the same call resumes the study, where it has a path" in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("epochs", [(2,), (1, 1), (0,), (1, 2, 3)])
def test_epochs_are_reported_in_their_order(epochs: tuple[int, ...]) -> None:
    def evaluate(params: Params, report: Report) -> float:
        for epoch in epochs:
            report(epoch, 0.5)
        return 0.5

    study = kdsearch.search(space=SPACE, evaluate=evaluate, cost=cost, n_trials=1, epochs=2)
    done = len(epochs) - 1
    wanted = f"report({epochs[-1]}, ...) after epoch {done} of 2: expected the next"
    assert wanted in study.trials[0].reason


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": {"flop": 1e6}}, SpecError, "did you mean 'flops'"),
        ({"budget": {"flops": "x"}}, SpecError, "expected a number"),
        ({"budget": {"flops": -1.0}}, SpecError, r"^budget\['flops'\]=-1: .* above 0"),
        ({"cost": lambda params: {"params": 3.0}}, SpecError, "lacks 'flops'"),
        ({"cost": lambda params: {"watts": 3.0}}, SpecError, "unknown 'watts'"),
        ({"stopping": "safe"}, SpecError, "say epochs=N"),
        ({"stopping": "often", "epochs": 3}, SpecError, "'often'"),
        ({"n_trials": 0}, SpecError, "n_trials=0"),
        ({"images": 0}, SpecError, "images=0"),
        ({"time_limit": -1.0}, SpecError, "time_limit=-1.0"),
        ({"time_limit": "1s"}, SpecError, "time_limit: '1s'"),
        ({"space": "missing.yaml"}, SpaceError, "missing.yaml"),
        ({"sampler": "gp", "budget": {"flops": 1e6}}, SpecError, r"over budget\['flops'\]"),
        ({"sampler": "gp"}, SpecError, "sampler gp does not fit .* in which no option owns"),
        ({"sampler": "best"}, SpecError, "sampler 'best'"),
        ({"seed": -1}, SpecError, "seed -1"),
        ({"space": {"width": {"int": [1]}}}, SpaceError, "width"),
        ({"space": {"width": {"int": math}}}, SpaceError, "plain"),
        ({"space": Path("missing.yaml")}, SpaceError, "missing.yaml"),
    ],
)
def test_what_cannot_be_searched_raises_before_anything_is_evaluated(
    given: dict[str, object], error: type[Exception], message: str
) -> None:
    call: dict[str, object] = {
        "space": SPACE,
        "evaluate": lambda params, report: pytest.fail("evaluated"),
        "cost": cost,
        "n_trials": 3,
    }
    with pytest.raises(error, match=message) as caught:
        kdsearch.search(**(call | given))  # type: ignore[arg-type]
    assert "--" not in str(caught.value)  # it is called, and has no flags


@pytest.mark.parametrize("limit", [7.1, 1e6 / 3, 123456.7, 0.3])
def test_a_cost_at_the_limit_is_within_it(limit: float) -> None:
    """A limit in millions, multiplied again, may fall below itself."""
    study = kdsearch.search(
        space={"width": {"int": [1, 2]}},
        evaluate=lambda params, report: 0.5,
        cost=lambda params: {"latency_ms": limit},
        budget={"latency_ms": limit, "flops": limit},
        n_trials=1,
    )
    assert study.trials[0].state == "complete"
    assert study.budget.flops is not None
    assert limit <= study.budget.flops <= limit * (1 + 1e-12)


SCRIPT = """
import sys, kdsearch
study = kdsearch.search(space={"w": {"int": [1, 9]}}, evaluate=lambda p, report: p["w"] / 10,
                        cost=lambda p: {"flops": p["w"]}, budget={"flops": 5}, n_trials=4)
print(study.front[-1].val <= .5, sorted({"torch", "ray", "plotly"} & set(sys.modules)))
"""


def test_it_needs_no_torch() -> None:
    line = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(line, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True []"
    assert found.stderr == ""


def test_a_study_without_a_path_is_gone_with_its_object() -> None:
    study = kdsearch.search(space=SPACE, evaluate=look_up, cost=cost, n_trials=1)
    folder = study.path
    assert (folder / "study.db").is_file()
    del study
    assert not folder.parent.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrialsFailedError])
def test_a_search_without_a_path_that_fails_leaves_no_folder(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def evaluate(params: Params, report: Report) -> float:
        raise ArithmeticError

    def on_trial(record: TrialRecord) -> None:
        if error is KeyboardInterrupt:
            raise KeyboardInterrupt

    with pytest.raises(error):
        kdsearch.search(space=SPACE, evaluate=evaluate, cost=cost, n_trials=3, on_trial=on_trial)
    assert list(tmp_path.iterdir()) == []
