"""Suppression inside of an ONNX file keeps the boxes that torchvision's keeps, of any batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from kdsearch.deploy import predict
from kdsearch.deploy.formats._suppress import add_suppression
from kdsearch.errors import SpecError
from kdsearch.models.boxes import MAX_BOXES, kept, shown
from kdsearch.tasks._suppressed import suppressed
from kdsearch.tasks.classification import Classification
from kdsearch.tasks.detection import Detection


def crowded(images: int, points: int, classes: int, *, seed: int = 0) -> Tensor:
    """Return answers [images, points, 4 + classes] whose boxes overlap, some of them outside."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(images, points, 2, generator=generator) * 0.8 - 0.04
    sides = 0.05 + 0.3 * torch.rand(images, points, 2, generator=generator)
    scores = torch.rand(images, points, classes, generator=generator) ** 3
    return torch.cat([corners, corners + sides, scores], dim=2)


def answer_file(path: Path, points: int, columns: int) -> Path:
    """Write a file that answers with its input, [batch, points, columns], with suppression."""
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", points, columns])
    found = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", points, columns])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["answer"])], "g", [given], [found]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    add_suppression(path, shape=(points, columns), output="objects")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def run(path: Path, answer: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["objects"], {"input": answer.numpy()})
    return torch.from_numpy(found)


@pytest.mark.parametrize(("points", "classes"), [(40, 1), (60, 2), (900, 3), (30, 80)])
def test_the_file_keeps_what_torchvision_keeps(tmp_path: Path, points: int, classes: int) -> None:
    path = answer_file(tmp_path / "nms.onnx", points, 4 + classes)
    for images in (1, 3):
        answer = crowded(images, points, classes, seed=images)
        found, expected = run(path, answer), kept(answer)
        assert found.shape == (images, min(MAX_BOXES, points * classes), 6)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        for rows, shown_rows in zip(found, shown(answer), strict=True):
            assert int((rows[:, 4] > 0).sum()) == len(shown_rows)


def test_an_image_without_a_score_has_no_box(tmp_path: Path) -> None:
    path = answer_file(tmp_path / "nms.onnx", 40, 7)
    answer = crowded(2, 40, 3)
    answer[1, :, 4:] = 0
    found = run(path, answer)
    assert (found[1] == 0).all()
    assert (found[0, :, 4] > 0).any()


def test_predict_finds_the_same_boxes_in_both_answers(tmp_path: Path) -> None:
    answer = crowded(1, 60, 3)
    known = {"image_size": json.dumps([48, 64])}
    outside = predict.boxes_of(answer[0].clamp(0, 1).numpy(), known, (64, 48))
    inside = predict.boxes_of(kept(answer)[0].numpy(), {**known, "nms": ""}, (64, 48))
    assert len(outside[0])
    for one, other in zip(outside, inside, strict=True):
        assert np.allclose(one, other, atol=1e-4)


def test_the_task_of_kept_boxes_reads_them_as_the_task_reads_answers() -> None:
    task = Detection(("square", "disc", "ring"))
    inside, answer = suppressed(task), crowded(4, 60, 3)
    assert inside.agreement(kept(answer), kept(answer)) == 1.0
    other = kept(answer)
    sure = int((other[..., 4] >= 0.3).sum())
    other[0, 0, :4] = torch.tensor([0.9, 0.9, 0.95, 0.95])
    assert inside.agreement(kept(answer), other) == pytest.approx(1 - 1 / sure, abs=1e-6)
    labels = torch.cat([answer[:, :8, :4].clamp(0, 1), torch.zeros(4, 8, 1)], dim=2)
    values = []
    for one, rows in ((task, answer), (inside, kept(answer))):
        meter = one.meter(torch.device("cpu"))
        meter.add(rows, labels)
        values.append(meter.value())
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert 0 < values[0] < 1


def test_other_tasks_have_no_boxes_to_suppress() -> None:
    with pytest.raises(SpecError, match="--nms is for detection; the task 'classification'"):
        suppressed(Classification(("a", "b")))
