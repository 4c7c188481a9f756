"""What a study finds by its trainings: hypervolume inside the budget, against random and Optuna.

Two tables are made here. `stages` is one architecture of four stages, each with three widths and
three depths: 6,561 students. `families` has three families with dimensions of their own, and
methods with theirs. FLOPs are closed forms; accuracy has diminishing returns in each part, falls
where parts do not fit together, and carries the noise of one training. A fifth of what is drawn at
random keeps the budget.

A case is judged by the true values of the students that it trained: the hypervolume below the
budget and above the lower quartile of what fits, as a share of the whole table's. The sampler's
constants were chosen on `stages`. Means and standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice, pairwise, product, takewhile
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue, search
from kdsearch.hpo import pareto
from kdsearch.hpo.sampler import suggest
from kdsearch.space import Choice, Float, Int, Params, Pick, Value
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Cost
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
from kdsearch.study.trial_notes import Proposal, TrialOutcome

COUNTS = (25, 50, 100)
MORE = 4  # how many times as many trainings random may have
AT_RANDOM = (25, 50, 100, 200, 400)
KEEPS = 0.2  # the share of all students within the budget
NOISE = 0.003  # standard deviation of a training's accuracy
MANY = 50_000
MOST_TRIALS = 2000
Train: TypeAlias = Callable[["Table", int, int], "list[Student]"]
LookUp: TypeAlias = Callable[[Params], "Student"]
Told: TypeAlias = dict[str, dict[str, list[float]]]

STAGES = """
student:
  family: resnet
  resnet:
    width0: {int: [2, 4]}
    width1: {int: [2, 4]}
    width2: {int: [2, 4]}
    width3: {int: [2, 4]}
    depth0: {int: [1, 3]}
    depth1: {int: [1, 3]}
    depth2: {int: [1, 3]}
    depth3: {int: [1, 3]}
"""
FAMILIES = """
student:
  family:
    choice:
      resnet:
        width: {float: [0.25, 2.0], log: true}
        depth: {int: [3, 15]}
      mobilenet:
        width: {float: [0.25, 2.0], log: true}
        depth: {int: [5, 15]}
        expansion: {int: [1, 6]}
      vit:
        width: {float: [0.33, 1.5], log: true}
        depth: {int: [4, 12]}
  resolution: {choice: [24, 32]}
method:
  name:
    choice:
      kd:
        temperature: {float: [1.0, 16.0], log: true}
        alpha: {float: [0.1, 1.0]}
      fitnet:
        weight: {float: [1.0, 1000.0], log: true}
      none:
train:
  lr: {float: [0.01, 0.5], log: true}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """The true accuracy of a student, and its cost."""

    val: float
    flops: float


def of_stages(params: Params) -> Student:
    """Return a student of four stages whose images halve; widths are multiples of 8, doubled."""
    widths = [8 * 2**i * int(params[f"student.resnet.width{i}"]) for i in range(4)]
    depths = [int(params[f"student.resnet.depth{i}"]) for i in range(4)]
    sides = [32, 16, 8, 4]
    parts = zip(widths, depths, sides, strict=True)
    flops = 432 * widths[0] + sum(9 * w * w * d * side**2 for w, d, side in parts)
    lost = 0.0
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        share = (0.6, 1.0, 1.3, 0.8)[i]
        lost += share * (0.05 * (width / (16 * 2**i)) ** -1.3 + 0.04 * depth**-0.8)
    lost += sum(0.012 * math.log2(wider / (2 * w)) ** 2 for w, wider in pairwise(widths))
    lost += sum(0.006 * max(0, d - deeper) for d, deeper in pairwise(depths))
    return Student(val=0.97 - lost, flops=flops)


