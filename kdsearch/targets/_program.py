"""A network as the program that torch.export writes, for the targets that run it by PyTorch."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.errors import CostError

if TYPE_CHECKING:
    from torch import nn


def program_of(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the `.pt2` program of a network for images of that shape. Raises CostError."""
    import torch

    model = copy.deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(False)
    written = io.BytesIO()
    try:
        torch.export.save(torch.export.export(model, (torch.zeros(shape),)), written)
    except Exception as error:  # it passes on whatever the model's forward raises
        sides = "x".join(map(str, shape))
        raise CostError(
            f"{type(network).__name__} does not export for images {sides}: {error}"
        ) from error
    return written.getvalue()


def load_program(file: Path) -> nn.Module:
    """Return the module of a program. Raises CostError where it is none."""
    import torch

    try:
        return torch.export.load(file).module()
    except Exception as error:  # a damaged archive may raise anything
        raise CostError(f"PyTorch refuses {file}; expected a .pt2 program: {error}") from error
