"""Write a student as one ONNX file, verify it against its model, and score it on its own.

Input `input` [batch, C, H, W], normalised float32; one output, named by the task; any batch size.
Two exporters: the file of best/ comes from torch.export; `onnx_bytes` uses the older trace-based
one, 15 times quicker, whose file is thrown away once it is timed.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import Tensor, nn

from kdsearch.atomic import replacing
from kdsearch.deploy import runtimes
from kdsearch.deploy.flops import unfused_attention
from kdsearch.deploy.formats._program import EXAMPLES, cpu_copy
from kdsearch.deploy.formats.base import (
    EXACT,
    Agreement,
    Format,
    Source,
    agreement_of,
    answer_of,
    both_answers,
)
from kdsearch.deploy.runtimes import Runtime
from kdsearch.errors import CostError, ExportError
from kdsearch.tasks import Details, Task
from kdsearch.training.validation import measured

OPSET = 20  # the default of torch.onnx: known to ONNX Runtime since 1.17
_INPUT, _BATCH = "input", "batch"
_ANSWER = "logits"  # of a file for pricing, of any task
_PRICING_BATCH = 4  # BatchNorm on 1x1 maps needs more than one image


class Onnx(Format):
    """ONNX, float32; any batch size, preprocessing and the task's facts in its metadata."""

    suffix = ".onnx"
    runtime = "onnxruntime"

    def write(self, source: Source, path: Path) -> None:
        """Copy the float32 file, from which the other ONNX formats are made."""
        shutil.copyfile(source.onnx, path)


def to_onnx(
    model: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str],
    output: str = "logits",
) -> None:
    """Write `model` in eval mode to `path`: float32, one file, `metadata` inside.

    The model is left as it was; `path` appears only when whole. Raises ExportError when the model
    does not export, returns more than one tensor or has a fixed batch size.
    """
    name = type(model).__name__
    try:
        with unfused_attention():
            program = torch.onnx.export(
                cpu_copy(model),
                (torch.zeros(EXAMPLES, *input_shape),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim(_BATCH, min=1)},),
                verbose=False,
            )
    except Exception as error:  # the model's forward may raise anything
        shape = "x".join(map(str, input_shape))
        raise ExportError(f"{name} does not export to ONNX at {shape}: {error}") from error
    assert program is not None
    proto = program.model_proto
    if len(proto.graph.output) != 1:
        raise ExportError(f"{name} returns {len(proto.graph.output)} tensors; expected one")
    batch, rows = (
        side[0].type.tensor_type.shape.dim[0] for side in (proto.graph.input, proto.graph.output)
    )
    if batch.dim_param != _BATCH or rows.HasField("dim_value"):
        raise ExportError(
            f"{name} has a fixed batch size: {batch.dim_param or batch.dim_value} images give "
            f"{rows.dim_param or rows.dim_value} rows; take it from x.shape[0] in its forward"
        )
    _forget_origin(proto)
    onnx.helper.set_model_props(proto, dict(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def onnx_bytes(model: nn.Module, *, input_shape: tuple[int, int, int]) -> bytes:
    """Return ONNX bytes as fast or slow as the trained `model` will be, in about 0.1 s.

    Untrained weights are perturbed on a copy, since a branch that ends in zeros may be folded away.
    The trace-based exporter is deprecated, but the other takes 1.2 to 1.7 s for a tiny network,
    which a study would pay for every candidate. Latency of its file over that of best/, paired,
    in ONNX Runtime: CNNs 0.98 to 1.00, ConvNeXt 1.00 to 1.03, ViTs 0.94 to 0.96. (Without its
    optimiser the other exporter leaves BatchNorm unfolded: 1.5 to 3.5 times slower files.)
    Raises CostError when the model does not export.
    """
    name = type(model).__name__
    try:
        perturbed = _perturbed_copy(model, input_shape)
        with TemporaryDirectory() as folder, warnings.catch_warnings(), unfused_attention():
            path = Path(folder) / "pricing.onnx"
            _ignore_trace_warnings()
            torch.onnx.export(
                perturbed,
                (torch.zeros(EXAMPLES, *input_shape),),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=[_ANSWER],
                dynamic_axes={_INPUT: {0: _BATCH}, _ANSWER: {0: _BATCH}},
            )
            return path.read_bytes()
    except Exception as error:  # as in to_onnx
        shape = "x".join(map(str, input_shape))
        raise CostError(f"{name} does not export to ONNX at {shape}: {error}") from error


def verify(model: nn.Module, path: Path, images: Iterable[Tensor], task: Task) -> Agreement:
    """Compare the file with `model` on batches [N, C, H, W], the first in parts of 1, 7, the rest.

    Raises ExportError when they disagree: same answers below 0.999 or max_rel above 1e-4.
    """
    same_inputs = ((batch, batch) for batch in images)
    agreement = agreement_of(*both_answers(cpu_copy(model), load_file(path), same_inputs), task)
    if not EXACT.accepts(agreement):
        raise ExportError(
            f"{path} disagrees with its {type(model).__name__}: {agreement}; accepted are {EXACT}. "
            "Export it again"
        )
    return agreement


def evaluate(
    path: Path, batches: Iterable[tuple[Tensor, Tensor]], task: Task, *, count: int = 0
) -> tuple[float, Details]:
    """Return the metric of the file alone on (images [N, C, H, W], labels) batches, and details.

    count: of all images, for the noise in the details; 0: it is not measured. Raises ExportError
    when the file does not load or run.
    """
    meter = task.meter(torch.device("cpu"))
    meter.keep_images(count)
    return measured(partial(answer_of, load_file(path)), batches, meter), meter.details()


def load_file(path: Path) -> Runtime:
    """Load an ONNX file, a function from images to answers. Raises ExportError."""
    return runtimes.load("onnxruntime", path, threads=torch.get_num_threads())


def _perturbed_copy(model: nn.Module, input_shape: tuple[int, int, int]) -> nn.Module:
    """Give a copy the gains, biases and BatchNorm statistics that training would give it."""
    perturbed = cpu_copy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for weight in perturbed.parameters():
            if weight.ndim <= 1 or not weight.any():
                weight.add_(0.5 * torch.rand(weight.shape, generator=generator))
        assert all(weight.any() for weight in perturbed.parameters())
        if any(name.endswith("running_mean") for name, _ in perturbed.named_buffers()):
            torch.manual_seed(0)  # for dropout
            perturbed.train()
            for _ in range(3):
                perturbed(torch.randn(_PRICING_BATCH, *input_shape, generator=generator))
    return perturbed.eval()


def _ignore_trace_warnings() -> None:
    for category, message in (
        (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
        (DeprecationWarning, "The feature will be removed"),
        (UserWarning, "Constant folding"),
        (torch.jit.TracerWarning, ""),  # type: ignore[attr-defined]
    ):
        warnings.filterwarnings("ignore", message, category)


def _forget_origin(proto: onnx.ModelProto) -> None:
    """Drop the stack traces, which contain local paths."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for initializer in graph.initializer:
        initializer.ClearField("doc_string")
