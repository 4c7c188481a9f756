"""Sentences on what a data set holds and what was left out; only what is true of it.

They are printed before anything is trained, so each is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from kdsearch.data.base import CLASSIFICATION, DETECTION, Source
from kdsearch.data.boxes import PADDING
from kdsearch.data.folder import few
from kdsearch.data.sizes import Decoding
from kdsearch.data.store import Stored
from kdsearch.errors import printable

_LOST = 0.1  # share of an image that is worth a line
_SMALL_BOX = 8  # px of the shorter side: one stride of the finest map, as a rule
_LABELLED = ("train", "val", "test")


def describe(
    source: Source,
    stored: Stored,
    rows: Mapping[str, Tensor],
    *,
    decoding: Decoding,
    subset: int | None,
) -> tuple[str, ...]:
    """Return the inventory. rows: those of the store that make each split, labelled only."""
    return tuple(printable(line) for line in _lines(source, stored, rows, decoding, subset))


def _lines(
    source: Source,
    stored: Stored,
    rows: Mapping[str, Tensor],
    decoding: Decoding,
    subset: int | None,
) -> Iterator[str]:
    labels = {split: stored.images.labels.index_select(0, rows[split]) for split in _LABELLED}
    kinds = f"{len(source.classes):,} classes; " if source.classes else ""
    yield f"Data {source.name}: {kinds}{', '.join(_counts(stored, rows, subset))}"
    if taken := [split for split in ("val", "test") if split not in stored.ranges]:
        yield f"Taken from train: {' and '.join(taken)}"
    if source.task == CLASSIFICATION:
        yield from _by_class("images", source.classes, labels)
        yield from _in_two_classes(stored, torch.cat([rows[split] for split in _LABELLED]))
    if source.task == DETECTION:
        yield from _about_boxes(source.classes, labels, stored.images.shape[2:])
    for first, second in combinations(_LABELLED, 2):
        yield from _in_two_splits(stored.digests, rows, first, second)
    if stored.cut >= _LOST:
        share = f"{100 * stored.cut:.0f} %"
        yield (
            f"--fit {decoding.fit} cuts {share} off the typical image; pad and squash keep "
            "all of it"
        )
    yield from source.notes
    for reason, names in source.left_out.items():
        yield f"Left out: {len(names):,} {reason} ({few(names)})"
    if stored.skipped:
        broken = [f"{name}: {reason}" for name, reason in stored.skipped.items()]
        yield f"Left out: {len(broken):,} unreadable ({few(broken, 2)})"


def _counts(stored: Stored, rows: Mapping[str, Tensor], subset: int | None) -> Iterator[str]:
    for split in _LABELLED:
        of = " (--subset)" if split == "train" and subset is not None else ""
        yield f"{split} {len(rows[split]):,}{of}"
    if "unlabeled" in stored.ranges:
        span = stored.ranges["unlabeled"]
        yield f"unlabeled {span.stop - span.start:,}"


def _about_boxes(
    classes: Sequence[str], labels: Mapping[str, Tensor], size: tuple[int, int]
) -> Iterator[str]:
    """Yield what is worth knowing of labels [N, M, 5] at a size (H, W)."""
    codes = {split: part[:, :, 4].long() for split, part in labels.items()}
    yield from _by_class("boxes", classes, {split: own[own >= 0] for split, own in codes.items()})
    empty = {split: int((own == PADDING).all(dim=1).sum()) for split, own in codes.items()}
    if any(empty.values()):
        listed = ", ".join(f"{split} {count:,}" for split, count in empty.items() if count)
        yield f"Images without boxes: {listed}"
    if ignored := sum(int((own < PADDING).sum()) for own in codes.values()):
        yield f"Ignored boxes, crowds or difficult: {ignored:,}"
    boxes = torch.cat([part[codes[split] >= 0] for split, part in labels.items()])
    sides = (boxes[:, 2:4] - boxes[:, :2]) * boxes.new_tensor([size[1], size[0]])
    shorter = sides.amin(dim=1)
    if small := int((shorter < _SMALL_BOX).sum()):
        yield f"{small:,} boxes are below {_SMALL_BOX} px at {size[1]} x {size[0]}"


def _by_class(what: str, classes: Sequence[str], labels: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield how many a class has, and which classes have none. labels: [N] by split."""
    counts = {split: part.bincount(minlength=len(classes)) for split, part in labels.items()}
    least, most = int(counts["train"].argmin()), int(counts["train"].argmax())
    low, high = int(counts["train"][least]), int(counts["train"][most])
    span = f"{low:,} ({classes[least]}) to {high:,} ({classes[most]})"
    yield f"{what.capitalize()} of a class in train: {f'{low:,}' if low == high else span}"
    for split, found in counts.items():
        missing = [classes[place] for place in (found == 0).nonzero().flatten().tolist()]
        if missing:
            never = {"train": "learned", "val": "validated", "test": "tested"}[split]
            yield f"{split} has no {what} of {few(missing)}, so they are never {never}"


def _in_two_splits(
    digests: Tensor, rows: Mapping[str, Tensor], first: str, second: str
) -> Iterator[str]:
    both = torch.isin(digests[rows[second]], digests[rows[first]])
    if equal := int(both.sum()):
        yield (
            f"{equal:,} of {len(both):,} images of {second} are also in {first}: "
            f"accuracy on {second} is too high"
        )


def _in_two_classes(stored: Stored, rows: Tensor) -> Iterator[str]:
    labels, digests = stored.images.labels.index_select(0, rows), stored.digests[rows]
    _, group = torch.unique(digests, return_inverse=True)
    low, high = (
        torch.zeros(int(group.max()) + 1, dtype=labels.dtype).scatter_reduce(
            0, group, labels, kind, include_self=False
        )
        for kind in ("amin", "amax")
    )
    if wrong := int((low != high)[group].sum()):
        yield f"{wrong:,} images are equal to an image of another class: one label is wrong"
