"""The first trials of a study: common sense, which every later trial has to beat.

Plain KD with the widest student that fits, at the defaults of the space, for each family and
optimiser; then the other methods at their defaults, on the best of these. Both follow the order of
the space's file, whose first options are the best known. A student has the first resolution at
which it fits; a family that fits at none is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product

from kdsearch.hpo.halving import TRIALS
from kdsearch.space import Choice, Constant, Dim, Float, Int, Params, SearchSpace, Value, default_of
from kdsearch.spec import TrialRecord
from kdsearch.study.config import OBJECTIVE, StudyConfig
from kdsearch.study.facts import StudyFacts
from kdsearch.study.width import is_size, share_name

METHOD = "method.name"
RESOLUTION = "student.resolution"
PLAIN = "kd"  # plain knowledge distillation
_AXES = ("train.optimizer", "student.family")  # the outer loop first
_LOST = ("rejected", "failed")


def first_trial(
    config: StudyConfig,
    facts: StudyFacts,
    draw: int,
    records: Sequence[TrialRecord],
    fits: Callable[[Params], bool],
) -> Params:
    """Return the parameters of a draw from 0, nothing where the sampler chooses.

    Enqueued candidates come before. Half of the trials, at most, have plain KD, and half the other
    methods; one that was rejected or failed does not count. records: of the study, to find the
    best of plain KD. fits: whether a student keeps the budget, or may.
    """
    if config.data == OBJECTIVE:
        return {}

    def place_of(draw: int) -> int:
        return draw - sum(enqueued < draw for enqueued in facts.enqueued)

    space, trials, place = config.search_space(), facts.trials or TRIALS, place_of(draw)
    draws = {r.draw for r in records if r.draw is not None and r.state in _LOST}
    lost = [place_of(draw) for draw in draws - facts.enqueued.keys()]
    half, plain = -(-trials // 2), 0
    kept: Params = {}
    for params in _plain(space, fits):
        if plain - sum(other < plain for other in lost) == half:
            break
        if plain == place:
            return params
        kept, plain = kept or params, plain + 1
    methods = [option for option in _options(space, METHOD) if option != PLAIN]
    place -= plain
    if place >= min(len(methods), trials // 2):
        return {}
    done = [r for r in records if r.state == "complete" and not r.kind and r.draw is not None]
    plainly = [r for r in done if r.params.get(METHOD, PLAIN) == PLAIN]
    best = max(plainly, key=lambda r: r.val or 0.0, default=None)
    kept = kept if best is None else best.params
    student = {name: value for name, value in kept.items() if not name.startswith("method.")}
    return _at(space, {**student, METHOD: methods[place]})


def method_at_defaults(space: SearchSpace, method: str) -> Params:
    """Return the parameters of a method at the defaults of the space, or its own outside it."""
    if method not in _options(space, METHOD):
        return {METHOD: method}
    walked = space.walk(lambda name, dim: method if name == METHOD else default_of(dim))
    return {name: value for name, value in walked.items() if name.startswith("method.")}


def _plain(space: SearchSpace, fits: Callable[[Params], bool]) -> Iterator[Params]:
    """Yield plain KD for each family and optimiser that fits."""
    choices = [(axis, _options(space, axis)) for axis in _AXES if _options(space, axis)]
    methods = _options(space, METHOD)
    plain: Params = {METHOD: PLAIN if PLAIN in methods else methods[0]} if methods else {}
    for options in product(*(options for _, options in choices)):
        fixed: Params = {**plain, **dict(zip((axis for axis, _ in choices), options, strict=True))}
        sizes: list[Params] = [{RESOLUTION: size} for size in _options(space, RESOLUTION)]
        candidates = (_at(space, {**fixed, **size}) for size in sizes or [{}])
        yield from islice(filter(fits, candidates), 1)


def _options(space: SearchSpace, name: str) -> list[Value]:
    dim = space.dims.get(name)
    return [*dim.options] if isinstance(dim, Choice) else []


def _at(space: SearchSpace, fixed: Params) -> Params:
    """Return the sampled parameters: the fixed ones, and the defaults of the others."""

    def pick(name: str, dim: Float | Int | Choice) -> Value:
        return fixed.get(name, default_of(dim))

    dims: dict[str, Dim] = dict(space.all_dims())
    found: dict[str, Value] = {}
    for name, value in space.walk(pick).items():
        if is_size(name, dims[name]) and name not in fixed:
            found[share_name(name)] = 1.0  # the widest student that fits
        elif not isinstance(dims[name], Constant):
            found[name] = value
    return found
