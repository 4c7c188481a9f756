"""Search over any function: `kdsearch.search`. No torch.

Space, sampler, stopping rule, store and engine are those of `kdsearch run`; one function of the
user replaces the training, another one the cost.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TypeAlias

import yaml

from kdsearch.digests import digest_of
from kdsearch.engines import local
from kdsearch.engines.dispatch import OnTrial, TrialQueue
from kdsearch.engines.dispatch import search as proposed
from kdsearch.errors import SpaceError, SpecError, StopStudy, did_you_mean, explained
from kdsearch.space import Params
from kdsearch.space_yaml import load_space, parse_space
from kdsearch.spec import Budget, Cost
from kdsearch.study.budget_shares import budget_fields
from kdsearch.study.config import OBJECTIVE, StudyConfig
from kdsearch.study.early_stopping import Rung, StudyPruner
from kdsearch.study.open import open_study
from kdsearch.study.sampler_check import refuse_sampler
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.version import VERSION
from kdsearch.workflows.load import Study

logger = logging.getLogger(__name__)
Report: TypeAlias = Callable[[int, float], bool]
Evaluate: TypeAlias = Callable[[Params, Report], float]
_COSTS = tuple(item.name for item in fields(Budget))


def search(
    *,
    space: Mapping[str, object] | Path | str,
    evaluate: Evaluate,
    cost: Callable[[Params], Mapping[str, float]],
    n_trials: int,
    budget: Budget | Mapping[str, float] | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    epochs: int | None = None,
    stopping: str = "off",
    images: int = 10_000,
    time_limit: float | None = None,
    workers: int = 1,
    path: Path | str | None = None,
    on_trial: OnTrial | None = None,
) -> Study:
    """Return a study of `n_trials` trials, whose `front` trades a metric against a cost.

    space: a mapping as in a space file, or such a file. evaluate: gets the parameters by their
    dotted names and `report`, and returns the metric, which is maximised. An exception in it fails
    that trial alone. It may call `report(epoch, metric)` after each of its `epochs`, 1, 2, ...;
    False: the trial must stop. cost: returns the cost of a candidate, any of `flops`, `params` and
    `latency_ms`, before it is evaluated. budget: limits by these names; a candidate over one is not
    evaluated. The front's cost is the first limited one of `latency_ms`, `flops`, `params`; `flops`
    without a budget. sampler: `tpe`, `random`, or, where no option owns dimensions, `nsga2` or
    `gp`. stopping: `safe` or `tight`, for a metric that is a fraction in [0, 1] of so many
    `images`. workers: trials at a time, in threads. time_limit: seconds after which no further
    trial begins. path: a folder for the study, which a later call resumes; without one the files
    last as long as the Study. on_trial: gets each trial's record; it and `evaluate` may raise
    `kdsearch.StopStudy`, which ends the search.

    Raises SpaceError or SpecError for arguments that cannot be searched, StudyError where `path`
    holds another study.

    Example: kdsearch.search(space={"width": {"int": [8, 64]}}, n_trials=20,
    evaluate=lambda params, report: 1 - 1 / params["width"],
    cost=lambda params: {"flops": 1e4 * params["width"]}).front
    """
    if stopping != "off" and epochs is None:
        raise SpecError(f"stopping={stopping!r}: say epochs=N, how many `evaluate` reports")
    numbers = {"n_trials": n_trials, "workers": workers, "epochs": epochs, "images": images}
    for name, value in (numbers | {"time_limit": time_limit}).items():
        if value is not None and not 0 < _number(f"{name}:", value) < math.inf:
            raise SpecError(f"{name}={value!r}: expected a number above 0")
    config = StudyConfig(
        data=OBJECTIVE,
        space=_text(space),
        seed=seed,
        sampler=sampler,
        stopping=stopping,
        **budget_fields(_budget(budget)),  # type: ignore[arg-type]
    )
    refuse_sampler(config)
    with (
        _folder(path) as folder,
        open_study(folder, config, versions={"kdsearch": VERSION}, digest=digest_of) as study,
    ):
        costs = _Costs(cost, study.budget.axis())
        pruner = StudyPruner(study, images=images)
        until = math.inf if time_limit is None else time.perf_counter() + time_limit

        def is_enough() -> bool:
            return time.perf_counter() >= until

        run = partial(_run, study, evaluate, costs, pruner, epochs)
        source = proposed(study, n_trials=n_trials, is_enough=is_enough, price=costs.before_trial)
        try:
            local.run(TrialQueue(study, source, on_trial=on_trial), [run] * workers)
        except StopStudy as stop:
            logger.info("the search was stopped: %s", stop)
            study.store.fail_unfinished()
        found = Study.read(study)
        if path is None:
            weakref.finalize(found, shutil.rmtree, folder.parent, ignore_errors=True)
    return found


@contextmanager
def _folder(path: Path | str | None) -> Iterator[Path]:
    """Give the study's folder; a temporary one is removed when the search fails."""
    if path is not None:
        yield Path(path)
        return
    made = Path(tempfile.mkdtemp(prefix="kdsearch-"))
    try:
        yield made / "study"
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _run(
    study: OpenStudy,
    evaluate: Evaluate,
    costs: _Costs,
    pruner: StudyPruner,
    epochs: int | None,
    proposal: Proposal,
) -> TrialOutcome:
    """Evaluate one candidate that keeps the budget; whatever it raises fails its trial alone."""
    started = time.perf_counter()
    reports = _Reports(pruner, epochs)
    cost, violations, val, reason = None, {}, None, ""
    try:
        cost = reports.cost = costs(proposal.params)
        violations = study.budget.violations(cost)
        if any(violation > 0 for violation in violations.values()):
            reason = study.budget.explain(cost)
            return TrialOutcome(state="rejected", cost=cost, violations=violations, reason=reason)
        val = _number("evaluate returned", evaluate(proposal.params, reports))
    except StopStudy:
        raise
    except Exception as error:
        logger.exception("trial %d failed", proposal.number)
        reason = explained(error)
    state = "failed" if val is None else "complete"
    if reports.stopped:
        state, val, reason = "pruned", None, reports.stopped
    return TrialOutcome(
        state=state,
        cost=cost,
        violations=violations,
        val=val,
        curve=tuple(reports.curve),
        epochs=epochs or len(reports.curve),
        seconds=time.perf_counter() - started,
        reason=reason,
    )


