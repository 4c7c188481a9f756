"""Measure the cost of one model: FLOPs, parameters, latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdsearch.deploy.flops import count
from kdsearch.deploy.latency import Latency, measure
from kdsearch.deploy.pricing import file_for
from kdsearch.deploy.targets import require_target, target_info
from kdsearch.deploy.targets.base import Note, Shape
from kdsearch.models import students
from kdsearch.spec import StudentSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TargetInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The cost of a model; flops and params are None for a file."""

    name: str
    input_shape: Shape
    flops: int | None
    params: int | None
    latency: Latency
    target: TargetInfo


def measure_model(
    spec: StudentSpec,
    config: StudyConfig,
    *,
    input_shape: Shape,
    note: Note,
    classes: int = 1000,
) -> Measured:
    """Return the FLOPs and parameters of a model, and its latency on the configured target.

    note: gets a line before each slow step. spec.family may be a path to a file that the target
    accepts, `.onnx` or `.pt2`, whose latency alone is measured. Raises SpecError for an unknown
    name and CostError when the model cannot be priced.
    """
    name, target = spec.family, require_target(config)
    target.dry_run(input_shape, note)
    flops = params = None
    file: Path | bytes = Path(name)
    if not name.endswith((".onnx", ".pt2")):
        channels, height, width = input_shape
        network = students.build(
            spec, in_channels=channels, num_classes=classes, data_size=(height, width)
        )
        flops, params = count(network, input_shape=input_shape)
        file = file_for(network, target, input_shape)
    return Measured(
        name=name,
        input_shape=input_shape,
        flops=flops,
        params=params,
        latency=measure(file, shape=input_shape, target=target),
        target=target_info(target),
    )
