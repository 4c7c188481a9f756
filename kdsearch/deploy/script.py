"""The exported predict.py: its text, and its check on raw validation files.

Its decoding rules are those of training, since `data/pixels.py` is copied into it. The check runs
the written script, as users do, and compares its answers with those to the stored pixels.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor

from kdsearch import atomic
from kdsearch.data import pixels
from kdsearch.data.base import ImageData
from kdsearch.data.raw import validation_files
from kdsearch.deploy.formats.base import Agreement, Run, agreement_of, answer_of
from kdsearch.errors import DataError
from kdsearch.tasks import Task

SCRIPT = "predict.py"
CHECKED = 128  # validation files at most
_SOURCE = Path(__file__).with_name(SCRIPT)
_FUTURE = "from __future__ import annotations\n"
_RULES = "from kdsearch.data.pixels import"
_NEAR = 1e-3  # of max_rel: a label that differs is a tie

Prepare = Callable[[Tensor], Tensor]


def write_script(folder: Path) -> Path:
    """Write predict.py, which needs no kdsearch, and return its path."""
    before, _, after = _SOURCE.read_text(encoding="utf-8").partition(_RULES)
    rules = Path(pixels.__file__).read_text(encoding="utf-8").partition(_FUTURE)[2]
    _, _, after = after.partition("\n")
    path = folder / SCRIPT
    atomic.write(path, before.rstrip() + "\n" + rules.rstrip() + "\n" + after)
    return path


def check_script(
    script: Path, file: Path, run: Run, prepare: Prepare, data: ImageData, task: Task
) -> Agreement | None:
    """Compare the script's answers to raw validation files with the file's to the stored pixels.

    run: the loaded file. prepare: makes its input of uint8 images [B, C, H, W]. None where the data
    have no raw files, or the script cannot run the file. Raises DataError for a raw file that can
    no longer be read.
    """
    module = _imported(script)
    if data.raw is None or file.suffix not in (".onnx", *module.OTHERS):
        return None
    if file.suffix == ".onnx":
        answer, metadata = module.onnx(file)
    else:
        answer = module.OTHERS[file.suffix](file)
        metrics = script.with_name("metrics.json")
        metadata = json.loads(metrics.read_text(encoding="utf-8"))["metadata"]
    places, found = [], []
    with TemporaryDirectory() as folder:
        for place, path in validation_files(data, Path(folder), limit=CHECKED):
            try:
                found.append(torch.from_numpy(answer(module.network_input(path, metadata))))
            except module.UnreadableError as error:
                raise DataError(f"{path}: cannot be read any more: {error}") from error
            places.append(place)
    expected = [answer_of(run, prepare(data.val.at(torch.tensor([place])))) for place in places]
    return agreement_of(torch.cat(expected), torch.cat(found), task)


def refuse_script(agreement: Agreement | None, least: float) -> str:
    """Return why predict.py must not be used with a file; '' where it may.

    least: the share of equal answers; one image of few may differ, and so may ties.
    """
    if agreement is None or (not agreement.are_classes and agreement.is_near(_NEAR)):
        return ""
    wrong = round((1 - agreement.same) * agreement.n)
    if wrong <= max(1, (1 - least) * agreement.n):
        return ""
    return (
        f"predict.py answers {wrong} of {agreement.n} validation files differently than in training"
    )


def _imported(script: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(script.stem, script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
