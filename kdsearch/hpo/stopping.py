"""Whether a running trial is to be stopped at a rung: a pure rule over learning curves. numpy only.

Rungs are the epochs 1, 2, 4, 8, 12, 16, 24, ... below the last. A trial goes on
while it leads all that cost no more, so where curves keep their order none of the true front is
ever stopped. Otherwise it stops when the chance is small that it ends above the best completed
trial that costs no more: small beside what the epochs up to the next rung cost. The order of the
records decides nothing.

Curves are those of averaged weights. Cosine learning rates serve rungs best: accuracies at epochs
1, 2, 4 and 8 of 16 rank 82 students as their ends do by .58, .82, .92 and .98 (Spearman), against
.48, .77, .86 and .94 for 83 under a flat rate, whose decay in the last quarter is yet to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kdsearch.hpo import pareto
from kdsearch.hpo.statistics import Variance, binomial_variance
from kdsearch.hpo.tails import student_tail

MODES = ("safe", "tight", "off")
MIN_COMPLETE = 8
_CHANCE = 0.43  # times the share of the epochs that lie between this rung and the next
_RIDGE = 2.0  # as if so many trials more had said that an input of unit spread tells nothing
_KEPT = 1 / 3  # what the fronts hold that a tight study keeps, after an epoch of _WEEDED
_WEEDED = frozenset(4**n for n in range(10))
_Noise: TypeAlias = Callable[[float], float]
_MARGIN = 2.0  # standard errors of a difference, where too few of a schedule are complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the rule knows of a trial.

    values: the accuracy after each epoch so far. epochs: how many were planned. cost: on the axis
    of the front, above 0. schedule: the learning rate's; what another one did foretells nothing.
    is_complete: whether the last value is its result. is_rival: False where that is not to be
    beaten: it breaks a constraint, or is of an earlier study and only foretells.
    """

    values: tuple[float, ...]
    epochs: int
    cost: float
    schedule: str = ""
    is_complete: bool = False
    is_rival: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to stop, and why in one line."""

    is_stop: bool
    reason: str


def is_rung(epoch: int, epochs: int) -> bool:
    """Return whether a training of so many epochs is judged after this one."""
    odd = epoch // (epoch & -epoch)
    return epoch < epochs and (odd == 1 or (odd == 3 and epoch >= 12))


def judge(
    trial: Curve,
    others: Sequence[Curve],
    *,
    mode: str,
    images: int,
    floor: float | None = None,
    variance: Variance = binomial_variance,
) -> Verdict:
    """Judge a trial after its last epoch so far. images: how many the values are measured on.

    variance: of a value, from the choice of these images.

    An `others` that holds a value which is no number is left out; a trial whose own last value is
    none stops. What ends below the floor beats nothing, and what can hardly reach it stops.
    """
    epoch, value = len(trial.values), trial.values[-1]
    if mode == "off" or not is_rung(epoch, trial.epochs):
        return Verdict(is_stop=False, reason="no rung")
    if not math.isfinite(value):
        return _verdict(True, trial, f"the accuracy is {value}")
    known = sorted((o for o in others if np.isfinite(o.values).all()), key=_content)
    complete = [other for other in known if other.is_complete]
    if len(complete) < MIN_COMPLETE:
        return _verdict(False, trial, f"{len(complete)} of {MIN_COMPLETE} trials are complete")
    peers = [o for o in known if _recipe(o) == _recipe(trial) and len(o.values) >= epoch]
    beside = [peer for peer in peers if _is_rival(peer, floor)]
    teachers = [peer for peer in peers if peer.is_complete]
    bars = []
    if any(peer.cost <= trial.cost and peer.values[epoch - 1] > value for peer in beside):
        if mode == "tight" and epoch in _WEEDED and not _is_kept(trial, beside):
            share = f"the fronts that hold {_KEPT:.0%} of {len(beside)}"
            return _verdict(True, trial, f"outside {share}")
        bars = [o.values[-1] for o in complete if _is_rival(o, floor) and o.cost <= trial.cost]
    if not bars and floor is not None and _is_sunk(trial, teachers, floor):
        bars = [floor]
    if not bars:
        return _verdict(False, trial, "nothing complete that costs no more is to be beaten")

    def noise(value: float) -> float:
        return variance(value, images)

    if len(teachers) < MIN_COMPLETE:
        return _by_margin(trial, [t for t in teachers if _is_rival(t, floor)], noise)
    return _by_forecast(trial, teachers, max(bars), noise)


def _is_rival(curve: Curve, floor: float | None) -> bool:
    is_low = floor is not None and curve.is_complete and curve.values[-1] < floor
    return curve.is_rival and not is_low


def _is_sunk(trial: Curve, teachers: Sequence[Curve], floor: float) -> bool:
    """Return whether one that stood no lower here ended below the floor."""
    epoch = len(trial.values)
    low = (teacher for teacher in teachers if teacher.values[-1] < floor)
    return any(teacher.values[epoch - 1] >= trial.values[-1] for teacher in low)


def _by_forecast(trial: Curve, peers: Sequence[Curve], best: float, variance: _Noise) -> Verdict:
    """Stop where Student's t gives too small a chance to end above `best`.

    One ridge regression: final accuracy on the accuracies at this rung and at the one before, and
    log cost. Its residuals are taken for no smaller than the noise of the images.
    """
    epoch = len(trial.values)
    seen = sorted({epoch, _rung_before(epoch)})
    rows = np.array(
        [
            [*(p.values[n - 1] for n in seen), math.log(p.cost), p.values[-1]]
            for p in (*peers, trial)
        ]
    )
    told = rows - rows[:-1].mean(axis=0)
    used = np.flatnonzero(np.ptp(rows[:-1, :-1], axis=0) > 0)  # one cost, say: no slope over it
    scaled = told[:, used] / rows[:-1, used].std(axis=0)
    inputs, asked, ends = scaled[:-1], scaled[-1], told[:-1, -1]
    inverse = np.linalg.inv(inputs.T @ inputs + _RIDGE * np.eye(len(used)))
    slopes = inverse @ inputs.T @ ends
    freedom = len(peers) - 1 - len(used)
    spread = float(np.square(ends - inputs @ slopes).sum()) / freedom
    noise = max(spread, variance(best))
    mean = float(rows[:-1, -1].mean() + asked @ slopes)
    sd = math.sqrt(noise * (1 + 1 / len(peers) + float(asked @ inverse @ asked)))
    chance = student_tail((best - mean) / sd, freedom)
    least = _least_chance(epoch, trial.epochs)
    words = (
        f"{trial.values[-1]:.2%} foretells {mean:.2%} +- {sd:.2%}; the chance to end above "
        f"{best:.2%} is {chance:.2%}, of {least:.2%} needed"
    )
    return _verdict(chance < least, trial, words)


def _by_margin(trial: Curve, rivals: Sequence[Curve], variance: _Noise) -> Verdict:
    """Stop where a completed one that costs no more was far ahead here, a fourth of the way on."""
    epoch, value = len(trial.values), trial.values[-1]
    ahead = max((r.values[epoch - 1] for r in rivals if r.cost <= trial.cost), default=value)
    margin = _MARGIN * math.sqrt(variance(value) + variance(ahead))
    is_stop = ahead - value > margin and 4 * epoch >= trial.epochs
    words = f"{value:.2%} beside {ahead:.2%} at no higher cost, margin {margin:.2%}"
    return _verdict(is_stop, trial, words)


def _is_kept(trial: Curve, peers: Sequence[Curve]) -> bool:
    """Return whether a trial is on the first fronts at its rung, which hold enough of all."""
    epoch = len(trial.values)
    points = [(curve.values[epoch - 1], curve.cost) for curve in (*peers, trial)]
    left, kept = list(range(len(points))), 0
    while kept < _KEPT * len(points):
        front = {left[i] for i in pareto.front([points[i] for i in left])}
        if len(points) - 1 in front:
            return True
        kept += len(front)
        left = [i for i in left if i not in front]
    return False


def _least_chance(epoch: int, epochs: int) -> float:
    """Return which chance pays for the epochs to the next rung."""
    after = next(n for n in range(epoch + 1, epochs + 1) if n == epochs or is_rung(n, epochs))
    return _CHANCE * (after - epoch) / epochs


def _rung_before(epoch: int) -> int:
    return next((n for n in range(epoch - 1, 0, -1) if is_rung(n, epoch)), epoch)


def _recipe(curve: Curve) -> tuple[int, str]:
    return curve.epochs, curve.schedule


def _content(curve: Curve) -> tuple[float, str, tuple[float, ...], bool, bool]:
    """Order curves by what they hold, so that sums are the same whatever order they came in."""
    return curve.cost, curve.schedule, curve.values, curve.is_complete, curve.is_rival


def _verdict(is_stop: bool, trial: Curve, words: str) -> Verdict:
    return Verdict(is_stop=is_stop, reason=f"epoch {len(trial.values)} of {trial.epochs}: {words}")
