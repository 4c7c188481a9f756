"""Add non-maximum suppression to an ONNX file of a detector, after its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdsearch.models.boxes import CANDIDATES, LEAST, MAX_BOXES, SAME

_NODES: Sequence[
    tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]
] = (  # operator, inputs, outputs, attributes; by names of tensors and of _constants
    ("Slice", ("answer", "first", "fourth", "last_axis"), ("places",), {}),
    ("Clip", ("places", "zero", "one"), ("boxes",), {}),
    ("Slice", ("answer", "fourth", "end", "last_axis"), ("by_point",), {}),
    ("Transpose", ("by_point",), ("scores",), {"perm": [0, 2, 1]}),
    ("Reshape", ("scores", "in_rows"), ("row",), {}),
    ("TopK", ("row", "candidates"), ("best", "_best"), {}),
    ("ReduceMin", ("best", "last_axis_of_row"), ("least_of_best",), {"keepdims": 1}),
    ("Unsqueeze", ("least_of_best", "last_axis"), ("limit",), {}),
    ("GreaterOrEqual", ("scores", "limit"), ("is_candidate",), {}),
    ("Where", ("is_candidate", "scores", "zero"), ("given",), {}),
    ("NonMaxSuppression", ("boxes", "given", "most", "same", "least"), ("chosen",), {}),
    ("GatherND", ("scores", "chosen"), ("scores_of_chosen",), {}),
    ("Shape", ("scores",), ("shape",), {}),
    ("ConstantOfShape", ("shape",), ("nothing",), {}),
    ("ScatterND", ("nothing", "chosen", "scores_of_chosen"), ("kept",), {}),
    ("Reshape", ("kept", "in_rows"), ("kept_row",), {}),
    ("TopK", ("kept_row", "rows"), ("score", "place"), {}),
    ("Mod", ("place", "points"), ("point",), {}),
    ("Unsqueeze", ("point", "last_axis"), ("point_column",), {}),
    ("GatherND", ("boxes", "point_column"), ("box",), {"batch_dims": 1}),
    ("Div", ("place", "points"), ("class_number",), {}),
    ("Cast", ("class_number",), ("class_float",), {"to": TensorProto.FLOAT}),
    ("Unsqueeze", ("class_float", "last_axis"), ("class_column",), {}),
    ("Unsqueeze", ("score", "last_axis"), ("score_column",), {}),
    ("Concat", ("box", "score_column", "class_column"), ("all_rows",), {"axis": 2}),
    ("Greater", ("score_column", "zero"), ("is_box",), {}),
    ("Where", ("is_box", "all_rows", "zero"), ("objects",), {}),
)
_PREFIX = "suppression_"


def add_suppression(path: Path, *, shape: Sequence[int], output: str) -> None:
    """Change the answer of an ONNX file, float32 [batch, P, 4 + K], to boxes that are kept.

    shape: P and 4 + K. output: the name of the new answer, float32 [batch, n, 6], as
    `models.boxes.kept` returns it.
    """
    proto = onnx.load(path)
    graph = proto.graph
    (answer,) = graph.output
    points, columns = shape
    count = points * (columns - 4)
    rows = min(MAX_BOXES, count)
    constants = _constants(points, count, rows)
    named = {"answer": answer.name, "objects": output}

    def names(tensors: Sequence[str]) -> list[str]:
        return [named.get(tensor, _PREFIX + tensor) for tensor in tensors]

    graph.node.extend(
        helper.make_node(kind, names(inputs), names(outputs), **attributes)
        for kind, inputs, outputs, attributes in _NODES
    )
    graph.initializer.extend(
        numpy_helper.from_array(value, _PREFIX + name) for name, value in constants.items()
    )
    batch = answer.type.tensor_type.shape.dim[0].dim_param
    graph.output.remove(answer)
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, rows, 6]))
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    metadata["nms"] = f"IoU above {SAME:g}, in the file: x1, y1, x2, y2, score, class by row"
    helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())


def _constants(points: int, count: int, rows: int) -> dict[str, np.ndarray]:
    """Return the constants of _NODES; count: of scores of an image."""
    integers = {
        "first": [0],
        "fourth": [4],
        "end": [np.iinfo(np.int64).max],
        "last_axis": [2],
        "last_axis_of_row": [1],
        "in_rows": [0, -1],
        "candidates": [min(CANDIDATES, count)],
        "most": [MAX_BOXES],
        "rows": [rows],
        "points": [points],
    }
    numbers = {"zero": 0.0, "one": 1.0, "same": SAME, "least": LEAST}
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
    }
