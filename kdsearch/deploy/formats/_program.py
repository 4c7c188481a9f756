"""Trace a network with torch.export, and remove local paths from the graph."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from kdsearch.deploy.flops import unfused_attention
from kdsearch.errors import ExportError, SpecError

EXAMPLES = 2  # torch.export treats a batch of one as a constant


def cpu_copy(model: nn.Module) -> nn.Module:
    """Return a copy in float32 and evaluation mode on the CPU, its parameters without gradient."""
    return copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)


def program_of(
    model: nn.Module, *, input_shape: tuple[int, int, int], max_batch: int | None = None
) -> ExportedProgram:
    """Return the program of `model` in eval mode, for any batch, or one of at most `max_batch`.

    Raises ExportError when the model does not export or has a fixed batch size.
    """
    example = torch.zeros(EXAMPLES, *input_shape)
    batch = Dim("batch", min=1, max=max_batch)
    try:
        with unfused_attention():
            program = torch.export.export(
                cpu_copy(model), (example,), dynamic_shapes=({0: batch},), strict=False
            )
    except Exception as error:  # the model's forward may raise anything
        shape = "x".join(map(str, input_shape))
        raise ExportError(
            f"{type(model).__name__} does not export at {shape}: {str(error).splitlines()[0]}"
        ) from error
    _forget_origin(program.graph_module)
    return program


def program_bytes(model: nn.Module, *, input_shape: tuple[int, int, int]) -> bytes:
    """Return a program for any batch as the bytes of its `.pt2` file. Raises ExportError."""
    written = io.BytesIO()
    program = program_of(model, input_shape=input_shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
        torch.export.save(program, written)
    return written.getvalue()


def program_input(file: Path) -> tuple[list[int | None], str]:
    """Return the sides of one input of a `.pt2` file, None where any is accepted, and its type.

    Raises SpecError for a file that does not load.
    """
    try:
        program = torch.export.load(file)
    except Exception as error:  # a damaged file may raise anything
        raise SpecError(f"{file}: cannot be loaded: {str(error).splitlines()[0]}") from error
    (name,) = program.graph_signature.user_inputs
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    sides = [side if isinstance(side, int) else None for side in value.shape[1:]]
    return sides, str(value.dtype).removeprefix("torch.")


def _forget_origin(graph: GraphModule) -> None:
    """Drop the stack traces, which contain local paths."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
