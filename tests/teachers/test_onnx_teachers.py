"""A teacher that exists only as an ONNX file: logits of classes and of masks, and their limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import toy_masks
from onnx import TensorProto, helper, numpy_helper
from toy_data import toy_data

from kdsearch import data as datasets
from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError
from kdsearch.models.model import Model
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.distiller.coverage import refusal

CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(0)


def onnx_file(path: Path, *, channels: int, classes: int, is_dense: bool, soft: bool) -> str:
    """Write a 1x1 convolution, pooled unless dense; return the teacher's name."""
    weights = GENERATOR.normal(size=(classes, channels, 1, 1)).astype(np.float32)
    given = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, ["batch", channels, "height", "width"]
    )
    nodes = [helper.make_node("Conv", ["images", "weights"], ["map"])]
    name = "map"
    if not is_dense:
        nodes += [
            helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["rows"]),
        ]
        name = "rows"
    if soft:
        nodes.append(helper.make_node("Softmax", [name], ["shares"], axis=1))
        name = "shares"
    shape = ["batch", classes, *(["h", "w"] if is_dense else [])]
    answer = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "one", [given], [answer], [numpy_helper.from_array(weights, "weights")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return f"onnx:{path}"


@pytest.fixture(scope="module", params=["classification", "segmentation"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    if request.param == "classification":
        return toy_data(channels=3, size=16)
    folder = tmp_path_factory.mktemp("data")
    return datasets.load(str(toy_masks.write(folder / "toys")), cache_dir=folder / "cache")


def load(name: str, data: ImageData) -> tuple[Model, list[str]]:
    notes: list[str] = []
    spec = TeacherSpec(name=name)
    found = load_teacher(spec, data, cache_dir=Path(), seed=0, device=CPU, note=notes.append)
    return found, notes


@pytest.mark.parametrize("soft", [False, True])
def test_its_logits_are_those_of_the_file(data: ImageData, soft: bool, tmp_path: Path) -> None:
    is_dense = data.task == "segmentation"
    path = tmp_path / "teacher.onnx"
    how = {"channels": data.channels, "classes": data.num_classes}
    teacher, notes = load(onnx_file(path, is_dense=is_dense, soft=soft, **how), data)
    images = data.val.at(slice(3))
    (weights,) = (numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer)
    logits = torch.nn.functional.conv2d(images.float() / 255, torch.tensor(weights))
    logits = logits if is_dense else logits.mean(dim=(2, 3))
    found = teacher(images)
    assert found.shape == (3, data.num_classes, *(data.size if is_dense else ()))
    torch.testing.assert_close(found.softmax(1), logits.softmax(1), atol=1e-5, rtol=1e-4)
    assert any("answers with probabilities" in note for note in notes) == soft
    assert teacher.params == weights.size


def test_it_teaches_logits_and_nothing_else(data: ImageData, tmp_path: Path) -> None:
    how = {"channels": data.channels, "classes": data.num_classes, "soft": False}
    name = onnx_file(tmp_path / "t.onnx", is_dense=data.task == "segmentation", **how)
    teacher, _ = load(name, data)
    assert refusal("kd", [teacher]) == ""
    assert refusal("dist", [teacher]) == ""
    assert "logits" in refusal("at", [teacher])


def test_an_answer_of_another_form_is_refused(data: ImageData, tmp_path: Path) -> None:
    how = {"channels": data.channels, "classes": data.num_classes, "soft": False}
    name = onnx_file(tmp_path / "t.onnx", is_dense=data.task != "segmentation", **how)
    form = r"\[B, K, h, w\]" if data.task == "segmentation" else r"\[B, K\]"
    with pytest.raises(SpecError, match=f"expected logits {form} of K classes alone"):
        load(name, data)
