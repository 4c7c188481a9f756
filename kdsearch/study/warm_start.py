"""Warm start: enqueue a user's candidates and the front of an earlier study.

An enqueued candidate names dimensions of the space; the sampler chooses the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kdsearch.errors import SpecError, StudyError, did_you_mean
from kdsearch.space import Choice, Constant, Dim, Float, Int, Params, SearchSpace, Value
from kdsearch.study.config import StudyConfig, read_config
from kdsearch.study.open import load_study, open_study, require_config
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.width import is_share, shared

MOST = 8  # recipes that are taken from an earlier study
# The choice whose option stands in the names of what it owns.
_OWNERS = {"student": "student.family", "method": "method.name", "train": "train.optimizer"}


def enqueue(path: Path, settings: Params, storage: str | None = None) -> tuple[Params, int]:
    """Enqueue a candidate in a study that is not running.

    Return it by the names of the space, and how many trials the study needs for all that are
    enqueued. storage: see `open_study`. Raises SpecError for settings outside the space, StudyError
    while the study runs.
    """
    config = require_config(path)
    guess = read_guess(config.search_space(), settings)
    with open_study(path, config, versions={}, storage=storage) as study:
        study.enqueue([guess])
        records = study.records()
        begun = {record.draw for record in records if record.state != "interrupted"}
        waiting = study.facts.enqueued.keys() - begun
        return guess, len(searched(records)) + len(waiting)


def read_guess(space: SearchSpace, settings: Params) -> Params:
    """Return settings by the names of the space. Raises SpecError that lists every mistake.

    `student.width`, `method.alpha` and `train.lr` may leave out the family, method or optimizer
    that the settings, or the space, fix. `student.share`, in place of the width, is a share of the
    tightest limit: the width is the widest that keeps it.
    """
    if any(map(is_share, settings)):
        space = shared(space)
    dims = dict(space.all_dims())
    found: dict[str, Value] = {}
    mistakes = []
    for name, value in settings.items():
        full = _full_name(name, dims, settings)
        if full not in dims:
            hint = did_you_mean(full, dims) or f"; the space has {', '.join(dims)}"
            mistakes.append(f"--set {name}: unknown{hint}")
            continue
        try:
            found[full] = _read(dims[full], value)
        except ValueError as error:
            mistakes.append(f"--set {name}={value}: {error}")
    if not mistakes:
        alone = _unreached(space, found)
        mistakes = [f"--set {name}: give the option that owns it, too" for name in alone]
    if mistakes:
        raise SpecError("; ".join(mistakes))
    return {name: value for name, value in found.items() if not isinstance(dims[name], Constant)}


def _full_name(name: str, dims: Mapping[str, Dim], settings: Params) -> str:
    section, _, knob = name.partition(".")
    owner = dims.get(_OWNERS.get(section, ""))
    option = settings.get(_OWNERS.get(section, ""))
    if option is None and isinstance(owner, Constant):
        option = owner.value
    owned = f"{section}.{option}.{knob}"
    return owned if name not in dims and owned in dims else name


def _read(dim: Dim, value: Value) -> Value:
    """Return a value as the dimension has it. Raises ValueError."""
    if isinstance(dim, Choice):
        options = {str(option): option for option in dim.options}
        if str(value) not in options:
            raise ValueError(f"expected {', '.join(options)}{did_you_mean(str(value), options)}")
        return options[str(value)]
    if isinstance(dim, Constant):
        if value != dim.value:
            raise ValueError(f"the space fixes {dim.value}")
        return value
    if value not in dim or not _is_on_step(dim, value):
        step = "" if dim.step in (None, 1) else f" in steps of {dim.step}"
        raise ValueError(f"expected {dim.low} to {dim.high}{step}")
    return float(value) if isinstance(dim, Float) else value


def _is_on_step(dim: Float | Int, value: Value) -> bool:
    assert not isinstance(value, str)
    if dim.step is None:
        return True
    steps = (value - dim.low) / dim.step
    return abs(steps - round(steps)) < 1e-9


def _unreached(space: SearchSpace, guess: Params) -> list[str]:
    """Return the names whose dimensions exist only under an option that is not set."""

    def pick(name: str, dim: Float | Int | Choice) -> Value:
        return guess.get(name, "" if isinstance(dim, Choice) else dim.low)

    walked = space.walk(pick)
    return [name for name in guess if name not in walked]


def start_of(config: StudyConfig, out: Path) -> OpenStudy | None:
    """Return the study that a request starts from. Raises StudyError where it is not there."""
    if config.from_study is None:
        return None
    path = Path(config.from_study)
    if read_config(path) is None:
        path = out / config.from_study
    if read_config(path) is None:
        raise StudyError(
            f"--from-study {config.from_study}: there is no such study, nor one under {out}; give "
            "its name or its folder"
        )
    return load_study(path)


def recipes_of(config: StudyConfig, out: Path) -> list[Params]:
    """Return the front of the study that a request starts from, as far as it fits; cheapest first.

    What is out of range, or not on offer, is left to the sampler. Raises StudyError where nothing
    of it fits.
    """
    start = start_of(config, out)
    if start is None:
        return []
    front = start.front()
    space = config.search_space()
    fitting = [_fitting(space, record.params) for record in front]
    recipes = [recipe for i, recipe in enumerate(fitting) if recipe and recipe not in fitting[:i]]
    if not recipes:
        why = "has no complete trial" if not front else "shares no dimension with this space"
        raise StudyError(f"--from-study {config.from_study}: that study {why}; leave it out")
    spread = min(MOST, len(recipes))  # both ends of the front, and evenly between
    return [recipes[round(i * (len(recipes) - 1) / max(1, spread - 1))] for i in range(spread)]


def _fitting(space: SearchSpace, params: Params) -> Params:
    """Return the parameters that the space samples and has in range."""
    dims = dict(space.all_dims())
    found: dict[str, Value] = {}
    for name, value in params.items():
        if name in dims and not isinstance(dims[name], Constant):
            with suppress(ValueError):
                found[name] = _read(dims[name], value)
    return found
