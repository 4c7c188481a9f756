"""This machine's CPU, by PyTorch: the program of torch.export, not compiled."""

from __future__ import annotations

from kdsearch.deploy.targets._local import CpuTarget


class Torch(CpuTarget):
    """PyTorch on the CPU: an exported program (`.pt2`), not compiled."""

    runtime = "torch"
    takes = ("torch_export",)
