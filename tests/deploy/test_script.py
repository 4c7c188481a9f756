"""predict.py answers raw validation files as the student answered what training decoded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdsearch.data import load
from kdsearch.data.raw import validation_files
from kdsearch.deploy.formats.onnx import load_file, to_onnx
from kdsearch.deploy.script import check_script, refuse_script, write_script
from kdsearch.errors import DataError
from kdsearch.models.model import Preprocess
from kdsearch.tasks.classification import Classification

SIZE = (40, 30)


def noise(bands: int, kind: type = np.uint8) -> np.ndarray:
    top = np.iinfo(kind).max
    shape = (SIZE[1], SIZE[0], bands) if bands > 1 else (SIZE[1], SIZE[0])
    return np.random.default_rng(0).integers(0, top, shape, dtype=kind)


def palette() -> Image.Image:
    return Image.fromarray(noise(3)).quantize(20)


def rotated() -> dict[str, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


# name of a file -> what makes the image, and how it is saved
KINDS = {
    "grey16.png": (lambda: Image.fromarray(noise(1, np.uint16)), {}),
    "grey16.tif": (lambda: Image.fromarray(noise(1, np.uint16)), {}),
    "grey32.tif": (lambda: Image.fromarray(noise(1, np.uint16).astype(np.int32)), {}),
    "cmyk.jpg": (lambda: Image.fromarray(noise(4), "CMYK"), {}),
    "cmyk.tif": (lambda: Image.fromarray(noise(4), "CMYK"), {}),
    "palette.png": (palette, {"transparency": 3}),
    "palette.gif": (palette, {"transparency": 3}),
    "la.png": (lambda: Image.fromarray(noise(2), "LA"), {}),
    "rgba.png": (lambda: Image.fromarray(noise(4)), {}),
    "rgba.webp": (lambda: Image.fromarray(noise(4)), {"lossless": True}),
    "turned.jpg": (lambda: Image.fromarray(noise(3)), rotated()),
    "turned.png": (lambda: Image.fromarray(noise(3)), rotated()),
    "one_bit.png": (lambda: Image.fromarray(noise(1)).convert("1"), {}),
    "one_bit.tif": (lambda: Image.fromarray(noise(1)).convert("1"), {"compression": "group4"}),
    "ycc.tif": (lambda: Image.fromarray(noise(3)).convert("YCbCr"), {}),
    "lab.tif": (lambda: Image.fromarray(noise(3)).convert("LAB"), {}),
    "grey.pgm": (lambda: Image.fromarray(noise(1)), {}),
    "large.jpg": (lambda: Image.fromarray(noise(3)).resize((900, 700)), {}),
}


class Pixels(nn.Module):
    """Logits that weigh every pixel, so that any other decoding changes them."""

    def __init__(self, size: int, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(channels * size * size, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.line(images.flatten(1))


def folder_of(root: Path) -> Path:
    """Write a set whose validation images are of every kind."""
    for name in "ab":
        (root / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(noise(3)).save(root / f"train/{name}/{number}.png")
    (root / "val/a").mkdir(parents=True)
    for name, (make, how) in KINDS.items():
        make().save(root / "val/a" / name, **how)
    return root


def exported(folder: Path, data, *, resolution: int, channels: int = 3):
    """Write a network and predict.py; return the file and the preprocessing of its input."""
    shown = Preprocess(
        mean=(0.4,) * channels, std=(0.25,) * channels, resolution=resolution, channels=channels
    )
    metadata = {
        "classes": json.dumps([str(n) for n in range(7)]),
        "mean": json.dumps(shown.mean),
        "std": json.dumps(shown.std),
        "image_size": json.dumps(data.size[0]),
        "resolution": str(resolution),
        "channels": str(channels),
        "fit": data.decoding.fit,
    }
    file = folder / "student.onnx"
    network = Pixels(resolution, channels).eval()
    to_onnx(network, input_shape=shown.input_shape, path=file, metadata=metadata)
    write_script(folder)
    return file, shown


def checked(folder: Path, data, *, resolution: int = 24, channels: int = 3):
    file, shown = exported(folder, data, resolution=resolution, channels=channels)
    script = folder / "predict.py"
    return check_script(script, file, load_file(file), shown, data, Classification("0123456"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("kinds") / "set")


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_script_reads_every_mode_depth_and_rotation_as_training_does(pictures, fit, tmp_path):
    data = load(str(pictures), cache_dir=pictures.parent, size=24, fit=fit)
    found = checked(tmp_path, data)
    assert found.n == len(KINDS)
    assert found.max_abs < 1e-4
    assert refuse_script(found, 0.999) == ""


def test_the_script_resizes_to_the_network_as_training_does(pictures, tmp_path):
    data = load(str(pictures), cache_dir=pictures.parent, size=24)
    assert checked(tmp_path, data, resolution=16).max_rel < 1e-3


def test_a_script_with_other_rules_is_refused(pictures, tmp_path):
    data = load(str(pictures), cache_dir=pictures.parent, size=24)
    file, shown = exported(tmp_path, data, resolution=24)
    script = tmp_path / "predict.py"
    text = script.read_text()
    assert "// 257" in text
    script.write_text(
        text.replace("// 257", "// 1").replace("Resampling.BILINEAR", "Resampling.BOX")
    )
    found = check_script(script, file, load_file(file), shown, data, Classification("0123456"))
    refusal = refuse_script(found, 0.999)
    assert "validation files differently than in training" in refusal


def test_images_in_memory_are_written_out_first(tmp_path):
    data = load("digits", cache_dir=tmp_path)
    found = checked(tmp_path, data, resolution=8, channels=1)
    assert (found.n, found.same) == (128, 1)
    assert found.max_abs < 1e-4


def test_of_many_files_every_kind_is_checked(tmp_path):
    root = folder_of(tmp_path / "set")
    for number in range(40):
        Image.fromarray(noise(3)).save(root / f"val/a/{number}.png")
    data = load(str(root), cache_dir=tmp_path, size=24)
    found = [path.name for _, path in validation_files(data, tmp_path, limit=20)]
    assert len(found) == 20
    assert set(found) == {*KINDS, "0.png", "1.png"}


def test_a_raw_file_that_vanished_is_named(pictures, tmp_path):
    data = load(str(pictures), cache_dir=pictures.parent, size=24)
    samples = [
        dataclasses.replace(each, content=tmp_path / "gone.png")
        for each in data.raw.source.splits["val"]
    ]
    source = dataclasses.replace(data.raw.source, splits={**data.raw.source.splits, "val": samples})
    data = dataclasses.replace(data, raw=dataclasses.replace(data.raw, source=source))
    with pytest.raises(DataError, match=r"gone\.png: cannot be read any more"):
        checked(tmp_path, data)


def test_one_tie_of_few_files_is_no_refusal():
    from kdsearch.deploy.formats.base import Agreement

    assert refuse_script(None, 0.999) == ""
    assert refuse_script(Agreement(same=0.9, max_abs=1, max_rel=0.5, n=10), 0.999) == ""
    assert refuse_script(Agreement(same=0.8, max_abs=1, max_rel=0.5, n=10), 0.999).startswith(
        "predict.py answers 2 of 10 validation files differently"
    )
    assert refuse_script(Agreement(same=0.8, max_abs=1, max_rel=1e-4, n=10), 0.999) == ""
