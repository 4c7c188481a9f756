"""Samplers of the next trial; the default is multivariate TPE over the dimensions that co-occur.

The dimensions at the root of a space co-occur, and so do those that one option owns. A group is
sampled when its first dimension is suggested, so that groups which a trial does not have cost
nothing. Optuna's own `group=True` samples every group and derives the groups from all trials anew:
for `classification-small`, 17 groups, 20 ms at 100 trials and 76 ms at 1,000.

A sampler serves one trial, so that a resumed study samples as one that never stopped: all state of
a sampler is in the trials.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from kdsearch.hpo import pareto
from kdsearch.space import Choice, Constant, Float, Int, SearchSpace, Value

FLOOR = "accuracy"  # constraint of a trial whose accuracy is too low
FLOOR_SHARE = 0.25  # share of complete trials below the learnt floor
MIN_FOR_FLOOR = 4
FAILURE = "failure"  # constraint of a trial that failed
# TPE's time grows with the trials: classification-small takes 12 ms at 100, 45 ms at 2,000.
MAX_TRIALS = 1000
STARTUP = 10  # trials before TPE models them
# So many of them must be trained, however many were rejected. With 10, benchmarks/sampling_tables
# found .69 and .81 of `stages` in 25 and 50 trainings, with 4 .72 and .87; a fifth of it fits.
STARTUP_TRAINED = 4
POPULATION = 10  # of NSGA-II; of 10, 20 and 50 the best after 50 and 100 trainings


def make_sampler(
    name: str, space: SearchSpace, *, seed: int, has_running: bool, learns_floor: bool
) -> BaseSampler:
    """Return a sampler for one trial by its name; see `GroupedTPE` for the other arguments."""
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return _NSGAII(space, seed=seed)
    if name == "gp":
        return _GP(space, seed=seed)
    return GroupedTPE(space, seed=seed, has_running=has_running, learns_floor=learns_floor)


class _StudyView:
    """A study as TPE and GP read it: without controls, which have no parameters.

    A failed trial counts as infeasible; otherwise a recipe that fails at once would be sampled
    again and again. Of more than MAX_TRIALS trials the last ones and the front are read.
    learns_floor: a complete trial in the lower quartile of accuracy counts as infeasible, because
    with two objectives TPE imitates whole fronts, their cheap and useless ends included.
    """

    def __init__(self, study: optuna.Study, *, learns_floor: bool = False) -> None:
        self._study = study
        # An interrupted trial is left out: its parameters are sampled again.
        trials = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.params and (trial.state is not TrialState.FAIL or FAILURE in trial.constraints)
        ]
        ended = _last_and_front([t for t in trials if t.state.is_finished()])
        done = [trial for trial in ended if trial.values]
        trained = sum(bool(trial.values) for trial in trials)
        self.is_starting = trained < STARTUP_TRAINED or len(ended) < STARTUP
        floor = -math.inf
        if learns_floor and len(done) >= MIN_FOR_FLOOR:
            floor = float(np.quantile([trial.values[0] for trial in done], FLOOR_SHARE))
        self._trials = [
            *(_as_infeasible(trial, floor) for trial in ended),
            *(trial for trial in trials if not trial.state.is_finished()),
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        """Return the trials in these states; samplers call it on a study."""
        return [trial for trial in self._trials if states is None or trial.state in states]


def _last_and_front(ended: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the last MAX_TRIALS trials and the front of those before them, in their order."""
    before, last = ended[:-MAX_TRIALS], ended[-MAX_TRIALS:]
    done = [trial for trial in before if trial.values]
    front = sorted(pareto.front([(trial.values[0], trial.values[1]) for trial in done]))
    return [*(done[i] for i in front), *last]


def _as_infeasible(trial: FrozenTrial, floor: float) -> FrozenTrial:
    """Return a trial with a violated constraint where it failed or its accuracy is too low.

    A failed trial violates one already, but Optuna reads constraints of pruned trials only.
    """
    is_low = bool(trial.values) and trial.values[0] < floor
    if not is_low and trial.state is not TrialState.FAIL:
        return trial
    changed = copy.copy(trial)
    changed.system_attrs = dict(trial.system_attrs)
    if is_low:
        changed.set_constraint(FLOOR, floor - trial.values[0])
    else:
        changed.state = TrialState.PRUNED
    return changed


class GroupedTPE(BaseSampler):
    """Multivariate TPE on each group of dimensions that co-occur, for one trial.

    seed: decides the trial, given those before it. has_running: other trials are running, and this
    one keeps away from them (Optuna's constant liar). learns_floor: see _StudyView.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, has_running: bool, learns_floor: bool = True
    ) -> None:
        self._learns_floor = learns_floor
        self._view: _StudyView | None = None
        self._random = RandomSampler(seed=seed)
        self._tpe = TPESampler(
            multivariate=True, constant_liar=has_running, n_startup_trials=0, seed=seed
        )
        self._groups = [
            {n: distribution(dim) for n, dim in group.items() if not isinstance(dim, Constant)}
            for group in space.groups()
        ]
        self._sampled: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: the groups of a trial are known only once its choices are made."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, as there is no search space common to all trials."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value from the group's joint sample; the first trials are random."""
        if self._view is None:
            self._view = _StudyView(study, learns_floor=self._learns_floor)
        if self._view.is_starting:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        if param_name not in self._sampled:
            group = next(group for group in self._groups if param_name in group)
            searched = {name: dim for name, dim in group.items() if not dim.single()}
            view = cast("optuna.Study", self._view)
            self._sampled |= self._tpe.sample_relative(view, trial, searched)
        return self._sampled[param_name]


def _searched(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the dimensions that every trial has and that take more than one value."""
    found = {n: distribution(d) for n, d in space.dims.items() if not isinstance(d, Constant)}
    return {name: found[name] for name in sorted(found) if not found[name].single()}


class _NSGAII(NSGAIISampler):
    """NSGA-II over the dimensions of the space; a trial stores its generation."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__(seed=seed, population_size=POPULATION)
        self._dims = _searched(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the dimensions of the space; Optuna finds none, as controls have no parameters."""
        return self._dims

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Return the parents by number: Optuna changes their order once they are cached."""
        parents = super().get_parent_population(study, generation)
        return sorted(parents, key=lambda trial: trial.number)


class _GP(GPSampler):
    """A Gaussian process over the dimensions of the space, fitted for each trial."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        self._dims = _searched(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the dimensions of the space; Optuna finds none, as controls have no parameters."""
        return self._dims

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of the highest expected gain; nothing for the first trials."""
        view = cast("optuna.Study", _StudyView(study))
        params: dict[str, Any] = super().sample_relative(view, trial, search_space)
        return params


def suggest(trial: Trial, name: str, dim: Float | Int | Choice) -> Value:
    """Return the value of a dimension that the sampler of a trial picks."""
    if isinstance(dim, Float):
        return trial.suggest_float(name, dim.low, dim.high, log=dim.log, step=dim.step)
    if isinstance(dim, Int):
        return trial.suggest_int(name, dim.low, dim.high, log=dim.log, step=dim.step)
    value = trial.suggest_categorical(name, dim.options)
    assert value is not None
    return value


def distribution(dim: Float | Int | Choice) -> BaseDistribution:
    """Return the Optuna distribution that `suggest` samples a dimension from."""
    if isinstance(dim, Float):
        return FloatDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
    if isinstance(dim, Int):
        return IntDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
    return CategoricalDistribution(dim.options)
