"""Programs of `torch.export` (.pt2), run by torch without the code of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.export
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime


class TorchExport(Runtime):
    """torch.export on the CPU; the number of threads is torch's own during a run alone."""

    module = "torch"
    install = "pip install torch"
    label = "torch.export"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._program = torch.export.load(path).module()
        self._threads = threads

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the program's only output."""
        with _threads(self._threads), torch.inference_mode():
            found: NDArray[Any] = self._program(torch.from_numpy(images)).numpy()
            return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