def of_families(params: Params) -> Student:
    """Return a student of one of three families, taught by one of three methods."""
    family = str(params["student.family"])
    width = float(params[f"student.{family}.width"])
    depth = float(params[f"student.{family}.depth"])
    side = float(params["student.resolution"]) / 32
    expansion = float(params.get("student.mobilenet.expansion", 3))
    per_layer = {"resnet": 5.2e6, "mobilenet": 0.5e6 * expansion, "vit": 3.0e6}[family]
    flops = 0.3e6 + per_layer * width**2 * depth * side**2
    most, loss, wide, deep = {
        "resnet": (0.94, 0.11, 0.75, 1.0),
        "mobilenet": (0.92, 0.07, 0.6, 0.7),
        "vit": (0.90, 0.12, 0.9, 0.8),
    }[family]
    lost = loss * (0.7 * width**-wide + 1.6 * (depth / 3) ** -deep) / side
    lost += 0.05 / expansion if family == "mobilenet" else 0.0
    lost += 0.015 * (math.log10(float(params["train.lr"])) + 1.0 - 0.5 * math.log10(width)) ** 2
    return Student(val=most - lost + _gained(params, family), flops=flops)


def _gained(params: Params, family: str) -> float:
    """Return what the method gains; features teach a vit little."""
    method = params["method.name"]
    if method == "kd":
        warmth = math.log2(float(params["method.kd.temperature"])) - 2
        return 0.03 - 0.006 * warmth**2 - 0.05 * (float(params["method.kd.alpha"]) - 0.8) ** 2
    if method == "fitnet":
        weight = math.log10(float(params["method.fitnet.weight"])) - 2
        return (0.0 if family == "vit" else 0.025) - 0.012 * weight**2
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A space and what its students are; the budget, and the hypervolume of all that keep it."""

    text: str
    look_up: LookUp
    mflops: float = math.inf
    floor: float = 0.0
    whole: float = 1.0

    def volume(self, found: Sequence[Student]) -> float:
        """Return the share of the table's hypervolume that these students cover."""
        points = [(s.val, s.flops) for s in found if self.is_within(s)]
        return pareto.hypervolume(points, (self.floor, 1e6 * self.mflops)) / self.whole

    def is_within(self, student: Student) -> bool:
        """Return whether a student keeps the budget."""
        return student.flops <= 1e6 * self.mflops

    def measured(self, params: Params, seed: int) -> float:
        """Return the accuracy that a training finds."""
        noise = Random(f"{seed} {sorted(params.items())}").gauss(0, NOISE)
        return self.look_up(params).val + noise


def table_of(text: str, look_up: LookUp, students: Sequence[Student]) -> Table:
    """Return a table whose budget a share of these students, which stand for all, keeps."""
    mflops = float(np.quantile([s.flops for s in students], KEEPS)) / 1e6
    table = Table(text=text, look_up=look_up, mflops=mflops)
    within = [student for student in students if table.is_within(student)]
    table = replace(table, floor=float(np.quantile([s.val for s in within], 0.25)))
    return replace(table, whole=table.volume(within))


def tables() -> dict[str, Table]:
    """Return both tables; of `families` very many students stand for all."""
    dims = [n for n, dim in parse_space(STAGES).all_dims() if isinstance(dim, Int)]
    bounds = [(2, 3, 4) if "width" in name else (1, 2, 3) for name in dims]
    every = [of_stages(dict(zip(dims, values, strict=True))) for values in product(*bounds)]
    chance, space = Random(0), parse_space(FAMILIES)
    many = [of_families(space.walk(at_random(chance))) for _ in range(MANY)]
    return {
        "stages": table_of(STAGES, of_stages, every),
        "families": table_of(FAMILIES, of_families, many),
    }


def at_random(chance: Random) -> Pick:
    """Return what picks each value at random, as the space spreads it."""

    def pick(_: str, dim: Float | Int | Choice) -> Value:
        if isinstance(dim, Choice):
            return chance.choice(dim.options)
        if isinstance(dim, Int):
            return chance.randint(dim.low, dim.high)
        if dim.log:
            return math.exp(chance.uniform(math.log(dim.low), math.log(dim.high)))
        return chance.uniform(dim.low, dim.high)

    return pick


