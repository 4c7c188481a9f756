"""Labelled images, however the user has them, as uint8 tensors ready to train on.

A source is `digits`, a torchvision set by name, a folder (`train/CLASS/*`, images with
masks or boxes), Parquet files or a user's function. It is decoded once; splits it lacks are taken
from train; images without labels join train's. Nothing is imported before `load` needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsearch.data.sizes import FITS, MAX_MEGAPIXELS, Decoding
from kdsearch.errors import DataError, KDSearchError, SpecError, did_you_mean, explained

if TYPE_CHECKING:
    from torch import Tensor

    from kdsearch.data.base import ImageData, ImageSet, Source
    from kdsearch.data.store import Stored


LARGE = 64
"""From this side in pixels, views are random resized crops; smaller images are padded."""
# TrashNet at 64 px, 20 epochs of a small resnet without a teacher, one seed: 60.5 % on validation,
# 61.4 with padding, with a standard error of 2.7; both took 38 s of CPU.
LEAST_AREA = 0.35


def names() -> tuple[str, ...]:
    """Return the data sets that are known by name."""
    from kdsearch.data.vision import SETS

    return ("digits", *sorted(SETS))


def load(
    source: str,
    *,
    cache_dir: Path,
    size: int | None = None,
    fit: str = FITS[0],
    max_megapixels: float = MAX_MEGAPIXELS,
    seed: int = 0,
    subset: int | None = None,
    flip: bool | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
) -> ImageData:
    """Return the images of `source`, decoded under `cache_dir` at the first call.

    source: one of `names()` (`./digits` is a folder), a folder, a Parquet file, or a function
    `FILE.py:function` or `package.module:function` that returns a `data.base.Source`.
    size, fit, max_megapixels: see `Decoding`. seed: of the splits taken from train, and of
    `subset`, the number of training images to keep besides the unlabelled.
    flip: whether views may be mirrored; None leaves it to the source. image_column, label_column:
    of Parquet files. task: of a folder with labels for several. Raises DataError.
    """
    import torch

    from kdsearch.data.base import Augment, ImageData, Raw
    from kdsearch.data.inventory import describe
    from kdsearch.data.store import open_store

    found = _find(source, cache_dir, task, {"image": image_column, "label": label_column})
    if task not in (None, found.task):
        raise SpecError(f"--task {task}: the labels of {source} are for {found.task}")
    fit = "pad" if found.is_padded else fit
    decoding = Decoding(side=size, fit=fit, max_megapixels=max_megapixels)
    stored = open_store(found, cache_dir=cache_dir, decoding=decoding)
    index = _arrange(found, stored, seed=seed, subset=subset)
    side, flip = min(stored.images.shape[2:]), found.flip if flip is None else flip
    augment = Augment(pad=side // 8, flip=flip)
    if side >= LARGE and not found.is_padded:
        augment = Augment(pad=0, flip=flip, area=LEAST_AREA)
    # Recipes may change policy and mix later, so that the key has none.
    area = "" if augment.area is None else f", area={augment.area}"
    start = f"({stored.key!r}, Augment(pad={augment.pad}, flip={augment.flip}{area}))"
    digest = blake2b(start.encode(), digest_size=16)
    for split, chosen in sorted(index.items()):
        digest.update(split.encode() + chosen.numpy().tobytes())
    key = digest.hexdigest()
    rows = {name: torch.arange(part.start, part.stop) for name, part in stored.ranges.items()}
    rows |= {split: rows["train"].index_select(0, chosen) for split, chosen in index.items()}
    inventory = describe(found, stored, rows, decoding=decoding, subset=subset)
    labelled = _taken(stored.images, rows["train"])
    mean, std = _statistics(labelled, stored.folder / f"statistics-{key}")
    if "unlabeled" in rows:
        rows["train"] = torch.cat([rows["train"], rows["unlabeled"]])
    return ImageData(
        name=found.name,
        key=key,
        classes=found.classes,
        train=_taken(stored.images, rows["train"]),
        val=_taken(stored.images, rows["val"]),
        test=_taken(stored.images, rows["test"]),
        mean=mean,
        std=std,
        augment=augment,
        skipped=tuple(stored.skipped),
        task=found.task,
        decoding=decoding,
        raw=Raw(source=found, ranges=stored.ranges, skipped=frozenset(stored.skipped)),
        inventory=inventory,
        colours=found.colours,
    )


def _taken(images: ImageSet, rows: Tensor) -> ImageSet:
    """Return the images at `rows` of stored ones; labels of neighbours are not copied."""
    from kdsearch.data.base import ImageSet

    first, last = int(rows[0]), int(rows[-1])
    is_range = last - first + 1 == len(rows) and bool((rows.diff() == 1).all())
    labels = images.labels[first : last + 1] if is_range else images.labels.index_select(0, rows)
    return ImageSet(images.images, labels, rows)


def _statistics(images: ImageSet, kept: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, remembered in the file `kept`."""
    import json

    from kdsearch.data.seen import recall, remember
    from kdsearch.data.statistics import channel_statistics

    known = recall(kept)
    if known is not None:
        mean, std = json.loads(known)
        return tuple(mean), tuple(std)
    found = channel_statistics(images)
    remember(kept, json.dumps(found))
    return found


