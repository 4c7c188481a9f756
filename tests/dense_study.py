"""A tiny study of boxes or of masks, one trial of two epochs, and how to run another like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detection_data
import toy_masks
from quick import quick

import kdsearch

SPACE = """
student:
  family: {{choice: {{resnet: {{width: 0.25, depth: {{int: [4, 5]}}}}}}}}
  head: {{{head}}}
method: {{name: {{choice: {{{method}, none: {{}}}}}}}}
train: {{epochs: 2, batch_size: 4, optimizer: adamw, lr: 0.004}}
"""
HEADS = {
    "detection": ("channels: 16, depth: 1", "det_kd: {}"),
    "segmentation": ("kind: {choice: [lraspp]}, channels: 16", "kd: {}"),
}
FEW = {"train": 8, "val": 4, "test": 4}


@dataclass(frozen=True)
class Finished:
    """A study of one trial, and what ran it."""

    path: Path
    given: dict[str, Any]

    def run(self, name: str, **more: Any) -> kdsearch.Study:
        """Run a study like it, or resume one, in its folder of results."""
        with quick():
            return kdsearch.run(**{**self.given, "name": name, **more})


def finished(task: str, folder: Path) -> Finished:
    """Run the study `first` of a task in a folder."""
    head, method = HEADS[task]
    (folder / "space.yaml").write_text(SPACE.format(head=head, method=method))
    data = (
        detection_data.write(folder / "set", splits=FEW)
        if task == "detection"
        else toy_masks.write(folder / "set")
    )
    given = {
        "data": data,
        "space": folder / "space.yaml",
        "teacher_epochs": 1,
        "budget": kdsearch.Budget(flops=60_000_000),
        "stopping": "off",
        "trials": 1,
        "out": folder / "results",
    }
    found = Finished(folder / "results" / "first", given)
    found.run("first")
    return found