def by_chance(table: Table, seed: int, n: int, *, is_priced: bool) -> list[Student]:
    """Return n students drawn at random; is_priced: none that breaks the budget."""
    space, pick = parse_space(table.text), at_random(Random(f"chance {seed}"))
    drawn = (table.look_up(space.walk(pick)) for _ in count())
    return list(islice((s for s in drawn if not is_priced or table.is_within(s)), n))


def by_optuna(table: Table, seed: int, n: int, *, is_priced: bool) -> list[Student]:
    """Return what Optuna's default sampler trains, told of the budget as a constraint.

    is_priced: what breaks the budget is pruned before it is trained.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = parse_space(table.text)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=TPESampler(seed=seed))
    trained: list[Student] = []
    while len(trained) < n:
        trial = study.ask()
        params = space.walk(partial(suggest, trial))
        student = table.look_up(params)
        trial.set_constraint("flops", student.flops / (1e6 * table.mflops) - 1)
        if is_priced and not table.is_within(student):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        trained.append(student)
        study.tell(trial, [table.measured(params, seed), student.flops])
    return trained


def by_us(table: Table, seed: int, n: int) -> list[Student]:
    """Return what a study of kdsearch trains: it asks, runs and tells as `kdsearch run` does.

    It explores the front, as all of the front is judged.
    """
    trained: list[Student] = []

    def cost_of(params: Params) -> Cost:
        return Cost(flops=round(table.look_up(params).flops), params=1)

    def evaluate(proposal: Proposal) -> TrialOutcome:
        cost = cost_of(proposal.params)
        violations = study.budget.violations(cost)
        if violations["flops"] > 0:
            return TrialOutcome(state="rejected", cost=cost, violations=violations)
        trained.append(table.look_up(proposal.params))
        val = table.measured(proposal.params, seed)
        return TrialOutcome(state="complete", cost=cost, violations=violations, val=val)

    config = StudyConfig(space=table.text, budget_mflops=table.mflops, seed=seed, explore="front")
    with (
        TemporaryDirectory() as folder,
        open_study(Path(folder) / "table", config, versions={}) as study,
    ):
        source = search(study, n_trials=MOST_TRIALS, price=cost_of)
        local.run(TrialQueue(study, takewhile(lambda _: len(trained) < n, source)), [evaluate])
    return trained


CASES: Mapping[str, tuple[Train, Sequence[int]]] = {
    "random": (partial(by_chance, is_priced=False), AT_RANDOM),
    "random, priced first": (partial(by_chance, is_priced=True), AT_RANDOM),
    "optuna": (partial(by_optuna, is_priced=False), COUNTS),
    "optuna, priced first": (partial(by_optuna, is_priced=True), COUNTS),
    "kdsearch": (by_us, COUNTS),
}


def measure(table: Table, seeds: int, *, cases: Sequence[str] = tuple(CASES)) -> Told:
    """Return mean and standard deviation by case and number of trainings."""
    told: Told = {}
    for case in cases:
        train, counts = CASES[case]
        runs = [train(table, seed, max(counts)) for seed in range(seeds)]
        shares = np.array([[table.volume(run[:n]) for n in counts] for run in runs])
        told[case] = {
            str(n): [round(float(of.mean()), 4), round(float(of.std()), 4)]
            for n, of in zip(counts, shares.T, strict=True)
        }
        shown = (f"{n}: {mean:.3f} +- {std:.3f}" for n, (mean, std) in told[case].items())
        print(f"  {case:22}", *shown, sep="  ", flush=True)
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when kdsearch finds less than random does by four times the trainings."""
    parser = argparse.ArgumentParser(prog="benchmarks sampling_tables", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write there what is printed")
    given = parser.parse_args(argv)
    told, is_met = {}, True
    for name, table in tables().items():
        print(f"{name}: budget {table.mflops:.1f} MFLOPs")
        told[name] = found = measure(table, given.seeds)
        for n in COUNTS:
            ours, random = found["kdsearch"][str(n)][0], found["random"][str(MORE * n)][0]
            is_met &= ours >= random
            verdict = "met" if ours >= random else "MISSED"
            print(f"  {n} trainings against {MORE * n} at random: {ours} >= {random} {verdict}")
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if is_met else 1
