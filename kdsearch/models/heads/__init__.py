"""Heads of networks that answer at each position, from the maps of a body.

A head is one file here, or a user's `package.module:Class`. Listing the names imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdsearch.data.base import DETECTION, SEGMENTATION
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.registry import Registry
from kdsearch.space import Choice, Float, Int, Params

if TYPE_CHECKING:
    from kdsearch.models.heads.base import Head

DEFAULTS = {SEGMENTATION: "lraspp", DETECTION: "gfl"}
HEADS: Registry[Head] = Registry(
    "kdsearch.models.heads", "kdsearch.models.heads.base:Head", what="head"
)
PREFIX = "head."  # of a head's knobs among those of a student
OUTPUT_STRIDES = (8, 16, 32)
_COMMON = ("kind", "output_stride")  # knobs that belong to no head


def names() -> tuple[str, ...]:
    """Return the names of the built-in heads in alphabetical order."""
    return HEADS.names()


def knobs_of(kind: str) -> Mapping[str, Float | Int | Choice]:
    """Return the knobs of a head and of the body under it, with their default search ranges.

    Raises SpecError.
    """
    return {**HEADS.get(kind).knobs, "output_stride": Choice(options=OUTPUT_STRIDES)}


def output_stride_of(knobs: Params) -> int | None:
    """Return the largest stride that the maps of a body may have, None where no knob limits it.

    Deeper stages dilate their convolutions in place of striding. Raises SpecError.
    """
    value = _named(knobs).get("output_stride")
    if value is None or (value in OUTPUT_STRIDES and isinstance(value, int)):
        return value
    known = ", ".join(map(str, OUTPUT_STRIDES))
    raise SpecError(f"head.output_stride: {value!r} is not one of {known}")


def split(knobs: Params) -> tuple[Params, Params]:
    """Return the knobs of a student's body, and those of its head without their prefix."""
    body = {name: value for name, value in knobs.items() if not name.startswith(PREFIX)}
    return body, {n.removeprefix(PREFIX): v for n, v in knobs.items() if n.startswith(PREFIX)}


def task_of(knobs: Params) -> str:
    """Return the task of the head with these knobs. Raises SpecError for an unknown kind."""
    return HEADS.get(str(knobs["kind"])).task if "kind" in knobs else SEGMENTATION


def build(
    knobs: Params,
    maps: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    *,
    task: str = SEGMENTATION,
) -> Head:
    """Build a head on maps of these channels and strides, shallow to deep. Raises SpecError.

    knobs: `kind` and the knobs of that head, which may stand under its name: `fpn.channels`.
    """
    own = _named(knobs)
    kind = str(own.get("kind", DEFAULTS[task]))
    family, known = HEADS.get(kind), knobs_of(kind)
    if family.task != task:
        raise SpecError(f"head {kind!r} is for {family.task}, not for {task}")
    own = {name: value for name, value in own.items() if name not in _COMMON}
    if unknown := [name for name in own if name not in known]:
        hints = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        raise SpecError(f"head {kind!r} has no knob {hints}; it accepts {', '.join(known)}")
    return family(maps, strides, num_classes, **own)


def _named(knobs: Params) -> Params:
    """Return the knobs of a head without the name of its kind before them."""
    for kind in [str(knobs["kind"])] if "kind" in knobs else DEFAULTS.values():
        knobs = {name.removeprefix(f"{kind}."): value for name, value in knobs.items()}
    return knobs
