"""Settings of `equal_spend`: the images that all arms read, the limit, the spend and the bars.

The images are written once as Parquet files of PNGs, so that the command and its peers read the
same training, validation and test images, whatever the seed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from kdsearch import data as datasets
from kdsearch.data.base import ImageData, ImageSet
from kdsearch.data.splits import choose

BATCH = 50  # images in a step of every peer
TRIALS = 12  # trainings among which Optuna's peer divides the spend


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Least mean difference from a peer, in points of test accuracy.

    never_below: each seed's difference must be at least minus the noise of the test images.
    """

    peer: str
    least: float
    never_below: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms have in common.

    source, teacher_weights: below the folder of data sets; a source without `/` is known by name.
    train, val, test: number of images. test_split: the source's split that test images come from;
    the other two give the rest. spend: epochs over the training images. depth: of resnet peers.
    """

    source: str
    size: int | None = None
    train: int
    val: int
    test: int
    test_split: str = "test"
    mflops: float
    spend: int
    teacher: str
    teacher_weights: str | None = None
    teacher_epochs: int | None = None
    depth: int = 3
    bars: tuple[Bar, ...] = ()

    def __post_init__(self) -> None:
        if self.spend % TRIALS:
            raise ValueError(f"a spend of {self.spend} epochs is not {TRIALS} equal trainings")

    @property
    def needs_files(self) -> bool:
        """Whether the source is a path."""
        return "/" in self.source

    def fields(self, folder: Path, below: Path | None, seed: int) -> Mapping[str, object]:
        """Return the options of a study, by the names of StudyConfig's fields.

        folder: with the images that `write_images` left. below: the folder of data sets.
        """
        weights = self.teacher_weights and str(_below(below, self.teacher_weights))
        given = {
            "data": str(folder),
            "teacher": self.teacher,
            "teacher_weights": weights,
            "teacher_epochs": self.teacher_epochs,
            "budget_mflops": self.mflops,
            "seed": seed,
        }
        return {name: value for name, value in given.items() if value is not None}


_CIFAR_BARS = (
    Bar(peer="widest", least=2, never_below=True),
    Bar(peer="oracle", least=-1),
    Bar(peer="optuna", least=5),
)
_CIFAR_SMALL = Setting(
    source="./cifar10",
    train=1500,
    val=1000,
    test=3000,
    mflops=4,
    spend=48,
    teacher="cifar_resnet20",
    teacher_weights="cifar10/teachers/resnet20.safetensors",
    bars=_CIFAR_BARS,
)
SETTINGS: Mapping[str, Setting] = {
    "cifar-small": _CIFAR_SMALL,
    "cifar-large": replace(_CIFAR_SMALL, train=5000, mflops=10, spend=24),
    # The teacher knows CIFAR-10 and no other image; it sees TrashNet's at 32 px.
    "trashnet": Setting(
        source="./trashnet",
        size=96,
        train=1000,
        val=200,
        test=334,
        test_split="val",
        mflops=5,
        spend=60,
        teacher="cifar_resnet20",
        teacher_weights="cifar10/teachers/resnet20.safetensors",
        teacher_epochs=20,
        depth=4,
        bars=(Bar(peer="widest", least=0),),
    ),
    "tiny": Setting(
        source="digits",
        train=1200,
        val=100,
        test=200,
        mflops=0.3,
        spend=24,
        teacher="auto",
        teacher_epochs=2,
    ),
}


def write_images(setting: Setting, folder: Path, below: Path | None) -> None:
    """Write the setting's images into `folder` as train.parquet, val.parquet and test.parquet."""
    source = str(_below(below, setting.source)) if setting.needs_files else setting.source
    folder.mkdir(parents=True)
    data = datasets.load(source, cache_dir=folder.with_suffix(".source"), size=setting.size)
    for split, images in chosen(setting, data).items():
        _write(folder / f"{split}.parquet", images, data.classes)


def chosen(setting: Setting, data: ImageData) -> dict[str, ImageSet]:
    """Return the images of each split, stratified, pairwise disjoint, the same at every call."""
    splits = {"train": data.labelled, "val": data.val, "test": data.test}
    held_out = splits.pop(setting.test_split)
    rest = _joined(*splits.values())
    val, rest = _split(rest, setting.val, data.num_classes)
    train, _ = _split(rest, setting.train, data.num_classes)
    test, _ = _split(held_out, setting.test, data.num_classes)
    return {"train": train, "val": val, "test": test}


def _joined(one: ImageSet, other: ImageSet) -> ImageSet:
    """Return two sets of one store as one."""
    assert one.rows is not None
    assert other.rows is not None
    return ImageSet(
        one.images, torch.cat([one.labels, other.labels]), torch.cat([one.rows, other.rows])
    )


def _split(images: ImageSet, count: int, num_classes: int) -> tuple[ImageSet, ImageSet]:
    index = choose(images.labels, count, seed=0, num_classes=num_classes)
    is_left = torch.ones(len(images), dtype=torch.bool)
    is_left[index] = False
    return images.take(index), images.take(is_left.nonzero().flatten())


def _write(file: Path, images: ImageSet, classes: tuple[str, ...]) -> None:
    features = {"info": {"features": {"label": {"names": classes}}}}
    table = pa.table(
        {
            "img": [{"bytes": _png(image)} for image in images.at(slice(None))],
            "label": images.labels.numpy(),
        }
    )
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), file)


def _png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, "PNG")
    return file.getvalue()


def _below(folder: Path | None, name: str) -> Path:
    assert folder is not None, name
    return folder / name