def _arrange(source: Source, stored: Stored, *, seed: int, subset: int | None) -> dict[str, Tensor]:
    """Return the rows of the stored train that make each split which is not taken as it is."""
    from kdsearch.data.splits import carve, choose

    given = stored.images.labels[stored.ranges["train"]]
    labels = _strata(given)
    classes = source.classes if labels is given and source.classes else (source.name,)
    missing = {"val", "test"} - stored.ranges.keys()
    index: dict[str, Tensor] = {}
    try:
        if missing:
            index = carve(
                labels,
                missing=missing,
                share=source.held_out,
                seed=seed,
                classes=classes,
            )
            labels = labels.index_select(0, index["train"])
        if subset is not None:
            kept = choose(labels, subset, seed=seed, num_classes=len(classes))
            index["train"] = index["train"].index_select(0, kept) if missing else kept
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None
    return index


def _strata(labels: Tensor) -> Tensor:
    """Return what splits are stratified by, int64 [N]: classes, or one stratum for other labels."""
    import torch

    if labels.ndim == 1 and not labels.is_floating_point():
        return labels
    return torch.zeros(len(labels), dtype=torch.int64)


def _find(
    name: str, cache_dir: Path, task: str | None, columns: Mapping[str, str | None]
) -> Source:
    """Return the source that the user means by `name`. columns: of Parquet files."""
    if name == "digits":
        from kdsearch.data import digits

        source = digits.read()
    elif name in names():
        from kdsearch.data import vision

        source = vision.read(name, downloads=cache_dir / "downloads")
    else:
        from kdsearch.data import parquet

        try:
            path = Path(name).expanduser()
            if not path.exists() and ":" not in name:
                raise _not_found(name, path)
            if not path.exists():
                source = _own(name)
            elif (read := _reader(path, task)) is None:
                raise _not_data(path)
            elif read is parquet.read:
                return parquet.read(path, **columns)
            else:
                source = read(path)
        except (OSError, RuntimeError) as error:  # no permission, a name too long, no such home
            raise DataError(f"data: {name!r} cannot be read: {error}") from error
    if any(columns.values()):
        raise SpecError(
            f"--image-column and --label-column are for Parquet and Arrow files; {name} is none"
        )
    return source


