"""A latency is expected from the trials of a study, and a width that it picks is corrected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdsearch.deploy.latency_model import Fit, LatencyModel
from kdsearch.space import Params
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.study.width import Price, Widths

SPACE = """
student:
  family:
    choice:
      resnet: {width: {float: [0.25, 2.0], log: true}, depth: {int: [3, 9]}}
      vit: {width: {float: [0.25, 2.0], log: true}, depth: {int: [3, 9]}}
train: {lr: {float: [0.01, 1.0], log: true}}
"""
FLAT = "student: {family: resnet, resnet: {width: {float: [0.25, 2.0]}, depth: {int: [3, 15]}}}"


def static(params: Params) -> Cost:
    family = params["student.family"]
    channels = int(32 * float(params[f"student.{family}.width"]) + 0.5)
    weights = channels**2 * int(params[f"student.{family}.depth"])
    return Cost(flops=2_000.0 * weights, params=9.0 * weights)


def latency(params: Params) -> Cost:
    """Return a cost with 10 us a layer, .05 ms a MFLOP, and 2 % for its upper end."""
    cost, family = static(params), params["student.family"]
    slow = 3 if family == "vit" else 1
    layers = 0.01 * int(params[f"student.{family}.depth"])
    ms = slow * (layers + 0.05e-6 * (cost.flops or 0))
    return Cost(flops=cost.flops, params=cost.params, latency_ms=ms, latency_high_ms=1.02 * ms)


class Measured(LatencyModel):
    """The model, with latencies by formula; counts those that it measured."""

    def __init__(self) -> None:
        super().__init__(static, None, Budget(), None)
        self.count = 0

    def measured(self, params: Params) -> Cost:
        self.count += 1
        return latency(params)


def spent(study: OpenStudy, model: Measured, count: int) -> list[float]:
    """Run trials and return the shares of the budget that they took."""
    shares = []
    for _ in range(count):
        proposal = study.ask(None, model)
        cost = latency(proposal.params)
        violations = study.budget.violations(cost)
        is_over = violations["latency_ms"] > 0
        state = "rejected" if is_over else "complete"
        val = None if is_over else 0.5 + float(proposal.params["train.lr"]) / 10
        study.tell(proposal, TrialOutcome(state=state, cost=cost, violations=violations, val=val))
        shares.append(1 + violations["latency_ms"])
    return shares


def test_a_fit_recovers_a_law_of_its_form() -> None:
    """ms = .2 MFLOPs ^ .8, three times as much for a vit."""
    costs = [Cost(flops=f * 1e6, params=p * 1e6) for f in (0.5, 2, 8, 30) for p in (0.01, 0.1, 1)]
    law = {"resnet": 0.2, "vit": 0.6}
    seen = [(f, c, a * (float(c.flops or 0) / 1e6) ** 0.8) for f, a in law.items() for c in costs]
    fit = Fit(seen)
    assert fit("resnet", Cost(flops=16e6, params=3e5)) == pytest.approx(0.2 * 16**0.8, rel=0.02)
    assert fit("vit", Cost(flops=1e6, params=3e5)) == pytest.approx(0.6, rel=0.02)


def test_an_expected_latency_rises_with_the_network_before_any_trial() -> None:
    fit = Fit([])
    sizes = [fit("resnet", Cost(flops=f, params=f / 10)) for f in (1e4, 1e6, 1e8)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_a_trial_outside_the_search_changes_no_expectation() -> None:
    params = {"student.family": "resnet", "student.resnet.width": 1.0, "student.resnet.depth": 6}
    slow = Cost(flops=1e6, params=1e5, latency_ms=50.0)
    record = TrialRecord(number=0, state="complete", params=params, cost=slow)
    control = TrialRecord(number=1, state="complete", params=params, cost=slow, control_of=0)
    model = Measured()
    assert model.expected([control])(params) == model.expected([])(params)
    assert model.expected([record])(params) != model.expected([])(params)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_a_wrong_expectation_is_corrected_by_one_measurement(factor: float) -> None:
    """Latencies are in proportion to what was expected: the second width is exact."""
    widths = Widths(parse_space(FLAT), Budget(latency_ms=1.0), is_wide=False)
    share = {"student.family": "resnet", "student.resnet.share": 0.8, "student.resnet.depth": 6}

    def priced(times: float) -> Price:
        return lambda params: Cost(latency_ms=times * 0.1e-6 * float(static(params).flops or 0))

    solved, _ = widths.solve(share, priced(factor), priced(1.0))
    exact, _ = widths.solve(share, priced(1.0))
    assert solved == exact


def test_what_cannot_be_measured_keeps_the_expected_width() -> None:
    widths = Widths(parse_space(FLAT), Budget(latency_ms=1.0), is_wide=False)
    share = {"student.family": "resnet", "student.resnet.share": 0.8, "student.resnet.depth": 6}
    expected = Measured().expected([])
    assert widths.solve(share, expected, lambda _: None) == widths.solve(share, expected)


def test_a_latency_budget_is_used_and_kept(tmp_path: Path) -> None:
    """All but the tenth of free draws fit, but for a few whose second width was wrong as well."""
    config = StudyConfig(space=SPACE, budget_ms=0.6, seed=1, sampler="random")
    model = Measured()
    with open_study(tmp_path / "study", config, versions={}) as study:
        shares = spent(study, model, 40)
    assert sum(share <= 1 for share in shares) >= 32
    assert sum(0.35 < share <= 1 for share in shares) >= 28
    assert model.count <= 40  # once a draw: the trial itself measures the same student


def test_a_resumed_study_expects_the_same(tmp_path: Path) -> None:
    config = StudyConfig(space=SPACE, budget_ms=0.6, seed=1)

    def asked(path: Path, parts: Sequence[int]) -> list[TrialRecord]:
        for count in parts:
            with open_study(path, config, versions={}) as study:
                spent(study, Measured(), count)
        with open_study(path, config, versions={}) as study:
            return study.records()

    assert asked(tmp_path / "whole", [14]) == asked(tmp_path / "parts", [3, 1, 10])


def test_where_students_are_measured_elsewhere_nothing_is_measured_here() -> None:
    params = {"student.family": "resnet", "student.resnet.width": 1.0, "student.resnet.depth": 6}
    assert LatencyModel(static, None, Budget(), None).measured(params) is None
    assert math.isfinite(LatencyModel(static, None, Budget(), None).expected([])(params).latency_ms)
