"""The reference network as an ONNX file: a chain of 3x3 convolutions."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise


@lru_cache
def conv_chain(length: int, shape: tuple[int, int, int]) -> bytes:
    """Return the file. Input and output: [batch, *shape], a shape [C, H, W]; one weight for all."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    channels = shape[0]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
    names = ["input", *(f"map{i}" for i in range(1, length)), "logits"]
    sides: list[str | int | None] = ["batch", *shape]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [source, "weight"], [target], pads=[1, 1, 1, 1])
            for source, target in pairwise(names)
        ],
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, sides)],
        # Scaled so that maps keep their size: no run meets denormal numbers or infinities.
        [numpy_helper.from_array(weight / (3 * channels**0.5), "weight")],
    )
    opset = [helper.make_opsetid("", 20)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return made
