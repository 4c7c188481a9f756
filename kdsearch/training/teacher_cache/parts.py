"""The parts of a teacher's outputs: split into tensors, joined again, and grouped into files.

Groups are computed by separate forward passes where passes differ (attention or gradients may
switch a network's kernels), so that the needs of one trial never change the last bits of what
another one reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.models.features import Outputs


class View(NamedTuple):
    """A view of the images: its augmentation and its number."""

    augment: Augment
    number: int


Parts: TypeAlias = dict[str, tuple[Tensor, ...]]
ALWAYS = frozenset({"logits", "embedding"})
LARGE = frozenset({"stages", "attention", "gradient", "edges"})
BOXES = frozenset({"boxes"})  # found once, on the plain images
GROUPS: Mapping[str, frozenset[str]] = {
    "answers": ALWAYS,
    "boxes": BOXES,
    **{part: frozenset({part}) for part in sorted(LARGE)},
}
_PASSES = (ALWAYS | {"stages", "edges"}, frozenset({"attention"}), frozenset({"gradient"}))


def passes_for(parts: frozenset[str]) -> list[frozenset[str]]:
    """Return the parts grouped by forward pass."""
    return [parts & group for group in _PASSES if parts & group]


def split(outputs: Outputs, parts: frozenset[str]) -> Parts:
    """Return the tensors of each part; a part may be empty."""
    found = {name: getattr(outputs, name) for name in parts}
    return {
        name: (value,) if isinstance(value, Tensor) else tuple(value or ())
        for name, value in found.items()
    }


def join(parts: Parts, index: Tensor) -> Outputs:
    """Return the outputs that `split` took apart."""
    return Outputs(
        logits=parts["logits"][0],
        embedding=parts["embedding"][0],
        stages=parts.get("stages", ()),
        attention=parts.get("attention", ()),
        gradient=parts["gradient"][0] if "gradient" in parts else None,
        index=index,
        edges=parts["edges"][0] if "edges" in parts else None,
    )


def size_of(parts: Parts) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensors in parts.values() for tensor in tensors)
