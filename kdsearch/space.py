"""Search spaces: typed dimensions, walked with a function that picks values. No torch.

`SearchSpace.walk(pick)` is the only interface between space and sampler. Names are
dotted paths; a dimension of option `kd` of `method.name` is called `method.kd.*`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import TypeAlias, TypeGuard

Value: TypeAlias = bool | int | float | str
Params: TypeAlias = Mapping[str, Value]

MAX_BOUND = 2**53  # beyond it, whole numbers are no longer exact as floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Float:
    """A real number in [low, high], sampled in the logarithm when `log`; see `default_of`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    default: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step, self.default)

    def __contains__(self, value: object) -> bool:
        return is_number(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Int:
    """An integer in [low, high], in steps of `step`, or sampled in the logarithm when `log`."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    default: int | None = None

    def __post_init__(self) -> None:
        step = None if self.step == 1 else self.step
        _check_range(self.low, self.high, self.log, step, self.default)

    def __contains__(self, value: object) -> bool:
        return is_number(value, (int,)) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several unordered options; an option may own dimensions that exist only under it."""

    options: tuple[Value, ...]
    owned: Mapping[Value, Mapping[str, Dim]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a choice needs at least one option")
        if len(set(map(repr, self.options))) < len(self.options):
            raise ValueError(f"a choice lists an option twice: {list(self.options)}")

    def __contains__(self, value: object) -> bool:
        return value in self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A value that is not searched."""

    value: Value

    def __contains__(self, value: object) -> bool:
        return value == self.value


Dim: TypeAlias = Float | Int | Choice | Constant
Pick: TypeAlias = Callable[[str, Float | Int | Choice], Value]


def is_number(value: object, kinds: tuple[type[float], ...]) -> TypeGuard[float]:
    """Return whether a value is a number of one of these kinds, and no truth value."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def options_in(dim: Dim | None) -> tuple[Value, ...]:
    """Return the options of a choice, or the value of a constant; nothing of a range."""
    if isinstance(dim, Choice):
        return dim.options
    return (dim.value,) if isinstance(dim, Constant) else ()


def default_of(dim: Dim) -> Value:
    """Return the value that a study tries first: the file's `default`, an option listed first.

    A range without a default has its middle, that of the logarithm when `log`.
    """
    if isinstance(dim, Constant):
        return dim.value
    if isinstance(dim, Choice):
        return dim.options[0]
    if dim.default is not None:
        return dim.default
    middle = math.sqrt(dim.low * dim.high) if dim.log else (dim.low + dim.high) / 2
    if dim.step is not None:
        middle = dim.low + round((middle - dim.low) / dim.step) * dim.step
    return round(middle) if isinstance(dim, Int) else middle


def _check_range(
    low: float, high: float, log: bool, step: float | None, default: float | None
) -> None:
    for bound in (low, high):
        if not -MAX_BOUND <= bound <= MAX_BOUND:
            raise ValueError(f"{bound} is not a number within +-{MAX_BOUND}")
    if not low <= high:
        raise ValueError(f"low {low} is above high {high}")
    if log and low <= 0:
        raise ValueError(f"a log range must start above 0, not at {low}")
    if step is not None and (step <= 0 or log):
        raise ValueError(f"step {step} must be positive and cannot be combined with log")
    if step is not None and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
        raise ValueError(f"steps of {step} from {low} do not end at {high}")
    if default is not None and not low <= default <= high:
        raise ValueError(f"default {default} is not within [{low}, {high}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Named dimensions in the order of the walk.

    Example: SearchSpace(dims={"width": Int(low=8, high=64)}).walk(lambda name, dim: dim.low)
    """

    dims: Mapping[str, Dim]
    text: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    source: str = "search space"

    def walk(self, pick: Pick) -> dict[str, Value]:
        """Return a value for every dimension that applies; `pick` chooses all but constants."""
        params: dict[str, Value] = {}
        for name, dim in self.dims.items():
            _walk(name, dim, pick, params)
        return params

    def fixed(self, name: str, value: Value) -> SearchSpace:
        """Return the space with one dimension replaced, or added, as a constant."""
        return replace(self, dims={**self.dims, name: Constant(value=value)})

    def without(self, name: str, options: Collection[Value]) -> SearchSpace:
        """Return the space without some options of a choice, and what they own."""
        return replace(self, dims=_without(self.dims, str, name, options)) if options else self

    def all_dims(self) -> Iterator[tuple[str, Dim]]:
        """Yield every (name, dimension), including those that options own."""
        return (item for group in self.groups() for item in group.items())

    def groups(self) -> Iterator[Mapping[str, Dim]]:
        """Yield the groups of dimensions that co-occur: at the root, and under each option."""
        yield from _groups(self.dims)

    def where(self, name: str) -> str:
        """Return 'file:line' of a dimension, for messages."""
        return f"{self.source}:{self.lines[name]}" if name in self.lines else self.source


def owned_name(name: str, option: Value, child: str) -> str:
    """Return the name of a dimension that an option of `name` owns."""
    return ".".join(filter(None, (name.rpartition(".")[0], str(option), child)))


def _walk(name: str, dim: Dim, pick: Pick, params: dict[str, Value]) -> None:
    if isinstance(dim, Constant):
        params[name] = dim.value
        return
    value = params[name] = pick(name, dim)
    if isinstance(dim, Choice):
        for child, owned in dim.owned.get(value, {}).items():
            _walk(owned_name(name, value, child), owned, pick, params)


def _without(
    dims: Mapping[str, Dim], name_of: Callable[[str], str], name: str, options: Collection[Value]
) -> dict[str, Dim]:
    """Return a group of dimensions where the choice of that full name lacks the options."""
    found = dict(dims)
    for child, dim in dims.items():
        if not isinstance(dim, Choice):
            continue
        full = name_of(child)
        gone = options if full == name else ()
        found[child] = Choice(
            options=tuple(option for option in dim.options if option not in gone),
            owned={
                option: _without(group, partial(owned_name, full, option), name, options)
                for option, group in dim.owned.items()
                if option not in gone
            },
        )
    return found


def _groups(dims: Mapping[str, Dim]) -> Iterator[Mapping[str, Dim]]:
    yield dims
    for name, dim in dims.items():
        for option, owned in dim.owned.items() if isinstance(dim, Choice) else ():
            yield from _groups({owned_name(name, option, n): d for n, d in owned.items()})
