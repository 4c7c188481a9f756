"""The importance of each parameter of a study for its metric. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdsearch.study.store import experimental_is_fine
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import FEWEST_TRIALS
from kdsearch.study.width import is_share


def importances(study: OpenStudy) -> dict[str, float]:
    """Return each parameter's share of the importance for the metric (PED-ANOVA); may be empty.

    Watanabe et al., IJCAI 2023, arXiv:2304.10255; needs a few complete trials that differ.
    """
    trials = study.store.trials()
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.params]
    if len(done) < FEWEST_TRIALS or len({trial.values[0] for trial in done}) < 2:
        return {}
    plain = optuna.create_study(direction="maximize")
    for trial in done:
        plain.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=trial.values[0]
            )
        )
    found = _ped_anova(plain, done)
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}


def _ped_anova(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the importances of the parameters that every trial has."""
    names = sorted({n for trial in trials for n in trial.params if not is_share(n)})
    shared = [n for n in names if all(n in trial.params for trial in trials)]
    if not shared:
        return {}
    with experimental_is_fine():
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = evaluator.evaluate(study, params=shared)
    return found
