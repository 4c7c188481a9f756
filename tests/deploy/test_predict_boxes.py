"""predict.py finds the boxes of a detector as torchvision does, and shows them on the image."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn
from torchvision.ops import batched_nms

from kdsearch.data.boxes import Boxes
from kdsearch.deploy import predict
from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.deploy.script import write_script

COLOURS = [[220, 40, 40], [40, 80, 220], [230, 200, 40]]


def metadata(canvas: tuple[int, int]) -> dict[str, str]:
    return {
        "task": "detection",
        "classes": '["square", "disc", "ring"]',
        "colours": json.dumps(COLOURS),
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.25, 0.25, 0.25]",
        "image_size": json.dumps(canvas),
        "resolution": json.dumps(canvas),
        "channels": "3",
        "fit": "pad",
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [0, 1, 40, 600])
def test_suppression_equals_that_of_torchvision(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 60, (count, 2))], axis=1)
    scores, labels = generator.uniform(size=count), generator.integers(0, 3, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), predict.OVERLAP)
    found = predict.suppress(boxes, scores, labels)
    assert found.tolist() == expected[: predict.MOST].tolist()
    assert count < 600 or len(found) < count / 2


def test_one_place_may_show_two_classes_and_low_scores_are_left_out() -> None:
    answer = np.array(
        [[10, 10, 30, 30, 0.9, 0.1, 0.6], [11, 10, 30, 30, 0.8, 0.2, 0.3]], np.float32
    )
    answer[:, :4] /= 64
    known = metadata((64, 64))
    boxes, scores, labels = predict.boxes_of(answer, known, (64, 64))
    assert labels.tolist() == [0, 2]
    assert np.allclose(scores, [0.9, 0.6])
    assert np.allclose(boxes, [[10, 10, 30, 30]] * 2)
    assert predict.boxes_of(answer, known, (64, 64), 0.7)[2].tolist() == [0]
    assert len(predict.boxes_of(answer, known, (64, 64), 0.95)[0]) == 0
    assert sorted(predict.boxes_of(answer, known, (64, 64), 0.05)[2].tolist()) == [0, 1, 2]


def stored(size: tuple[int, int], turn: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    Image.new("RGB", size).save(file := io.BytesIO(), "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(("size", "turn"), [((200, 90), 1), ((90, 200), 6), ((64, 64), 1)])
def test_boxes_return_to_the_pixels_of_the_upright_image(size: tuple[int, int], turn: int) -> None:
    shape = size[::-1] if turn == 6 else size
    true = (3.0, 5.0, 60.0, 50.0)
    label = Boxes([(*true, 1)], 1, shape[::-1]).decode(stored(size, turn), (96, 128))
    answer = np.concatenate([label[:, :4], [[0, 0.5, 0]]], axis=1)
    boxes, _, labels = predict.boxes_of(answer, metadata((96, 128)), shape)
    assert np.allclose(boxes, [true], atol=1e-3)
    assert labels.tolist() == [1]


def test_boxes_are_clipped_to_the_image_and_vanish_in_the_padding() -> None:
    # An image of 60 x 20 lies in rows 20 to 40 of a canvas of 60 x 60.
    answer = np.array([[-0.25, 0.25, 0.5, 0.5, 0.9], [0.1, 0.05, 0.8, 0.25, 0.9]], np.float32)
    boxes, scores, labels = predict.boxes_of(answer, metadata((60, 60)), (60, 20))
    assert boxes.tolist() == [[0, 0, 30, 10]]
    assert (len(scores), len(labels)) == (1, 1)


class Fixed(nn.Module):
    """Two objects that every image shows, and one of a low score."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = [
            [8.0, 24, 40, 56, 0.1, 0.9, 0],
            [4, 20, 20, 40, 0.2, 0, 0],
            [30, 30, 60, 44, 0, 0, 0.4],
        ]
        sides = torch.tensor([64.0] * 4 + [1.0] * 3)
        return torch.tensor(rows) / sides + 0 * image.mean((1, 2, 3))[:, None, None]


def test_the_script_prints_and_draws_the_boxes(tmp_path: Path) -> None:
    file = tmp_path / "best" / "student.onnx"
    known = metadata((64, 64))
    to_onnx(Fixed(), input_shape=(3, 64, 64), path=file, metadata=known)
    write_script(file.parent)
    for name in ("a", "b"):
        Image.new("RGB", (128, 64), "white").save(tmp_path / f"{name}.png")

    def typed(*arguments: str) -> list[str]:
        line = [sys.executable, "-I", str(file.with_name("predict.py")), *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    # The canvas shows 128 x 64 as 64 x 32, from row 16 on.
    assert typed("a.png", "b.png", "--out", "shown") == [
        "a.png: 2 objects; shown/a-boxes.png",
        "a.png: disc 0.900 16.0 16.0 80.0 64.0",
        "a.png: ring 0.400 60.0 28.0 120.0 56.0",
        "b.png: 2 objects; shown/b-boxes.png",
        "b.png: disc 0.900 16.0 16.0 80.0 64.0",
        "b.png: ring 0.400 60.0 28.0 120.0 56.0",
    ]
    with Image.open(tmp_path / "shown" / "a-boxes.png") as drawn:
        assert drawn.size == (128, 64)
        assert drawn.getpixel((16, 40)) == tuple(COLOURS[1])
        assert drawn.getpixel((100, 56)) == tuple(COLOURS[2])
        assert drawn.getpixel((5, 60)) == (255, 255, 255)
    assert len(typed("a.png", "--score", "0.5")) == 2
    assert typed("a.png", "--score", "0.95") == ["a.png: 0 objects; a-boxes.png"]
