"""Files that answer with the class of each pixel: made, compared, run by predict.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import toy_masks
from PIL import Image

import kdsearch.data as datasets
from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy import predict
from kdsearch.deploy.formats import get
from kdsearch.deploy.formats.base import (
    EXACT,
    Agreement,
    Source,
    agreement_of,
    answer_of,
    both_answers,
)
from kdsearch.deploy.formats.onnx import evaluate, load_file, to_onnx
from kdsearch.deploy.package import _metadata
from kdsearch.deploy.pricing import build_student
from kdsearch.deploy.script import check_script, refuse_script, write_script
from kdsearch.errors import SpecError
from kdsearch.models.model import Model
from kdsearch.spec import StudentSpec
from kdsearch.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
KNOBS = {"width": 0.25, "depth": 4, "head.kind": "lraspp", "head.channels": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("toys")
    return datasets.load(str(toy_masks.write(folder / "set")), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def student(data: ImageData) -> Model:
    torch.manual_seed(0)
    return build_student(StudentSpec(family="resnet", knobs=KNOBS), data).freeze()


@pytest.fixture(scope="module")
def file(data: ImageData, student: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task, path = tasks.of(data), tmp_path_factory.mktemp("files") / "student-argmax.onnx"
    to_onnx(
        task.decoded(student.network, data.size),
        input_shape=student.preprocess.input_shape,
        path=path,
        metadata=_metadata(student, data, task),
        output="classes",
    )
    return path


def test_the_file_holds_the_class_of_each_pixel_and_the_metric_of_its_logits(
    data: ImageData, student: Model, file: Path
) -> None:
    session = onnxruntime.InferenceSession(file)
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape[1:]) == ("classes", "tensor(uint8)", [64, 64])
    inputs = student.preprocess(data.val.at(slice(None)))
    found = torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])
    large = torch.nn.functional.interpolate(student.network(inputs), (64, 64), mode="bilinear")
    assert (found == large.argmax(dim=1)).double().mean() > 0.9999
    task, parts = tasks.of(data), [(inputs, data.val.labels)]
    value, _ = evaluate(file, parts, task)
    meter = task.meter(CPU)
    meter.add(student.network(inputs), data.val.labels)
    assert value == pytest.approx(meter.value(), abs=1e-4)


@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-int8", "torch-export"])
def test_other_formats_answer_with_classes_too(
    name: str, data: ImageData, student: Model, file: Path, tmp_path: Path
) -> None:
    task = tasks.of(data)
    network, kind = task.decoded(student.network, data.size), get(name)
    inputs = student.preprocess(data.val.at(slice(None)))
    path = tmp_path / f"student-argmax{kind.suffix}"
    source = Source(
        network=network,
        input_shape=student.preprocess.input_shape,
        onnx=file,
        calibration_images=lambda: [inputs],
    )
    kind().write(source, path)
    from kdsearch.deploy import runtimes

    run = runtimes.load(kind.runtime, path, threads=1)
    agreement = agreement_of(*both_answers(network, run, [(inputs, inputs)]), task)
    assert agreement.are_classes
    assert kind.tolerance.accepts(agreement)
    assert answer_of(run, inputs[:1]).dtype == torch.uint8


def test_predict_writes_the_same_mask_from_classes_and_is_checked_by_them(
    data: ImageData, student: Model, file: Path, tmp_path: Path
) -> None:
    image = tmp_path / "scene.png"
    Image.fromarray(toy_masks.scene(12)[0]).save(image)
    answer, metadata = predict.load(file)
    given = predict.network_input(image, metadata)
    words = predict.write_masks(image, answer(given)[0], metadata, tmp_path / "classes", 3)
    with torch.no_grad():
        logits = student.network(torch.from_numpy(given))[0].numpy()
    predict.write_masks(image, logits, metadata, tmp_path / "logits", 3)
    masks = []
    for name in ("classes", "logits"):
        with Image.open(tmp_path / name / "scene-mask.png") as mask:
            masks.append(np.asarray(mask))
            assert mask.getpalette()[:9] == [v for c in toy_masks.COLOURS for v in c]
    assert masks[0].shape == (48, 64)
    assert (masks[0] == masks[1]).mean() > 0.999
    assert words.split()[0] in json.loads(metadata["classes"])
    found = check_script(
        write_script(tmp_path), file, load_file(file), student.preprocess, data, tasks.of(data)
    )
    assert found is not None
    assert found.are_classes
    assert refuse_script(found, EXACT.same) == ""


def test_classes_are_compared_by_their_share_alone() -> None:
    task = Segmentation("abc")
    ours = torch.zeros(4, 10, 10, dtype=torch.uint8)
    theirs = ours.clone()
    theirs[0, 0, 0] = 2
    one = agreement_of(ours, theirs, task)
    assert one == Agreement(same=1 - 1 / 400, max_abs=0, max_rel=0, n=4, are_classes=True)
    assert not EXACT.accepts(one)
    assert EXACT.accepts(agreement_of(ours, ours, task))
    wrong = Agreement(same=0.5, max_abs=0, max_rel=0, n=10, are_classes=True)
    assert "answers 5 of 10" in refuse_script(wrong, EXACT.same)


def test_a_task_of_one_answer_an_image_has_no_such_file() -> None:
    task = tasks.get("classification")(["cat", "dog"])
    with pytest.raises(SpecError, match="--argmax is for segmentation"):
        task.decoded(torch.nn.Identity(), (8, 8))
