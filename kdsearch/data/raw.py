"""The user's own files of validation images, for a check of what reads files itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path

from PIL import Image, ImageOps

from kdsearch.data.base import ImageData, Sample
from kdsearch.data.pixels import FORMATS, strict_pillow

_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_ORIENTATION = 0x0112


def validation_files(data: ImageData, folder: Path, *, limit: int) -> Iterator[tuple[int, Path]]:
    """Yield (place among the validation images, file) of at most `limit` of them.

    Files of every kind (suffix, mode, orientation) come first. Images that are no files are written
    to `folder`: encoded ones as they are, others without loss.
    """
    assert data.raw is not None
    assert data.val.rows is not None
    places = {row: place for place, row in enumerate(data.val.rows.tolist())}
    for split, span in data.raw.ranges.items():
        rows = [row for row in places if span.start <= row < span.stop]
        if not rows:
            continue
        samples = data.raw.source.splits[split]
        kept = (sample for sample in samples if sample.name not in data.raw.skipped)
        if isinstance(samples, Sequence):
            listed = list(kept)
            chosen = _of_each_kind([(row, listed[row - span.start]) for row in rows], limit)
        else:  # each is read, so the search ends early
            first = set(rows[:limit])
            numbered = islice(enumerate(kept, span.start), max(first) + 1 - span.start)
            chosen = [pair for pair in numbered if pair[0] in first]
        for row, sample in chosen:
            yield places[row], _as_file(sample, folder / f"{row}")


def _of_each_kind(pairs: list[tuple[int, Sample]], limit: int) -> list[tuple[int, Sample]]:
    """Return at most `limit` pairs, the kinds of files in turn."""
    if len(pairs) <= limit:
        return pairs
    kinds = defaultdict(list)
    for pair in pairs:
        kinds[_kind(pair[1])].append(pair)
    turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [pair for pair in turns if pair is not None][:limit]


def _kind(sample: Sample) -> tuple[object, ...]:
    if not isinstance(sample.content, Path):
        return ()
    with strict_pillow(), Image.open(sample.content, formats=FORMATS) as image:
        return sample.content.suffix.lower(), image.mode, image.getexif().get(_ORIENTATION)


def _as_file(sample: Sample, path: Path) -> Path:
    if isinstance(sample.content, Path):
        return sample.content
    if isinstance(sample.content, bytes):
        path.write_bytes(sample.content)
        return path
    image = ImageOps.exif_transpose(sample.content)
    path = path.with_suffix(".png" if image.mode in _PNG else ".tiff")
    image.save(path)
    return path
