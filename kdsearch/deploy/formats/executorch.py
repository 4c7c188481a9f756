"""ExecuTorch (.pte) for phones and boards, its operators lowered to XNNPACK."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from kdsearch.deploy import runtimes
from kdsearch.deploy.formats._program import program_of
from kdsearch.deploy.formats.base import Format, Source


class ExecuTorch(Format):
    """ExecuTorch, float32; batches of 1 to 64, as far as the file has memory planned."""

    suffix = ".pte"
    runtime = "executorch"

    def write(self, source: Source, path: Path) -> None:
        """Lower the traced program; a tiny network takes seconds, a ViT half a minute."""
        runtimes.require(self.runtime)
        from kdsearch.deploy.runtimes.executorch import MAX_BATCH

        program = program_of(source.network, input_shape=source.input_shape, max_batch=MAX_BATCH)
        logging.getLogger("torchao").setLevel(logging.ERROR)  # it logs kernels it does not use
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports warn about its own code
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)
