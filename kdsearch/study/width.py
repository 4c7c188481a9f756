"""Sample a share of the budget, and solve the width of a student for it. No torch.

Where a study has a limit, most draws have `student.FAMILY.share` in place of
`student.FAMILY.width`. Once every other parameter is known, the width is the widest whose cost is
within that share of the tightest limit. A record has the width alone; Optuna has both, so that TPE
learns from each draw, whichever of the two was sampled. Of a library's network the width is its
`depth`, the share of its blocks that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias

from kdsearch.models import students
from kdsearch.space import Choice, Dim, Float, Params, SearchSpace, Value, owned_name
from kdsearch.spec import Budget, Cost, TrialRecord

# FLOPs and parameters of a student; None where they are not known before its trial.
Price: TypeAlias = Callable[[Params], "Cost | None"]


class Latencies(Protocol):
    """Latencies of students before their trials."""

    def expected(self, records: Sequence[TrialRecord]) -> Price:
        """Return costs with the latency that these trials let expect."""

    def measured(self, params: Params) -> Cost | None:
        """Return the cost with a measured latency, None where there is none."""


# Values by name, each with its dimension, which the sampler did not sample.
Learned: TypeAlias = Mapping[str, tuple[Float, float]]
SHARE = Float(low=0.4, high=1.0, log=True)
FREE_EVERY = 10  # one draw in so many samples the width, for the cheap end of the front
# Widths are tried in these steps. Two channel counts of a built-in family change at least 0.0039
# apart (512 and 256 channels in multiples of 4), so none is missed.
STEP = 0.001


class Widths:
    """The widths of a study's draws.

    is_wide: every draw samples the width, unless its share is given.
    """

    def __init__(self, space: SearchSpace, budget: Budget, *, is_wide: bool) -> None:
        self._space, self._shared = space, shared(space)
        self._budget = budget
        self._dims = {
            n: dim for n, dim in space.all_dims() if isinstance(dim, Float) and is_size(n, dim)
        }
        self._is_wide = is_wide or budget == Budget()
        self._fitting: dict[tuple[tuple[str, Value], ...], bool] = {}

    def space(self, seed: int, given: Params, *, is_priced: bool) -> SearchSpace:
        """Return the space that a draw samples: with shares, or with widths.

        seed: of the draw; decides which draws sample the width. given: parameters that are not
        sampled. is_priced: costs are known before a trial.
        """
        if any(share_name(name) in given for name in self._dims):
            return self._shared
        is_given = any(name in given for name in self._dims)
        is_free = is_given or self._is_wide or not is_priced or seed % FREE_EVERY == 0
        return self._space if is_free else self._shared

    def solve(
        self, params: Params, price: Price | None, measured: Price | None = None
    ) -> tuple[Params, Learned]:
        """Return parameters that have a width, and what the sampler learns besides its own values.

        A share becomes the widest width that keeps it, the lowest where none does, the highest in a
        study without limits. For a sampled width the sampler learns its share of the budget, if
        that is in the range of shares.

        price: costs, a latency as it is expected. measured: costs with a measured latency. A width
        that breaks a limit, or uses less than half of its share, is solved once more, for a price
        that is wrong by the same factor.
        """
        for name, dim in self._dims.items():
            share = share_name(name)
            if share in params:
                width = self._solved(name, dim, params, price, measured)
                solved = {name if n == share else n: value for n, value in params.items()}
                return {**solved, name: width}, {name: (dim, width)}
            if name in params and price is not None and not self._is_wide:
                spent = self.spent(price(params))
                return params, {share: (SHARE, spent)} if spent in SHARE else {}
        return params, {}

    def _solved(
        self, name: str, dim: Float, params: Params, price: Price | None, measured: Price | None
    ) -> float:
        if price is None or self._budget == Budget():
            return dim.high
        share = share_name(name)
        rest = {n: value for n, value in params.items() if n != share}
        most = float(params[share])

        def at(width: float) -> Params:
            return {**rest, name: width}

        width = widest(dim, lambda width: self.spent(price(at(width))) <= most)
        cost = None if measured is None else measured(at(width))
        if cost is None:
            return width
        spent, expected = self.spent(cost), self.spent(price(at(width)))
        if not (spent > 1 or (2 * spent < most and width < dim.high)):
            return width
        return widest(dim, lambda width: self.spent(price(at(width))) * spent / expected <= most)

    def fits(self, params: Params, price: Price | None, measured: Price | None = None) -> bool:
        """Return whether a student keeps the limits, or may: its cost is not known.

        What was found of a student once is kept.
        """
        student = tuple((n, value) for n, value in params.items() if n.startswith("student."))
        if price is None or student in self._fitting:
            return self._fitting.get(student, True)
        params, _ = self.solve(params, price, measured)
        cost = price(params) if measured is None else measured(params)
        self._fitting[student] = cost is None or self.spent(cost) <= 1
        return self._fitting[student]

    def spent(self, cost: Cost | None) -> float:
        """Return the share of the tightest limit that a cost takes, infinite where not known."""
        if cost is None:
            return math.inf
        return 1 + max(self._budget.violations(cost).values(), default=-1.0)


def widest(dim: Float, keeps: Callable[[float], bool]) -> float:
    """Return the widest of a dimension's widths that `keeps` accepts, the lowest if none does.

    Widths are STEP, or the step of the dimension, apart. `keeps` is called about log2 of their
    number of times; above a width that it refuses it must accept none. Equal networks have equal
    widths, the widest of each.
    """
    step = dim.step or STEP
    most = math.ceil((dim.high - dim.low) / step - 1e-9)

    def width(i: int) -> float:
        return min(dim.high, round(dim.low + i * step, 9)) if i else dim.low

    if keeps(dim.high):
        return dim.high
    kept, over = 0, most
    while over - kept > 1:
        middle = (kept + over) // 2
        kept, over = (middle, over) if keeps(width(middle)) else (kept, middle)
    return width(kept)


def shared(space: SearchSpace) -> SearchSpace:
    """Return a space that has the share of the budget in place of each family's width."""
    return replace(space, dims=dict(_shared(space.dims, str)))


def _shared(dims: Mapping[str, Dim], name_of: Callable[[str], str]) -> Iterator[tuple[str, Dim]]:
    for name, dim in dims.items():
        full = name_of(name)
        if is_size(full, dim):
            yield share_name(name), SHARE
        elif isinstance(dim, Choice):
            owned = {
                option: dict(_shared(group, partial(owned_name, full, option)))
                for option, group in dim.owned.items()
            }
            yield name, replace(dim, owned=owned)
        else:
            yield name, dim


def is_size(name: str, dim: Dim) -> bool:
    """Return whether a dimension is solved for a share: a width, or a library network's depth."""
    section, _, rest = name.partition(".")
    family, _, knob = rest.rpartition(".")
    if section != "student" or not isinstance(dim, Float):
        return False
    return knob == "width" or (knob == "depth" and students.is_library(family))


def is_share(name: str) -> bool:
    """Return whether a parameter is the share that stands for a width or a depth."""
    return name.startswith("student.") and name.endswith(".share")


def share_name(size: str) -> str:
    """Return the name of the share that stands for a width or a depth."""
    owner, dot, _ = size.rpartition(".")
    return f"{owner}{dot}share"
