"""Move scaling, normalisation and axis order into an ONNX file; resizing stays outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdsearch.models.model import Preprocess

_RAW, _FLOAT, _FIRST, _SCALED = "images", "images_float", "images_first", "images_scaled"
_FACTOR, _SHIFT = "preprocess_factor", "preprocess_shift"


def fold_preprocess(path: Path, preprocess: Preprocess) -> None:
    """Change the input of an ONNX file to `images`: uint8 [batch, H, W, channels].

    H, W: the resolution of the network. The rest stays unchanged, so any precision works.
    """
    proto = onnx.load(path)
    graph = proto.graph
    (given,) = graph.input
    name = given.name
    factor, shift = _affine(preprocess)
    nodes = [
        helper.make_node("Cast", [_RAW], [_FLOAT], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [_FLOAT], [_FIRST], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", [_FIRST, _FACTOR], [_SCALED]),
        helper.make_node("Add", [_SCALED, _SHIFT], [name]),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        [numpy_helper.from_array(factor, _FACTOR), numpy_helper.from_array(shift, _SHIFT)]
    )
    height, width = preprocess.size
    graph.input.remove(given)
    shape: list[str | int | None] = ["batch", height, width, preprocess.channels]
    graph.input.append(helper.make_tensor_value_info(_RAW, TensorProto.UINT8, shape))
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    metadata["input"] = (
        f"uint8 pixels, [batch, {height}, {width}, {preprocess.channels}], resized already"
    )
    helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())


def _affine(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and shift [C, 1, 1]: pixels * factor + shift is the network's input."""
    mean = np.array(preprocess.mean, np.float64)[:, None, None]
    std = np.array(preprocess.std, np.float64)[:, None, None]
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
