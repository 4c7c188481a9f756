"""What makes a study in a test quick: fake target, exporter that traces, large batches, few files.

A tiny study spends nine tenths of its time on what other tests check: torch.export and its
conversion to ONNX (deploy/formats, models/students), rounds in fresh processes, and predict.py on
validation files (deploy). `test_cli_runs` makes one study without these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from kdsearch.deploy import script
from kdsearch.deploy.targets._local import CpuTarget
from kdsearch.deploy.timing import Round
from kdsearch.errors import CostError
from kdsearch.study import plan

MS_A_MEGABYTE = 2.0  # of a fake latency
BATCHES = (128,)  # where neither space nor flags give one
CHECKED = 16  # validation files that predict.py is checked on
_export = torch.onnx.export


@contextmanager
def quick() -> Iterator[None]:
    """Make studies quick for as long as this lasts, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced)
        patch.setattr(CpuTarget, "measure_round", fake_round)
        patch.setattr(script, "CHECKED", CHECKED)
        patch.setattr(plan, "BATCHES", BATCHES)
        yield


def fake_round(target: Any, timing: Any, references: Any) -> Round:
    """Return a latency that grows with the file, and with the images of a batch."""
    del references
    if not timing.file.is_file():
        raise CostError(f"there is no file {timing.file}")
    size: int = timing.file.stat().st_size
    return Round(ms=MS_A_MEGABYTE * size / 1e6 * target.batch, contention=1.0)


def traced(model: torch.nn.Module, args: tuple[torch.Tensor], *rest: Any, **given: Any) -> Any:
    """Export as torch.onnx.export does with dynamo=True, by its exporter that traces."""
    if not given.pop("dynamo"):
        return _export(model, args, *rest, dynamo=False, **given)
    (dynamic,) = given.pop("dynamic_shapes")
    names = (*given["input_names"], *given["output_names"])
    axes = {name: {axis: dim.__name__ for axis, dim in dynamic.items()} for name in names}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "traced.onnx"
        _export(model, args, path, dynamo=False, dynamic_axes=axes, **given)
        return SimpleNamespace(model_proto=onnx.load(path))
