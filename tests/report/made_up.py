"""Made-up studies: accuracy grows with the logarithm of the cost, as it does in real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from kdsearch.hpo.pareto import front
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.ranking import COST, METRIC, Importance, Ranking
from kdsearch.study.summary import (
    Baseline,
    Counts,
    Entry,
    Images,
    Seconds,
    Summary,
    TargetInfo,
    TeacherEntry,
)

Study: TypeAlias = tuple[Summary, list[TrialRecord]]
LIMIT_MS = 2.0
BASELINES = (
    Baseline(
        name="timm:small", flops=2_000_000, params=600_000, latency_ms=0.3, latency_spread_ms=0.01
    ),
    Baseline(
        name="timm:large",
        flops=90_000_000,
        params=11_000_000,
        latency_ms=None,
        latency_spread_ms=None,
    ),
)


def surrounded(study: Study) -> Study:
    """Return the study with baselines, image counts and a stopping rule, as a finished one has."""
    summary, records = study
    return replace(
        summary,
        baselines=BASELINES,
        images=Images(val=2_000, test=1_000),
        stopping="safe",
        seconds=replace(summary.seconds, finish=12.5),
    ), records


def make_study(
    complete: int = 20,
    rejected: int = 6,
    pruned: int = 0,
    failed: int = 2,
    controls: int = 2,
    epochs: int = 16,
    name: str = "phones",
    family: str = "",
) -> Study:
    """Return a study whose first trials completed, the rest in the order of the arguments."""
    rng = random.Random(7)
    states = ["complete"] * complete + ["rejected"] * rejected
    states += ["pruned"] * pruned + ["failed"] * failed
    records = [
        _record(rng, number, state, epochs, family or rng.choice(("resnet", "mobilenetv2", "vit")))
        for number, state in enumerate(states)
    ]
    done = [record for record in records if record.state == "complete"]
    chosen = [done[i] for i in front([(r.val or 0.0, _latency(r)) for r in done])]
    best = chosen[-1] if chosen else None
    added = [] if best is None else [_control(best, len(records) + i) for i in range(controls)]
    summary = Summary(
        study=name,
        budget=Budget(latency_ms=LIMIT_MS),
        target=TargetInfo(),
        teacher=TeacherEntry(
            name="resnet34",
            val=0.978,
            test=0.971,
            flops=1_160_000_000,
            params=21_300_000,
            latency_ms=14.2,
        ),
        counts=Counts(
            complete=complete + len(added), pruned=pruned, rejected=rejected, failed=failed
        ),
        front=tuple(_entry(record) for record in chosen),
        controls=tuple(_entry(record) for record in added),
        best=None if best is None else best.number,
        shipped=None if best is None else _entry(best),
        seconds=Seconds(teacher=42.0, search=1210.0, refit=305.5),
    )
    return summary, records + added


def _record(rng: random.Random, number: int, state: str, epochs: int, family: str) -> TrialRecord:
    latency = rng.uniform(2.1, 6.0) if state == "rejected" else math.exp(rng.uniform(-2.3, 0.66))
    final = min(0.97, 0.9 + 0.02 * math.log(latency / 0.1) + rng.gauss(0, 0.008))
    trained = {"complete": epochs, "pruned": max(1, epochs // 4)}.get(state, 0)
    curve = tuple(final * (1 - 0.6 * math.exp(-4 * (i + 1) / epochs)) for i in range(trained))
    params = {
        "student.family": family,
        f"student.{family}.width": round(rng.uniform(0.25, 2), 3),
        f"student.{family}.depth": rng.randint(1, 4),
        "student.resolution": rng.choice((16, 24, 32)),
        "method.name": rng.choice(("kd", "dkd", "attention_transfer")),
        "method.alpha": round(rng.uniform(0.1, 1), 3),
        "method.temperature": round(rng.uniform(1, 8), 2),
        "train.lr": round(10 ** rng.uniform(-3, -0.5), 5),
        "train.weight_decay": 0.0005,
    }
    cost = Cost(
        flops=int(latency * 9e6),
        params=int(latency * 400_000),
        latency_ms=latency,
        latency_spread_ms=latency * 0.04,
        latency_low_ms=latency * 0.97,
        latency_high_ms=latency * 1.03,
    )
    return TrialRecord(
        number=number,
        state=state,
        params=params,
        cost=None if state == "failed" else cost,
        val=final if state == "complete" else None,
        curve=curve,
        seconds=3.5 * trained,
        reason={"failed": "loss became NaN at epoch 3", "pruned": "cannot reach the front"}.get(
            state, ""
        ),
        violations={"latency_ms": latency * 1.03 / LIMIT_MS - 1} if state == "rejected" else {},
    )


def _control(best: TrialRecord, number: int) -> TrialRecord:
    loss = 0.011 * (1 + number % 2)
    return TrialRecord(
        number=number,
        state="complete",
        params={**best.params, "method.name": ("none", "kd")[number % 2]},
        cost=best.cost,
        val=(best.val or 0.0) - loss,
        curve=tuple(value - loss for value in best.curve),
        seconds=best.seconds,
        control_of=best.number,
    )


def _entry(record: TrialRecord) -> Entry:
    assert record.cost is not None
    assert record.val is not None
    return Entry(
        trial=record.number,
        val=record.val,
        test=record.val - 0.006,
        flops=record.cost.flops,
        params=record.cost.params,
        latency_ms=record.cost.latency_ms,
        latency_spread_ms=record.cost.latency_spread_ms,
        latency_low_ms=record.cost.latency_low_ms,
        latency_high_ms=record.cost.latency_high_ms,
        config=record.params,
    )


def _latency(record: TrialRecord) -> float:
    assert record.cost is not None
    assert record.cost.latency_ms is not None
    return record.cost.latency_ms


def rankings(records: Sequence[TrialRecord]) -> tuple[Ranking, ...]:
    """Return made-up rankings of the parameters of the first record."""
    names = records[0].params if records else ()
    return ranked(**{name: 0.5 / (i + 1) for i, name in enumerate(names)})


def ranked(**shares: float) -> tuple[Ranking, ...]:
    """Return a ranking of the metric by these shares, and one of the cost; none for no shares."""
    values = tuple(
        Importance(name=name, share=share, low=share / 2, high=share)
        for name, share in shares.items()
    )
    return tuple(Ranking(of=of, trials=40, values=values) for of in (METRIC, COST) if values)
