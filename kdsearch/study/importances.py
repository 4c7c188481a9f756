"""The importance of each parameter of a study, for its metric and for its cost. No torch."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.study.ranking import COST, METRIC, Importance, Ranking
from kdsearch.study.store import experimental_is_fine
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import FEWEST_TRIALS
from kdsearch.study.width import is_share

RESAMPLES = 20
_DIRECTIONS = {METRIC: StudyDirection.MAXIMIZE, COST: StudyDirection.MINIMIZE}
_OPTIONS = ("student.family", "method.name")  # choices whose options own parameters


def rankings(study: OpenStudy) -> tuple[Ranking, ...]:
    """Return the rankings of a study (PED-ANOVA); empty below FEWEST_TRIALS complete trials.

    Watanabe et al., IJCAI 2023, arXiv:2304.10255; for parameters that not all trials have:
    arXiv:2601.20800. The ranking of all parameters for the metric is that of optuna-dashboard; for
    the cost, that one also ranks parameters of method and training, which have no cost. The
    parameters of a family or a method are ranked among themselves too, over its own trials.
    """
    trials = study.store.trials()
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.params]
    found = (
        _ranking(place, of, option, group)
        for place, of in enumerate(_DIRECTIONS)
        for option, group in _groups(done)
    )
    return tuple(ranking for ranking in found if ranking is not None)


def _groups(trials: Sequence[FrozenTrial]) -> Iterator[tuple[str, Sequence[FrozenTrial]]]:
    """Yield all trials, and those of each family and method."""
    yield "", trials
    for choice in _OPTIONS:
        for option in sorted({str(t.params[choice]) for t in trials if choice in t.params}):
            yield option, [t for t in trials if str(t.params.get(choice)) == option]


def _ranking(place: int, of: str, option: str, trials: Sequence[FrozenTrial]) -> Ranking | None:
    """Return a ranking, None of too few trials, of equal ones, or of fewer than two parameters."""
    if len(trials) < FEWEST_TRIALS or len({trial.values[place] for trial in trials}) < 2:
        return None
    names = sorted({name for trial in trials for name in trial.params})
    if option:
        names = [name for name in names if f".{option}." in name and not is_share(name)]
        names = [name for name in names if all(name in trial.params for trial in trials)]
    if of == COST:  # of the student alone
        names = [name for name in names if name.startswith("student.")]
    if len(names) < 2:
        return None
    whole = _evaluated(place, of, trials, names)
    rng = random.Random(0)
    resampled = [
        _evaluated(place, of, rng.choices(trials, k=len(trials)), names)
        for _ in range(RESAMPLES if whole else 0)
    ]
    values = tuple(
        Importance(name=name, share=share, low=ends[1], high=ends[-2])
        for name, share in sorted(whole.items(), key=lambda item: (-item[1], item[0]))
        if (ends := sorted(found.get(name, 0.0) for found in resampled))
    )
    return Ranking(of=of, option=option, trials=len(trials), values=values) if values else None


def _evaluated(
    place: int, of: str, trials: Sequence[FrozenTrial], names: Sequence[str]
) -> dict[str, float]:
    """Return the shares of the parameters; empty where none explains anything."""
    plain = optuna.create_study(direction=_DIRECTIONS[of])
    plain.add_trials(
        optuna.trial.create_trial(
            params={name: trial.params[name] for name in names if name in trial.params},
            distributions={n: trial.distributions[n] for n in names if n in trial.distributions},
            value=trial.values[place],
        )
        for trial in trials
    )
    with experimental_is_fine():
        # that one trial alone has a parameter; the whiskers show how sure its share is
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = evaluator.evaluate(plain)
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}
