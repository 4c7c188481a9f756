"""LiteRT (.tflite), converted in an environment of its own: its converter needs an older torch.

`scripts/to_litert.sh FOLDER` makes that environment and turns student.pt2 into student.tflite;
this format copies that file, so that it is verified and measured.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kdsearch.deploy.formats.base import Format, Source
from kdsearch.deploy.runtimes import Unavailable


class LiteRt(Format):
    """LiteRT, float32; one image at a time."""

    suffix = ".tflite"
    runtime = "litert"

    def write(self, source: Source, path: Path) -> None:
        """Copy the converted file from the folder of the ONNX file."""
        folder = source.onnx.parent
        converted = folder / f"student{self.suffix}"
        if not converted.is_file():
            raise Unavailable(
                f"there is no {converted}: export torch-export first, then "
                f"`scripts/to_litert.sh {folder}`, then litert again"
            )
        shutil.copyfile(converted, path)
