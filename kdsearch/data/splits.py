"""Choose which images train, validate and test: stratified, seeded, the same on every machine.

A split is an ascending index; what is chosen depends on the seed, the labels and their order.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from kdsearch.data.folder import few
from kdsearch.data.views import counter_hash
from kdsearch.errors import DataError

MAX_HELD_OUT = 5000


def carve(
    labels: Tensor, *, missing: Collection[str], share: float, seed: int, classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the index of `train` and of each of the missing `val`, `test`, pairwise disjoint.

    Each takes `share` of every class: at most 5,000 images, at least one a class. Test is
    taken from one end of a shuffled class and val from the other: neither depends on the other.
    A class of too few images to give one to each stays in train. Raises DataError where less than
    two classes have enough.
    """
    groups = _shuffled(labels, seed, len(classes), "carve")
    least = 1 + len(missing)
    counts = [len(group) if len(group) >= least else 0 for group in groups]
    if sum(map(bool, counts)) < min(2, sum(len(group) > 0 for group in groups)):
        small = [
            f"{name!r} ({len(group)})"
            for name, group in zip(classes, groups, strict=True)
            if 0 < len(group) < least
        ]
        raise DataError(
            f"too few images to take {' and '.join(sorted(missing))} from train: "
            f"{few(small, 5)}; a class needs {least}, or give the splits as folders or files of "
            "their own"
        )
    wanted = sum(max(1, round(share * count)) for count in counts if count)
    present = sum(count > 0 for count in counts)
    sizes = _apportion(counts, max(present, min(MAX_HELD_OUT, wanted)))
    parts: dict[str, list[Tensor]] = {"train": [], "test": [], "val": []}
    for group, size in zip(groups, sizes, strict=True):
        first = size if "test" in missing else 0
        last = len(group) - size if "val" in missing else len(group)
        parts["test"].append(group[:first])
        parts["train"].append(group[first:last])
        parts["val"].append(group[last:])
    return {split: _join(own) for split, own in parts.items() if split in {"train", *missing}}


def choose(labels: Tensor, count: int, *, seed: int, num_classes: int) -> Tensor:
    """Return the ascending index of `count` images, each class in proportion and at least one.

    Raises DataError when there are less images than that, or more classes.
    """
    groups = _shuffled(labels, seed, num_classes, "subset")
    present = sum(len(group) > 0 for group in groups)
    if not present <= count <= len(labels):
        raise DataError(
            f"subset: {count} images cannot be kept of {len(labels)} in {present} classes; "
            f"choose {present} to {len(labels)}"
        )
    sizes = _apportion([len(group) for group in groups], count)
    return _join([group[:size] for group, size in zip(groups, sizes, strict=True)])


def _shuffled(labels: Tensor, seed: int, num_classes: int, purpose: str) -> list[Tensor]:
    """Return each class's indices in an order that the seed decides."""
    order = counter_hash(torch.arange(len(labels)), seed, purpose).argsort(stable=True)
    by_label = labels.index_select(0, order).argsort(stable=True)
    order = order.index_select(0, by_label)  # `[]` is slow on a busy CPU: it waits for threads
    return list(torch.split(order, torch.bincount(labels, minlength=num_classes).tolist()))


def _join(groups: list[Tensor]) -> Tensor:
    return torch.cat(groups).sort().values


def _apportion(counts: list[int], total: int) -> list[int]:
    """Split `total` in proportion to `counts` (largest remainders), at least 1 where count > 0.

    Requires as many as there are counts above 0, at most their sum.
    """
    whole = sum(counts)
    sizes = [max(min(count, 1), total * count // whole) for count in counts]
    remainders = [total * count % whole if total * count >= whole else 0 for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -remainders[i])
    for i in by_remainder[: max(0, total - sum(sizes))]:
        sizes[i] += 1
    while sum(sizes) > total:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes
