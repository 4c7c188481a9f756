"""Statistics of trainings that differ by their seed alone: mean, spread, paired gain. No numpy.

Accuracies are fractions of a split's images. Three trainings estimate their own spread poorly (two
degrees of freedom). So a recipe's variance is moved towards the common variance of all recipes,
which counts as four more degrees of freedom (moderated, after Smyth, 2004,
doi:10.2202/1544-6115.1027). Recipes may be noisier than others: variances are compared as multiples
of the binomial ones. On digits, 18 recipes in groups of nine, an interval from three seeds held a
fourth result in 95 % of the cases at +- 5.4 points; from the recipe's own variance alone in 96 % at
+- 8.7, from the common one alone in 93 % at +- 4.6. All intervals are about other seeds on the same
images; other images add an error of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

CONFIDENCE = 0.95
_PRIOR = 4  # degrees of freedom that the common variance counts for
_ROUNDING = 1 / 12  # variance of a rounded number of images
Group: TypeAlias = Sequence[float]
Pair: TypeAlias = tuple[Group, Group]
# Variance(value, images): of a value measured on so many images, from their choice.
Variance: TypeAlias = Callable[[float, int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Accuracies of one recipe under several seeds.

    sd: standard deviation of one training. low, high: prediction interval of Student's t, which
    holds the result of one more seed in CONFIDENCE of the cases.
    """

    mean: float
    sd: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Mean difference between a recipe and its control over `pairs` of trainings of equal seeds.

    low, high: confidence interval of the difference. p: two-sided p-value.
    """

    difference: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def is_shown(self) -> bool:
        """True if the difference is significant at CONFIDENCE."""
        return self.p < 1 - CONFIDENCE


def binomial_variance(share: float, images: int) -> float:
    """Return the variance of a share of `images`, above 0 at shares 0 and 1 (Laplace's rule)."""
    share = (share * images + 1) / (images + 2)
    return share * (1 - share) / images


def spreads(
    groups: Sequence[Group], images: int, variance: Variance = binomial_variance
) -> list[Spread]:
    """Return the spread of each recipe, its variance moderated by those of the others.

    A standard deviation is at least that of rounding to whole images, also for equal results.
    """
    units = [variance(_mean(group), images) for group in groups]
    found = []
    for group, (square, freedom) in zip(
        groups, _variances(groups, units, floor=_ROUNDING / images**2), strict=True
    ):
        mean, sd = _mean(group), math.sqrt(square)
        reach = _reach(freedom) * sd * math.sqrt(1 + 1 / len(group))
        low, high = max(0.0, mean - reach), min(1.0, mean + reach)
        found.append(Spread(mean=mean, sd=sd, low=low, high=high, values=tuple(group)))
    return found


def gains(pairs: Sequence[Pair], images: int, variance: Variance = binomial_variance) -> list[Gain]:
    """Return the gain of each recipe over its control: a paired t-test over the seeds.

    pairs: accuracies of a recipe and of its control, the same seeds in the same order.
    """
    groups, variances = _differences(pairs, images, variance)
    return [
        _gain(_mean(group), variance / len(group), freedom, len(group))
        for group, (variance, freedom) in zip(groups, variances, strict=True)
    ]


def mean_gain(
    pairs: Sequence[Pair],
    images: int,
    variance: Variance = binomial_variance,
    *,
    others: Sequence[Pair] = (),
) -> Gain:
    """Return the average gain of these recipes; the interval is about other seeds.

    others: further pairs, which only add to the common variance, as they do in `gains`.
    """
    differences, variances = _differences([*pairs, *others], images, variance)
    groups, own = differences[: len(pairs)], variances[: len(pairs)]
    shares = [v / len(group) for group, (v, _) in zip(groups, own, strict=True)]
    count = sum(map(len, groups))
    every = sum(map(len, differences)) - len(differences)
    freedom = min(count - len(groups) + _PRIOR, every)
    difference = sum(map(_mean, groups)) / len(groups)
    return _gain(difference, sum(shares) / len(groups) ** 2, freedom, count)


def _differences(
    pairs: Sequence[Pair], images: int, variance: Variance
) -> tuple[list[list[float]], list[tuple[float, int]]]:
    groups = [[a - b for a, b in zip(one, other, strict=True)] for one, other in pairs]
    units = [variance(_mean(one), images) + variance(_mean(other), images) for one, other in pairs]
    return groups, _variances(groups, units, floor=2 * _ROUNDING / images**2)


def _gain(difference: float, variance: float, freedom: int, pairs: int) -> Gain:
    error = math.sqrt(variance)
    reach = _reach(freedom) * error
    return Gain(
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        p=2 * student_tail(abs(difference) / error, freedom),
        pairs=pairs,
    )


def _variances(
    groups: Sequence[Group], units: Sequence[float], *, floor: float
) -> list[tuple[float, int]]:
    """Return the moderated variance of each group, at least `floor`, and its degrees of freedom."""
    squares = [
        sum((value - _mean(group)) ** 2 for value in group) / unit
        for group, unit in zip(groups, units, strict=True)
    ]
    freedoms = [len(group) - 1 for group in groups]
    common = sum(squares) / max(1, sum(freedoms))
    return [
        (
            max(floor, unit * (square + _PRIOR * common) / (own + _PRIOR)),
            min(own + _PRIOR, sum(freedoms)),
        )
        for square, unit, own in zip(squares, units, freedoms, strict=True)
    ]


def _reach(freedom: int) -> float:
    return student_point((1 - CONFIDENCE) / 2, freedom)


def _mean(values: Group) -> float:
    return sum(values) / len(values)


def student_tail(t: float, freedom: int) -> float:
    """Return the chance that Student's t exceeds `t` (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = math.sin(angle) * total
    return 0.5 - (0.5 * inside if not odd else (angle + inside) / math.pi)


@cache
def student_point(chance: float, freedom: int) -> float:
    """Return the t that is exceeded with a chance in (0, .5): by halving, to the last bits."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > chance:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > chance else (low, middle)
    return high
