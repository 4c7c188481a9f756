"""What draws the next trial: by default multivariate TPE over the dimensions that come together.

Dimensions at the root of a space come together, and so do those that one option owns. A group is
drawn when the first of it is asked for, so what the trial does not have costs nothing; Optuna's own
`group=True` draws every group, and finds the groups anew from all trials: for
`classification-small`, 17 groups, 20 ms at 100 trials and 76 ms at 1,000.

A sampler draws one trial and is thrown away, so that a resumed study draws as one that never
stopped: what a sampler remembers must stand in the trials.
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

FLOOR = "accuracy"  # the constraint of a trial whose accuracy is too low
FLOOR_SHARE = 0.25  # of the accuracies lie below the floor that is learnt
MIN_FOR_FLOOR = 4
FAILURE = "failure"  # the constraint of a trial that failed
# TPE's time grows with what it sees: of classification-small 12 ms at 100 trials, 45 at 2,000.
MOST_SEEN = 1000
POPULATION = 10  # of NSGA-II; of 10, 20 and 50 it found most in 50 and 100 trainings


def make_sampler(
    name: str, space: SearchSpace, *, seed: int, is_beside: bool, learns_floor: bool
) -> BaseSampler:
    """Return the sampler of one trial, by its name; see `GroupedTPE` on the other arguments."""
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return _NSGAII(space, seed=seed)
    if name == "gp":
        return _GP(space, seed=seed)
    return GroupedTPE(space, seed=seed, is_beside=is_beside, learns_floor=learns_floor)


class _Seen:
    """A study as TPE and GP are to see it: without controls, which have no parameters.

    A trial that failed counts as infeasible, or what fails at once would be drawn again and again.
    Of very many trials the last ones are seen, and the front. learns_floor: a complete trial in the
    lower quartile of accuracy counts as infeasible. Of two objectives TPE takes whole fronts for
    good, their cheap and useless ends included.
    """

    def __init__(self, study: optuna.Study, *, learns_floor: bool = False) -> None:
        self._study = study
        # What an interrupted trial drew is drawn again, as if it had never been.
        trials = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.params and (trial.state is not TrialState.FAIL or FAILURE in trial.constraints)
        ]
        ended = _most_telling([t for t in trials if t.state.is_finished()])
        done = [trial for trial in ended if trial.values]
        floor = -math.inf
        if learns_floor and len(done) >= MIN_FOR_FLOOR:
            floor = float(np.quantile([trial.values[0] for trial in done], FLOOR_SHARE))
        self._trials = [
            *(_as_told(trial, floor) for trial in ended),
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
        """Return what samplers ask for."""
        return [trial for trial in self._trials if states is None or trial.state in states]


def _most_telling(ended: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the last trials, and of those before them the front, in their order."""
    before, last = ended[:-MOST_SEEN], ended[-MOST_SEEN:]
    done = [trial for trial in before if trial.values]
    front = sorted(pareto.front([(trial.values[0], trial.values[1]) for trial in done]))
    return [*(done[i] for i in front), *last]


def _as_told(trial: FrozenTrial, floor: float) -> FrozenTrial:
    """Return a trial as samplers know to read it: too low an accuracy breaks a constraint.

    A failure breaks one already; of Optuna's states only a pruned trial is then looked at.
    """
    is_low = bool(trial.values) and trial.values[0] < floor
    if not is_low and trial.state is not TrialState.FAIL:
        return trial
    told = copy.copy(trial)
    told.system_attrs = dict(trial.system_attrs)
    if is_low:
        told.set_constraint(FLOOR, floor - trial.values[0])
    else:
        told.state = TrialState.PRUNED
    return told


class GroupedTPE(BaseSampler):
    """Draws one trial.

    seed: decides the trial, given those before it. is_beside: others are running, so that this one
    keeps away from them (Optuna's constant liar). learns_floor: see _Seen.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, is_beside: bool, learns_floor: bool = True
    ) -> None:
        self._learns_floor = learns_floor
        self._seen: optuna.Study | None = None
        self._tpe = TPESampler(multivariate=True, constant_liar=is_beside, seed=seed)
        self._groups = [
            {n: _distribution(dim) for n, dim in group.items() if not isinstance(dim, Constant)}
            for group in space.groups()
        ]
        self._drawn: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return none: which groups the trial has is known only once its choices are made."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return none, as there is no search space for all."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value from the group's joint draw, or at random among the first trials."""
        if self._seen is None:
            self._seen = cast("optuna.Study", _Seen(study, learns_floor=self._learns_floor))
        if param_name not in self._drawn:
            group = next(group for group in self._groups if param_name in group)
            searched = {name: dim for name, dim in group.items() if not dim.single()}
            self._drawn |= self._tpe.sample_relative(self._seen, trial, searched)
        if param_name not in self._drawn:
            return self._tpe.sample_independent(self._seen, trial, param_name, param_distribution)
        return self._drawn[param_name]


def _searched(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the dimensions that every trial has, but for those of a single value."""
    found = {n: _distribution(d) for n, d in space.dims.items() if not isinstance(d, Constant)}
    return {name: found[name] for name in sorted(found) if not found[name].single()}


class _NSGAII(NSGAIISampler):
    """NSGA-II over the dimensions of the space. The generation of a trial stands in the trial."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__(seed=seed, population_size=POPULATION)
        self._dims = _searched(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the dimensions of the space; controls have none, and Optuna would find none."""
        return self._dims

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Return the parents by number: Optuna has them in another order once they are cached."""
        parents = super().get_parent_population(study, generation)
        return sorted(parents, key=lambda trial: trial.number)


class _GP(GPSampler):
    """A Gaussian process over the dimensions of the space, fitted anew for each trial."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        self._dims = _searched(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the dimensions of the space; controls have none, and Optuna would find none."""
        return self._dims

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of most expected gain, none among the first trials."""
        seen = cast("optuna.Study", _Seen(study))
        params: dict[str, Any] = super().sample_relative(seen, trial, search_space)
        return params


def suggest(trial: Trial, name: str, dim: Float | Int | Choice) -> Value:
    """Return the value of a dimension in a trial, as its sampler draws it."""
    if isinstance(dim, Float):
        return trial.suggest_float(name, dim.low, dim.high, log=dim.log, step=dim.step)
    if isinstance(dim, Int):
        return trial.suggest_int(name, dim.low, dim.high, log=dim.log, step=dim.step)
    value = trial.suggest_categorical(name, dim.options)
    assert value is not None
    return value


def _distribution(dim: Float | Int | Choice) -> BaseDistribution:
    """Return what `suggest` makes of a dimension."""
    if isinstance(dim, Float):
        return FloatDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
    if isinstance(dim, Int):
        return IntDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
    return CategoricalDistribution(dim.options)
