"""Measure the cost of one model: FLOPs, parameters, latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdsearch import tasks
from kdsearch.data.base import CLASSIFICATION
from kdsearch.deploy.flops import count
from kdsearch.deploy.formats._program import program_input
from kdsearch.deploy.latency import Latency, measure
from kdsearch.deploy.pricing import file_for
from kdsearch.deploy.runtimes.onnxruntime import onnx_input
from kdsearch.deploy.targets import require_target, target_info
from kdsearch.deploy.targets.base import Note, Shape
from kdsearch.errors import SpecError
from kdsearch.models import heads
from kdsearch.spec import StudentSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TargetInfo

DEFAULT_SHAPE = (3, 224, 224)


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
    input_shape: Shape | None,
    note: Note,
    classes: int = 1000,
) -> Measured:
    """Return the FLOPs and parameters of a model, and its latency on the configured target.

    A student with knobs of a head is a segmenter or a detector. note: gets a line before each slow
    step. spec.family may be a path to a file that the target accepts, `.onnx` or `.pt2`, whose
    latency alone is measured. input_shape: None takes that of the file, or 3 x 224 x 224. Raises
    SpecError for an unknown name or another shape than the file's, and CostError when the model
    cannot be priced.
    """
    name, target = spec.family, require_target(config)
    flops = params = None
    file: Path | bytes = Path(name)
    dtype = "float32"
    is_file = name.endswith((".onnx", ".pt2"))
    if is_file and Path(name).is_file():
        input_shape, dtype = _input_of(Path(name), input_shape)
    input_shape = input_shape or DEFAULT_SHAPE
    target.dry_run(input_shape, note)
    if not is_file:
        network = _network_of(spec, input_shape, classes)
        flops, params = count(network, input_shape=input_shape)
        file = file_for(network, target, input_shape)
    return Measured(
        name=name,
        input_shape=input_shape,
        flops=flops,
        params=params,
        latency=measure(file, shape=input_shape, dtype=dtype, target=target),
        target=target_info(target),
    )


def _network_of(spec: StudentSpec, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network of a student for the task of its head. Raises SpecError for its size."""
    channels, height, width = input_shape
    of_head = heads.split(spec.knobs)[1]
    name = heads.task_of(of_head) if of_head else CLASSIFICATION
    task = tasks.get(name)([f"class {place}" for place in range(classes)])
    is_square = name == CLASSIFICATION
    taken = (height, height) if is_square else task.input_size((height, width), 0)
    if taken != (height, width):
        what = "square images" if is_square else "sides in multiples of 32"
        raise SpecError(
            f"--input {channels}x{height}x{width}: a student for {name} takes {what}, as "
            f"{channels}x{taken[0]}x{taken[1]}"
        )
    return task.network(spec, channels=channels, size=taken)


def _input_of(file: Path, given: Shape | None) -> tuple[Shape, str]:
    """Return the shape of one input of a file, and its type. Raises SpecError for another shape."""
    sides, dtype = (onnx_input if file.suffix == ".onnx" else program_input)(file)
    wanted = given or tuple(side or 0 for side in sides)
    if len(sides) != 3 or not all(wanted):
        raise SpecError(f"{file}: its input states no size; give it as --input 3x224x224")
    if any(side not in (None, want) for side, want in zip(sides, wanted, strict=True)):
        takes = "x".join(str(side or "any") for side in sides)
        raise SpecError(
            f"--input {'x'.join(map(str, wanted))}: {file} takes {takes}; leave --input out"
        )
    channels, height, width = wanted
    return (channels, height, width), dtype
