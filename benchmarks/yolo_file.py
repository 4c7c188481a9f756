"""Write the detector `auto` of a data set as an ONNX file with the layout of YOLO exports.

Its answer is [B, 4 + K, P]: centre x and y, width and height in pixels, then scores. The pixels of
its input are fractions of 255, and the class names stand in its metadata. As a teacher it shows
what a detector that exists only as a file gives:

    python -m benchmarks yolo_file --data ../shared/data/bccd --file yolo.onnx
    python -m benchmarks each_method --data ../shared/data/bccd --teacher onnx:yolo.onnx \\
        --methods none,pseudo_boxes,soft_boxes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.models.model import Model
from kdsearch.study.config import StudyConfig
from kdsearch.trials.context import lay_out, load_data


class YoloLayout(nn.Module):
    """A detector of kdsearch that takes and answers what YOLO exports do."""

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, detector: Model) -> None:
        super().__init__()
        self.network = detector.network
        height, width = detector.preprocess.size
        self.register_buffer("scale", torch.tensor([width, height, width, height])[:, None])
        for name in ("mean", "std"):
            value = torch.tensor(getattr(detector.preprocess, name))
            self.register_buffer(name, value[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 4 + K, P] of images [B, C, H, W] in [0, 1]."""
        found = self.network((x - self.mean) / self.std).transpose(1, 2)
        near, far = found[:, :2], found[:, 2:4]
        boxes = torch.cat([(near + far) / 2, far - near], dim=1) * self.scale
        return torch.cat([boxes, found[:, 4:]], dim=1)


def write(detector: Model, classes: Sequence[str], path: Path) -> None:
    """Write a detector as such a file. Raises ExportError."""
    to_onnx(
        YoloLayout(detector),
        input_shape=detector.preprocess.input_shape,
        path=path,
        metadata={"names": str(dict(enumerate(classes)))},
        output="output0",
    )


def main(argv: Sequence[str]) -> int:
    """Train the teacher where it is not cached, write the file, and return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks yolo_file")
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--file", type=Path, required=True)
    given = parser.parse_args(argv)
    config = StudyConfig(
        data=given.data, image_size=given.image_size, teacher_epochs=given.teacher_epochs
    )
    data, config = load_data(config, given.out, print)
    context = lay_out(config, data, out=given.out, device=torch.device("cpu"), note=print)
    write(context.teachers[0], data.classes, given.file)
    return 0