def _own(name: str) -> Source:
    """Call the user's function `FILE.py:function`, which returns a Source. Raises DataError."""
    from kdsearch.data.base import Source
    from kdsearch.registry import import_object, neighbours

    function = import_object(name, what="data")
    try:
        with neighbours(name):
            source = function() if callable(function) else function
    except KDSearchError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"data: {name!r} fails: {explained(error)}") from error
    if not isinstance(source, Source):
        raise DataError(f"data: {name!r} gives {type(source).__name__}, not a data.base.Source")
    return source


def _reader(path: Path, task: str | None = None) -> Callable[..., Source] | None:
    """Return what reads the layout of an existing path, or None if it is in no layout.

    Raises DataError for labels of several tasks where none is chosen.
    """
    from kdsearch.data import (
        ade20k,
        cityscapes,
        coco,
        folder,
        masks,
        parquet,
        tables,
        voc,
        voc_boxes,
        yolo,
    )
    from kdsearch.data.base import DETECTION, SEGMENTATION

    if path.is_file():
        if tables.is_table(path):
            return parquet.read
        return yolo.read if yolo.is_layout(path) else None
    layouts: tuple[tuple[str, Any], ...] = (
        *((SEGMENTATION, module) for module in (ade20k, masks, voc, cityscapes)),
        *((DETECTION, module) for module in (coco, yolo, voc_boxes)),
    )
    present = [(name, module) for name, module in layouts if module.is_layout(path)]
    found: list[Callable[..., Source]] = [m.read for name, m in present if task in (None, name)]
    tasks = dict.fromkeys(name for name, _ in present)
    if task is None and len(tasks) > 1:
        flags = " or ".join(f"--task {name}" for name in tasks)
        raise DataError(f"{path}: has labels for {' and '.join(tasks)}; choose {flags}")
    if found:
        return found[0]
    train = folder.find_splits(path).get("train")
    if train is not None and not any(map(tables.is_table, train.iterdir())):
        return folder.read
    if tables.find(path):
        return parquet.read
    if tasks:
        raise SpecError(f"--task {task}: the labels of {path} are for {' and '.join(tasks)}")
    return None


def _not_found(name: str, path: Path) -> DataError:
    if path.parent != Path() or name != path.name or path.suffix:
        parent = path.parent
        siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        return DataError(f"data: there is no {str(path)!r}{did_you_mean(path.name, siblings)}")
    plain = name.lower().replace("-", "").replace("_", "")
    return DataError(
        f"unknown data {name!r}{did_you_mean(plain, names())}; known: {', '.join(names())}; "
        "or a path to a folder (train/CLASS/*.jpg) or to Parquet files"
    )


def _not_data(path: Path) -> DataError:
    """Return the error of a path that exists but is in none of the layouts."""
    from kdsearch.data.folder import SPLITS, is_image

    wanted = "expected train/CLASS/*.jpg (and val/, test/), or train*.parquet"
    if path.is_file():
        return DataError(
            f"{path}: is a file, but not a Parquet or Arrow file; {wanted} in a folder"
        )
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if not entries:
        return DataError(f"{path}: the folder is empty; {wanted}")
    folders = [entry for entry in entries if entry.is_dir()]
    if (path / "labels").is_dir():
        return DataError(
            f"{path}: has labels but no data.yaml; boxes of YOLO need one, with "
            "'train: images/train' and 'names: [...]'"
        )
    near = [folder for folder in folders if _reader(folder)]
    if path.name.lower() in SPLITS["train"]:
        near.append(path.parent)
    if near:
        return DataError(f"{path}: {wanted}; did you mean {' or '.join(map(str, near[:3]))}?")
    classes = [
        folder.name for folder in folders if any(is_image(file.name) for file in folder.iterdir())
    ]
    if classes or any(is_image(entry.name) for entry in entries):
        where = f"in {', '.join(classes[:3])}" if classes else "directly"
        return DataError(
            f"{path}: holds images {where} but no 'train' folder; {wanted}: "
            f"move each class's images to {path / 'train'}/CLASS/"
        )
    return DataError(f"{path}: holds neither images nor Parquet files; {wanted}")