class _Reports:
    """The function that `evaluate` calls after each epoch. stopped: why the trial must stop."""

    def __init__(self, pruner: StudyPruner, epochs: int | None) -> None:
        self.curve: list[float] = []
        self.stopped = ""
        self.cost = Cost()
        self._pruner, self._epochs = pruner, epochs

    def __call__(self, epoch: int, metric: float) -> bool:
        """Return False when the trial must stop. Raises SpecError for epochs out of order."""
        if epoch != len(self.curve) + 1 or epoch > (self._epochs or math.inf):
            of = "" if self._epochs is None else f" of {self._epochs}"
            raise SpecError(
                f"report({epoch}, ...) after epoch {len(self.curve)}{of}: expected the next"
            )
        self.curve.append(_number(f"report({epoch}, ...):", metric))
        if self._pruner.mode != "off" and not 0 <= self.curve[-1] <= 1:
            raise SpecError(f"report({epoch}, {metric}): stopping needs a fraction in [0, 1]")
        if not self.stopped and self._epochs is not None:
            rung = Rung(curve=tuple(self.curve), epochs=self._epochs, cost=self.cost)
            self.stopped = self._pruner(rung) or ""
        return not self.stopped


def _budget(limits: Budget | Mapping[str, float] | None) -> Budget | None:
    """Return the budget. Raises SpecError for a name or a limit that is none."""
    if limits is None or isinstance(limits, Budget):
        return limits
    found = _named("budget", limits)
    for name, limit in found.items():
        if not 0 < limit < math.inf:
            raise SpecError(f"budget[{name!r}]={limit:g}: expected a number above 0")
    return Budget(**found)


class _Costs:
    """Costs of candidates by the user's function, which is called once for each candidate.

    axis: the cost that the front trades.
    """

    def __init__(self, cost: Callable[[Params], Mapping[str, float]], axis: str) -> None:
        self._cost, self._axis = cost, axis
        self._known: dict[str, Cost | Exception] = {}

    def __call__(self, params: Params) -> Cost:
        """Return the cost, or raise what the function raised. Raises SpecError for a wrong one."""
        name = digest_of(params)
        if name not in self._known:
            try:
                self._known[name] = self._read(self._cost(params))
            except Exception as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, Exception):
            raise found
        return found

    def before_trial(self, params: Params) -> Cost | None:
        """Return the cost, None for a candidate whose trial fails without one.

        Raises SpecError where the function names costs that do not exist, or lacks the axis.
        """
        try:
            return self(params)
        except _NameError:
            raise
        except Exception:  # its trial fails with this error
            return None

    def _read(self, costs: Mapping[str, float]) -> Cost:
        found = _named("cost", costs)
        if self._axis not in found:
            raise _NameError(f"cost: {sorted(found)} lacks {self._axis!r}, which the front trades")
        for name, value in found.items():
            if not (math.isfinite(value) and value >= 0 and (value or name != self._axis)):
                least = "a number above 0" if name == self._axis else "0 or a number above it"
                raise SpecError(f"cost: {name} {value:g}: expected {least}")
        return Cost(**found)


class _NameError(SpecError):
    """A name of a cost is wrong, for every candidate."""


def _named(what: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return the costs as floats. Raises SpecError for a name or a value that is none."""
    for name in values:
        if name not in _COSTS:
            hint = did_you_mean(name, _COSTS)
            raise _NameError(f"{what}: unknown {name!r}{hint}; known: {', '.join(_COSTS)}")
    return {name: _number(f"{what}: {name}", value) for name, value in values.items()}


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise SpecError(f"{what} {value!r}: expected a number")
    return float(value)


def _text(space: Mapping[str, object] | Path | str) -> str:
    """Return a space as YAML. Raises SpaceError with its mistakes."""
    if isinstance(space, Path | str):
        return load_space(Path(space)).text
    try:
        text = yaml.safe_dump(dict(space), sort_keys=False)
    except yaml.YAMLError as error:
        raise SpaceError(f"space: {error}; use plain dicts, lists, numbers and strings") from error
    return parse_space(text, source="space").text
