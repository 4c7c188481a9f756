"""A study whose trials are looked up instead of trained: accuracy and cost are formulas."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from kdsearch.engines import local
from kdsearch.engines.dispatch import OnTrial, TrialQueue, search
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal, TrialOutcome

SPACE = """
student:
  family:
    choice:
      resnet: {depth: {int: [1, 20]}}
      vit: {depth: {int: [1, 20]}}
method:
  name: kd
train:
  lr: {float: [0.01, 1.0], log: true}
"""
# Six candidates in all, so that equal ones are soon drawn.
SMALL_SPACE = "student: {family: {choice: {resnet: {depth: {int: [1, 3]}}, vit: {}, none: {}}}}"
MAX_DEPTH = 15
REQUEST = StudyConfig(space=SPACE, budget_mflops=float(MAX_DEPTH), seed=3)


def opened(path: Path, config: StudyConfig = REQUEST) -> AbstractContextManager[OpenStudy]:
    return open_study(path, config, versions={"kdsearch": "0"})


def look_up(proposal: Proposal) -> TrialOutcome:
    """Return one MFLOP a layer, accuracy that grows with it; a vit of one layer fails."""
    params = proposal.params
    family = params["student.family"]
    depth = int(params.get(f"student.{family}.depth", 2))
    cost = Cost(flops=depth * 1_000_000, params=depth * 1000, latency_ms=depth / 10)
    budget = Budget(flops=MAX_DEPTH * 1e6)
    violations = budget.violations(cost)
    if violations["flops"] > 0:
        return TrialOutcome(
            state="rejected", cost=cost, violations=violations, reason=budget.explain(cost)
        )
    if family == "vit" and depth == 1:
        return TrialOutcome(state="failed", reason="a vit of one layer")
    val = 0.5 + depth / 40 + float(params.get("train.lr", 0.1)) / 10
    return TrialOutcome(
        state="complete", cost=cost, violations=violations, val=val, curve=(val / 2, val)
    )


def run_to(study: OpenStudy, n_trials: int) -> list[TrialRecord]:
    """Go on to `n_trials` trials of the search and return every record."""
    run_search(study, [look_up], n_trials=n_trials)
    return study.records()


def run_search(
    study: OpenStudy,
    evaluators: Sequence[local.Evaluate],
    *,
    n_trials: int,
    time_limit: float | None = None,
    on_trial: OnTrial | None = None,
    is_enough: Callable[[], bool] = lambda: False,
) -> None:
    until = math.inf if time_limit is None else time.perf_counter() + time_limit
    source = search(
        study, n_trials=n_trials, is_enough=lambda: time.perf_counter() >= until or is_enough()
    )
    local.run(TrialQueue(study, source, on_trial=on_trial), evaluators)


def run_asked(study: OpenStudy, proposal: Proposal, evaluate: local.Evaluate) -> TrialRecord:
    """Run one proposed trial and return its record."""
    local.run(TrialQueue(study, iter([proposal])), [evaluate])
    return study.records()[proposal.number]


def tell_next(study: OpenStudy) -> TrialRecord:
    proposal = study.ask()
    return study.tell(proposal, look_up(proposal))
