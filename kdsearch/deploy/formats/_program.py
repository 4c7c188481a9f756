"""Trace a network with torch.export, and remove local paths from the graph."""

from __future__ import annotations

import copy
import io
import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from kdsearch.deploy.flops import unfused_attention
from kdsearch.errors import ExportError

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


def _forget_origin(graph: GraphModule) -> None:
    """Drop the stack traces, which contain local paths."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
