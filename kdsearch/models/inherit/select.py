"""Fit the tensors of a larger network of a family to a smaller one: uniform channels, fewer blocks.

A dimension takes evenly spaced channels of the larger one (Xu et al., ICLR 2024,
arXiv:2311.18823), query, key and value whole heads, a larger kernel its centre. Of more blocks than
the student has, the first and evenly spaced others are taken. What does not fit stays random.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from kdsearch.models.students._vit_parts import HEAD

_BLOCK = re.compile(r"(?P<row>stages\.\d+|blocks)\.(?P<block>\d+)\.(?P<rest>.+)")
_HEADS_OUT = ("qkv.weight", "qkv.bias")
_HEADS_IN = "projection.weight"


def fitted(own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `source` that fit the network of `own`, by the names of that network.

    Both have the names of one family. Equal shapes give the tensors as they are.
    """
    mine, theirs = _blocks(own), _blocks(source)
    found = {}
    for name, tensor in own.items():
        place = _name_in_source(name, mine, theirs)
        given = None if place is None else source.get(place)
        chosen = None if given is None else _chosen(name, tensor, given)
        if chosen is not None:
            found[name] = chosen
    return found


def uniform(count: int, of: int) -> Tensor:
    """Return `count` evenly spaced indices below `of`; every k-th where it divides."""
    if of % count == 0:
        return torch.arange(count) * (of // count)
    return torch.linspace(0, of - 1, count).round().long()


def _blocks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of blocks of each row."""
    counts: dict[str, int] = {}
    for name in state:
        if (found := _BLOCK.fullmatch(name)) is not None:
            counts[found["row"]] = max(counts.get(found["row"], 0), int(found["block"]) + 1)
    return counts


def _name_in_source(name: str, mine: Mapping[str, int], theirs: Mapping[str, int]) -> str | None:
    found = _BLOCK.fullmatch(name)
    if found is None:
        return name
    row, block = found["row"], int(found["block"])
    own, other = mine[row], theirs.get(row, 0)
    if 1 < own < other:
        block = round(block * (other - 1) / (own - 1))
    return f"{row}.{block}.{found['rest']}" if block < other else None


def _chosen(name: str, own: Tensor, given: Tensor) -> Tensor | None:
    """Return the part of a tensor that has the shape of `own`, None where it has none."""
    if own.ndim != given.ndim or any(a > b for a, b in zip(own.shape, given.shape, strict=True)):
        return None
    for axis, (count, of) in enumerate(zip(own.shape, given.shape, strict=True)):
        if count == of:
            continue
        if axis > 1:  # a kernel
            if (of - count) % 2:
                return None
            given = given.narrow(axis, (of - count) // 2, count)
        else:
            given = given.index_select(axis, _channels(name, axis, count, of))
    return given.clone()


def _channels(name: str, axis: int, count: int, of: int) -> Tensor:
    parts = 3 if axis == 0 and name.endswith(_HEADS_OUT) else 1
    if parts == 1 and not (axis == 1 and name.endswith(_HEADS_IN)):
        return uniform(count, of)
    heads = uniform(count // parts // HEAD, of // parts // HEAD)
    inside = (heads[:, None] * HEAD + torch.arange(HEAD)).flatten()
    return torch.cat([part * (of // parts) + inside for part in range(parts)])
