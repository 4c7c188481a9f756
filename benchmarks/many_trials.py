"""A study of very many trials, with a formula in place of training: where it bends.

Time of an ask and of what the driver does around it, memory, the store's size, opening it again and
writing the report, at 100, 1,000 and 10,000 trials; no bar, and none of it is paired. Every trial
leaves a curve of 16 epochs and keeps the budget in about half of the draws.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kdsearch.engines.dispatch import Proposals, search
from kdsearch.report.artifacts import write_derived
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import load_study, open_study
from kdsearch.study.study import OpenStudy, Proposal, TrialOutcome

EPOCHS = 16
REQUEST = StudyConfig(space=find_space("classification-small").text, budget_mflops=20.0)
TEACHER = {
    "name": "formula",
    "val": 0.95,
    "test": None,
    "flops": 10**9,
    "params": 10**7,
    "latency_ms": None,
}
MARKS = (100, 300, 1_000, 3_000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a study of so many trials asks. ask_ms, driver_ms: medians of the last 50."""

    trials: int
    ask_ms: float
    driver_ms: float
    peak_mb: float
    store_mb: float
    open_s: float
    report_s: float
    report_mb: float


def look_up(study: OpenStudy, proposal: Proposal) -> TrialOutcome:
    """Return a formula's outcome: accuracy grows with the cost and hangs on the candidate."""
    chance = random.Random(proposal.digest)
    family = proposal.params["student.family"]
    width = float(proposal.params.get(f"student.{family}.width", 0.5))
    depth = float(proposal.params.get(f"student.{family}.depth", 4))
    flops = int(6e6 * width**2 * depth * chance.uniform(0.8, 1.2))
    cost = Cost(flops=flops, params=flops // 50, latency_ms=flops / 1e6)
    violations = study.budget.violations(cost)
    if max(violations.values()) > 0:
        reason = study.budget.explain(cost)
        return TrialOutcome(state="rejected", cost=cost, violations=violations, reason=reason)
    val = 0.5 + 0.03 * math.log10(flops / 1e4) + 0.1 * chance.random()
    curve = tuple(val * (1 - 0.5**epoch) for epoch in range(2, EPOCHS + 1))
    return TrialOutcome(
        state="complete", cost=cost, violations=violations, val=val, curve=(*curve, val), seconds=1
    )


def marks(folder: Path, numbers: Sequence[int]) -> list[Mark]:
    """Run one study up to each of these numbers of trials, and look at it there."""
    path = folder / "many"
    return [_go_on(path, number) for number in numbers]


def _go_on(path: Path, number: int) -> Mark:
    asks: list[float] = []
    ends: list[float] = [time.perf_counter()]
    opened = time.perf_counter()
    with open_study(path, REQUEST, versions={}) as study:
        open_s = time.perf_counter() - opened
        study.update_facts(teacher=TEACHER, trials=number)
        source = search(study, n_trials=number)

        def look(_: TrialRecord) -> None:
            study.front()

        proposals = Proposals(study, source, on_trial=look)
        while True:
            started = time.perf_counter()
            proposal = proposals.next()
            if proposal is None:
                break
            asks.append(time.perf_counter() - started)
            proposals.end(proposal, look_up(study, proposal))
            ends.append(time.perf_counter())
    spans = [1e3 * (after - before) for before, after in zip(ends[-51:], ends[-50:], strict=False)]
    started = time.perf_counter()
    write_derived(load_study(path))
    return Mark(
        trials=number,
        ask_ms=round(1e3 * statistics.median(asks[-50:]), 1),
        driver_ms=round(statistics.median(spans) - 1e3 * statistics.median(asks[-50:]), 1),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        store_mb=round(sum(file.stat().st_size for file in path.glob("study.db*")) / 1e6, 1),
        open_s=round(open_s, 2),
        report_s=round(time.perf_counter() - started, 2),
        report_mb=round((path / "report.html").stat().st_size / 1e6, 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks many_trials", description=__doc__)
    parser.add_argument("--trials", type=int, default=MARKS[-1], help="up to this many")
    parser.add_argument("--json", type=Path, help="write there what is printed")
    given = parser.parse_args(argv)
    numbers = sorted({number for number in MARKS if number < given.trials} | {given.trials})
    with TemporaryDirectory() as folder:
        found = [asdict(mark) for mark in marks(Path(folder), numbers)]
    for mark in found:
        print("  ".join(f"{name} {value:g}" for name, value in mark.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
