"""What a trial costs beside its training: ask, build the student, record, in a study of 100.

An evaluator that builds the student and trains nothing; after each trial the front is asked for,
as `kdsearch run` does. Beside it Optuna alone, with the same sampler, space and kind of database,
as its own documentation sets it up. The two take turns trial by trial; wall time.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler

from benchmarks import bars, trials
from benchmarks.paired import quartiles
from kdsearch.deploy.pricing import build_student
from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue, search
from kdsearch.hpo.sampler import suggest
from kdsearch.spec import Candidate, Cost
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal, TrialOutcome

BAR = 30.0
REQUEST = StudyConfig(space=find_space("classification-small").text, budget_mflops=20.0)


def rows(n_trials: int = 100) -> bars.Rows:
    """Return the one row."""
    with (
        TemporaryDirectory() as folder,
        open_study(Path(folder) / "ours", REQUEST, versions={}) as study,
    ):
        built: list[float] = []
        steps = [ours(study, built), theirs(Path(folder))]
        ms = np.array([[_ms(step) for step in steps] for _ in range(n_trials)])
    own, peer = ms.T
    return [
        bars.Row(
            case=f"{n_trials} trials, SQLite",
            measured=quartiles(own),
            unit="ms",
            bar=BAR,
            facts={
                "of_it_building_ms": quartiles(np.array(built)).median,
                "last_tenth_ms": quartiles(own[-n_trials // 10 :]).median,
                "optuna_alone_ms": quartiles(peer).median,
                "over_optuna": str(quartiles(own / peer)),
            },
        )
    ]


def ours(study: OpenStudy, built: list[float]) -> Callable[[], object]:
    """Return the next trial of a study, from asking to the front; `built`: gets building's ms."""
    data = trials.image_data(1)
    chance = random.Random(0)

    def evaluate(proposal: Proposal) -> TrialOutcome:
        student = Candidate.from_params(proposal.params).student
        built.append(_ms(partial(build_student, student, data)))
        cost = Cost(flops=chance.randint(10**6, 2 * 10**7), params=10**5)
        violations = study.budget.violations(cost)
        return TrialOutcome(state="complete", cost=cost, violations=violations, val=chance.random())

    def step() -> None:
        local.run(TrialQueue(study, search(study, n_trials=len(study.records()) + 1)), [evaluate])
        study.front()

    return step


def theirs(folder: Path) -> Callable[[], object]:
    """Return the next trial of a study of Optuna's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = TPESampler(multivariate=True, group=True, constant_liar=True, seed=0)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'theirs.db'}",
        sampler=sampler,
        directions=["maximize", "minimize"],
    )
    space = REQUEST.search_space()
    chance = random.Random(0)

    def step() -> None:
        trial = study.ask()
        space.walk(partial(suggest, trial))
        study.tell(trial, [chance.random(), chance.randint(10**6, 2 * 10**7)])

    return step


def _ms(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a trial's overhead is above the bar."""
    given = bars.parser("scheduling", __doc__).parse_args(argv)
    return bars.tell("scheduling", __doc__, rows, given.json)
