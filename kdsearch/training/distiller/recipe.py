"""Resolve a recipe: fill in its defaults and refuse contradictory settings."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kdsearch.digests import changed
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.methods import METHODS
from kdsearch.methods.base import DistillLoss, Part
from kdsearch.schedules import Schedule, parse_schedule
from kdsearch.space import Params, Value
from kdsearch.spec import ALL_PAIRS, LOGITS, DistillSpec
from kdsearch.training.pairing import check_mapping

_NEEDED = inspect.Parameter.empty
_OF_A_TERM = ("weight", "mapping", "weight_schedule")
_NEEDS_PAIRS = ("stages", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class TermSpec:
    """One term of the loss in full: a method, its weight, schedule, mapping and knobs."""

    name: str
    method: type[DistillLoss]
    weight: float
    schedule: Schedule
    mapping: str
    knobs: Params

    @property
    def temperature(self) -> float | None:
        """Return the method's temperature, None where it has none."""
        value = self.knobs.get("temperature", _arguments(self.method).get("temperature"))
        return float(value) if isinstance(value, int | float) else None

    @property
    def is_on_logits(self) -> bool:
        """Return whether a method on stages compares logits at each position in their place."""
        return self.mapping == LOGITS and self.method.need in _NEEDS_PAIRS

    @property
    def reads(self) -> frozenset[Part]:
        """Return the parts of the teacher's outputs that it reads."""
        return frozenset({"logits"}) if self.is_on_logits else self.method.reads

    def loss(self) -> DistillLoss:
        """Return a new loss module. Raises SpecError for impossible knobs."""
        return self.method(**self.knobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A DistillSpec with every default filled in."""

    alpha: float
    alpha_schedule: Schedule
    temperature_schedule: Schedule
    order: str
    terms: tuple[TermSpec, ...]


def knobs_of(method: str) -> tuple[str, ...]:
    """Return the names of a method's knobs; of several methods, with the method before each name.

    Raises SpecError when there is no such method.
    """
    names = _names(method)
    if len(names) == 1:
        return tuple(_arguments(METHODS.get(method)))
    return tuple(
        f"{name}.{knob}" for name in names for knob in (*_arguments(METHODS.get(name)), *_OF_A_TERM)
    )


def temperature_knob(method: str) -> str:
    """Return the knob that sets the one temperature of a method: `temperature`, `kd.temperature`.

    Raises SpecError where no part of the method has a temperature, or several have one.
    """
    found = [knob for knob in knobs_of(method) if knob.rpartition(".")[2] == "temperature"]
    if not found:
        has_teacher = METHODS.get(_names(method)[0]).need != "nothing"
        hint = f"{method}+kd adds a part with one" if has_teacher else "use kd"
        raise SpecError(f"method {method!r} has no temperature; {hint}")
    if len(found) > 1:
        raise SpecError(
            f"method {method!r} has several temperatures; set each: "
            f"{', '.join(f'--set method.{knob}=4' for knob in found)}"
        )
    return found[0]


def needed_features(spec: DistillSpec) -> frozenset[str]:
    """Return the features of a teacher that a recipe reads. Raises SpecError."""
    return frozenset(name for term in resolve(spec).terms for name in term.reads)


def check(spec: DistillSpec) -> None:
    """Raise SpecError when the recipe contradicts itself or its method; builds no network."""
    resolve(spec)


def resolve(spec: DistillSpec) -> Recipe:
    """Return the recipe with all defaults filled in. Raises SpecError."""
    names = _names(spec.method)
    if METHODS.get(names[0]).need == "nothing":
        _refuse_settings(spec)
    terms = tuple(_term(name, own, spec) for name, own in _settings_of(names, spec).items())
    if spec.temperature_schedule != "constant" and not any(term.temperature for term in terms):
        raise SpecError(
            f"method.temperature_schedule: no part of {spec.method!r} has a temperature; "
            f"use {spec.method}+kd"
        )
    if not any(term.method.need in _NEEDS_PAIRS for term in terms) and spec.mapping:
        raise SpecError(
            f"method.mapping: {spec.mapping!r} is for methods that compare stages; "
            f"{spec.method!r} compares {' and '.join(term.method.need for term in terms)}"
        )
    first = terms[0].method
    recipe = Recipe(
        alpha=first.alpha if spec.alpha is None else spec.alpha,
        alpha_schedule=parse_schedule("method.alpha_schedule", spec.alpha_schedule),
        temperature_schedule=parse_schedule(
            "method.temperature_schedule", spec.temperature_schedule
        ),
        order=spec.order,
        terms=() if first.need == "nothing" else terms,
    )
    _check_ends(recipe)
    return recipe


def _check_ends(recipe: Recipe) -> None:
    """Refuse schedules that raise alpha above 1 or lower a temperature to 0."""
    schedule = recipe.alpha_schedule
    highest = recipe.alpha * max(schedule.start, schedule.end)
    if highest > 1:
        raise SpecError(
            f"method.alpha_schedule: takes alpha to {highest:g}; the teacher's weight ends at 1"
        )
    scale = recipe.temperature_schedule
    for term in recipe.terms:
        if term.temperature is not None:
            ends = [1 + (term.temperature - 1) * end for end in (scale.start, scale.end)]
            if min(ends) <= 0:
                raise SpecError(
                    f"method.temperature_schedule: takes the temperature of {term.name!r} to "
                    f"{min(ends):g}; it must stay above 0"
                )


def _names(method: str) -> list[str]:
    """Return the canonical names of a method's terms."""
    parts = [name.strip() for name in method.split("+")]
    if not all(parts):
        raise SpecError(f"method {method!r}: a name is missing" + " next to '+'" * len(parts[1:2]))
    names = [METHODS.canonical(name) for name in parts]
    if len(set(names)) < len(names):
        raise SpecError(f"method {method!r}: names a term twice")
    if len(names) > 1 and any(METHODS.get(name).need == "nothing" for name in names):
        raise SpecError(f"method {method!r}: none has no teacher and joins no other method")
    return names


def _settings_of(names: list[str], spec: DistillSpec) -> dict[str, dict[str, Value]]:
    """Return the settings of each term: all of the recipe's, or those under the term's name."""
    if len(names) == 1:
        own = dict(spec.knobs)
        clash = [name for name in _OF_A_TERM if name in own]
        if clash:
            raise SpecError(f"method {spec.method!r}: {clash[0]!r} is given twice, once as a knob")
        own |= {} if spec.weight is None else {"weight": spec.weight}
        return {names[0]: own | {"weight_schedule": spec.weight_schedule}}
    if spec.weight is not None:
        whose = " or ".join(f"{name}.weight" for name in names)
        raise SpecError(f"method.weight: {spec.method!r} has several terms; set {whose}")
    found: dict[str, dict[str, Value]] = {name: {} for name in names}
    accepted = knobs_of(spec.method)
    for knob, value in spec.knobs.items():
        if knob not in accepted:
            hint = did_you_mean(knob, accepted)
            raise SpecError(
                f"method {spec.method!r}: unknown knob {knob!r}{hint}; it accepts "
                f"{', '.join(accepted)}"
            )
        name = next(name for name in names if knob.startswith(f"{name}."))
        found[name][knob.removeprefix(f"{name}.")] = value
    for settings in found.values():
        settings.setdefault("weight_schedule", spec.weight_schedule)
    return found


def _term(name: str, settings: Mapping[str, Value], spec: DistillSpec) -> TermSpec:
    method = METHODS.get(name)
    known = _arguments(method)
    knobs = {key: value for key, value in settings.items() if key not in _OF_A_TERM}
    _check_knobs(name, knobs, known)
    if "mapping" in settings and method.need not in _NEEDS_PAIRS:
        raise SpecError(f"method.{name}.mapping: {name!r} compares {method.need}, not stages")
    mapping = str(settings.get("mapping", spec.mapping or method.mapping))
    check_mapping(mapping)
    if mapping == ALL_PAIRS and method.need in _NEEDS_PAIRS and not method.is_pairwise:
        raise SpecError(
            f"method.mapping: {name!r} compares its pairs together; {ALL_PAIRS!r} is for methods "
            "whose loss is a sum over pairs"
        )
    if mapping == LOGITS and method.need != "stages":
        raise SpecError(
            f"method.mapping: {name!r} compares {method.need}; {LOGITS!r} is for methods that "
            "compare stages"
        )
    weight = settings.get("weight", method.weight)
    if isinstance(weight, bool | str) or not 0 <= weight < float("inf"):
        raise SpecError(f"method.{name}.weight: {weight!r} is not a number >= 0")
    schedule = parse_schedule(f"method.{name}.weight_schedule", str(settings["weight_schedule"]))
    term = TermSpec(
        name=name, method=method, weight=weight, schedule=schedule, mapping=mapping, knobs=knobs
    )
    term.loss()  # refuses impossible knobs
    return term


def _arguments(method: type[DistillLoss]) -> dict[str, object]:
    """Return the constructor's own arguments with their defaults, `_NEEDED` where it has none."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: argument.default
        for name, argument in inspect.signature(method).parameters.items()
        if argument.kind in named
    }


def _check_knobs(name: str, given: Collection[str], known: Mapping[str, object]) -> None:
    unknown = [f"{knob!r}{did_you_mean(knob, known)}" for knob in given if knob not in known]
    missing = [
        repr(knob) for knob, default in known.items() if default is _NEEDED and knob not in given
    ]
    problems = [f"unknown knob {', '.join(unknown)}"] if unknown else []
    problems += [f"missing knob {', '.join(missing)}"] if missing else []
    if problems:
        accepted = ", ".join(known) or "no knobs of its own"
        raise SpecError(f"method {name!r}: {'; '.join(problems)}; it accepts {accepted}")


def _refuse_settings(spec: DistillSpec) -> None:
    """Refuse settings of distillation under the method without a teacher."""
    given = {
        key: value
        for key, value in changed(spec).items()
        if key not in ("method", "knobs") and value not in (None, 0)
    }
    if given:
        listed = ", ".join(f"method.{key} = {value!r}" for key, value in given.items())
        raise SpecError(f"method {spec.method!r} has no teacher and does not use {listed}")
