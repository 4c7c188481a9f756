"""Detectors of other kinds as teachers: layouts of ONNX files, torchvision, factories, names."""

from __future__ import annotations

from pathlib import Path

import detection_data
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from kdsearch import data as datasets
from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.models.boxes import shown
from kdsearch.models.model import Model
from kdsearch.teachers.detectors import ListFinder, classes_in, torchvision_detector
from kdsearch.teachers.evaluation import evaluate_teachers
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.distiller.coverage import refusal

CPU = torch.device("cpu")
SIZE = (detection_data.HEIGHT, detection_data.WIDTH)
# x1, y1, x2, y2 in fractions of the image, and scores of square, disc, ring.
BOXES = np.array([[0.1, 0.2, 0.4, 0.6], [0.5, 0.1, 0.9, 0.5], [0.3, 0.55, 0.5, 0.95]], np.float32)
SCORES = np.array([[0.9, 0.0, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.6]], np.float32)
NAMES = "{0: 'square', 1: 'disc', 2: 'ring'}"
POINTS = 9  # more than the boxes: the others have no score


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("data")
    return datasets.load(str(detection_data.write(folder / "shapes")), cache_dir=folder / "cache")


def onnx_file(
    path: Path,
    outputs: dict[str, np.ndarray],
    *,
    size: Size | None = SIZE,
    metadata: dict[str, str] | None = None,
) -> str:
    """Write a file that answers each image with the same outputs [1, ...]; return its name."""
    sides = ["height", "width"] if size is None else list(size)
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *sides])
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in outputs.items()
    ]
    graph = helper.make_graph(nodes, "fixed", [given], shapes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"names": NAMES} if metadata is None else metadata)
    onnx.save(model, path)
    return f"onnx:{path}"


def answer(layout: str, boxes: np.ndarray = BOXES, size: Size = SIZE) -> dict[str, np.ndarray]:
    """Return the boxes as a layout has them, on an input of (H, W)."""
    pixels = boxes * np.array([size[1], size[0]] * 2, np.float32)
    centres = np.concatenate(
        [(pixels[:, :2] + pixels[:, 2:]) / 2, pixels[:, 2:] - pixels[:, :2]], 1
    )
    rows = _filled(np.concatenate([centres, SCORES], 1))
    if layout == "columns":
        return {"output0": rows.transpose(0, 2, 1).copy()}
    if layout == "rows":
        return {"output0": rows}
    if layout == "objectness":
        sure = _filled(np.concatenate([centres, SCORES.max(1, keepdims=True), SCORES > 0], 1))
        return {"output0": sure}
    if layout == "suppressed":
        kinds = SCORES.argmax(1)[:, None]
        return {"output0": _filled(np.concatenate([pixels, SCORES.max(1)[:, None], kinds], 1))}
    if layout == "kdsearch":
        return {"detections": _filled(np.concatenate([boxes, SCORES], 1))}
    first = boxes if layout == "pair of fractions" else pixels
    return {"scores": _filled(SCORES), "boxes": _filled(first)}


def _filled(rows: np.ndarray) -> np.ndarray:
    whole = np.zeros((1, POINTS, rows.shape[1]), np.float32)
    whole[0, : len(rows)] = rows
    return whole


LAYOUTS = ("columns", "rows", "objectness", "suppressed", "kdsearch", "pair", "pair of fractions")


def load(name: str, data: ImageData, *, notes: list[str] | None = None, **given: str) -> Model:
    note = (lambda text: None) if notes is None else notes.append
    spec = TeacherSpec(name=name, **given)  # type: ignore[arg-type]
    return load_teacher(spec, data, cache_dir=Path("none"), seed=0, device=CPU, note=note)


def boxes_of(teacher: Model, data: ImageData) -> list[Tensor]:
    return shown(teacher(data.train.at(slice(2))), least=0.1)


def assert_boxes(found: Tensor, places: tuple[int, ...] = (0, 1, 2)) -> None:
    """Assert that boxes [n, 6] are the fixed ones, of the data's classes."""
    order = list(places)
    torch.testing.assert_close(found[:, :4], torch.from_numpy(BOXES[order]), atol=1e-5, rtol=0)
    scores, kinds = torch.from_numpy(SCORES[order]).max(dim=1)
    torch.testing.assert_close(found[:, 4], scores)
    assert [detection_data.CLASSES[int(kind)] for kind in kinds] == [
        detection_data.CLASSES[int(kind)] for kind in found[:, 5]
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_boxes(layout: str, data: ImageData, tmp_path: Path) -> None:
    teacher = load(onnx_file(tmp_path / "d.onnx", answer(layout)), data)
    assert teacher.teaches == {"boxes"}
    assert teacher.classes is None
    for found in boxes_of(teacher, data):
        assert_boxes(found)


@pytest.mark.parametrize("layout", ["columns", "suppressed", "pair of fractions"])
def test_a_square_input_shows_the_whole_image_between_bars(
    layout: str, data: ImageData, tmp_path: Path
) -> None:
    """96 x 128 px fit into 256 x 256 as 192 x 256, with 32 rows of grey above and below."""
    whole = (BOXES * [256, 192, 256, 192] + [0, 32, 0, 32]).astype(np.float32) / 256
    outputs = answer(layout, whole, (256, 256))
    teacher = load(onnx_file(tmp_path / "d.onnx", outputs, size=(256, 256)), data)
    assert teacher.preprocess.size == (192, 256)
    assert_boxes(boxes_of(teacher, data)[0])


def test_a_file_without_a_size_is_shown_the_canvas_of_the_data(
    data: ImageData, tmp_path: Path
) -> None:
    teacher = load(onnx_file(tmp_path / "d.onnx", answer("columns"), size=None), data)
    assert teacher.preprocess.size == SIZE
    assert_boxes(boxes_of(teacher, data)[0])


def test_classes_are_matched_by_name_and_others_dropped(data: ImageData, tmp_path: Path) -> None:
    notes: list[str] = []
    metadata = {"names": "{0: 'Ring', 1: 'dog', 2: 'SQUARE'}"}
    file = onnx_file(tmp_path / "d.onnx", answer("columns"), metadata=metadata)
    teacher = load(file, data, notes=notes)
    found = boxes_of(teacher, data)[0]
    assert [data.classes[int(kind)] for kind in found[:, 5]] == ["ring", "square"]
    assert teacher.classes == tuple(sorted(data.classes.index(n) for n in ("ring", "square")))
    assert any("knows 2 of the 3 classes: disc learn" in note for note in notes)
    assert any("boxes of 1 of its classes are dropped" in note and "dog" in note for note in notes)


def test_names_come_from_a_file_or_are_the_datas_in_order(data: ImageData, tmp_path: Path) -> None:
    notes: list[str] = []
    file = onnx_file(tmp_path / "d.onnx", answer("columns"), metadata={})
    kinds = boxes_of(load(file, data, notes=notes), data)[0][:, 5]
    assert kinds.tolist() == [0, 1, 2]
    assert "states no names of its 3 classes" in notes[0]
    (tmp_path / "names.txt").write_text("disc\nring\nsquare\n")
    kinds = boxes_of(load(file, data, classes=str(tmp_path / "names.txt")), data)[0][:, 5]
    assert [data.classes[int(kind)] for kind in kinds] == ["disc", "ring", "square"]


def test_a_perfect_teacher_scores_1(data: ImageData, tmp_path: Path) -> None:
    """Its metric is that of the task, on the same boxes as all images have here."""
    labels = torch.zeros_like(data.val.labels)
    labels[..., 4] = -1
    for place, name in enumerate(detection_data.CLASSES):
        row = torch.from_numpy(np.append(BOXES[place], data.classes.index(name)))
        labels[:, place] = row.float()
    teacher = load(onnx_file(tmp_path / "d.onnx", answer("rows")), data)
    images = data.val.take(slice(4))
    images = type(images)(images.images, labels[:4], images.rows)
    found = evaluate_teachers([teacher], images, data, tasks.of(data), CPU)
    assert found.value == pytest.approx(1.0)
    both = evaluate_teachers([teacher, teacher], images, data, tasks.of(data), CPU)
    assert both.value == pytest.approx(1.0)


def changed(layout: str, change: str) -> dict[str, np.ndarray]:
    found = answer(layout)
    ((name, value),) = found.items()
    value = value.copy()
    if change == "nan":
        value[0, 0, 0] = np.nan
    elif change == "logits":
        value[..., 4:] = 5.0
    elif change == "fractions":
        value[..., :4] /= 128
    elif change == "outside":
        value[..., :2] += 1000
    elif change == "transposed":
        value = value.reshape(1, 3, -1)
    return {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "it answers with NaN or infinity"),
        ("logits", "its scores reach from 5 to 5; expected 0 to 1"),
        ("fractions", "all of its boxes are below 1 pixel: are they in fractions"),
        ("outside", "out of range"),
        ("transposed", r"its outputs are output0 \[2, 3, 21\]; .* none fits"),
    ],
)
def test_a_wrong_answer_is_refused(
    change: str, message: str, data: ImageData, tmp_path: Path
) -> None:
    file = onnx_file(tmp_path / "d.onnx", changed("rows", change))
    with pytest.raises(SpecError, match=message) as caught:
        load(file, data)
    assert f"--teacher {file}" in str(caught.value)


def test_what_fits_several_layouts_is_refused(data: ImageData, tmp_path: Path) -> None:
    square = np.zeros((1, 7, 7), np.float32)
    with pytest.raises(SpecError, match="columns and rows fit, of the file's 3 classes"):
        load(onnx_file(tmp_path / "d.onnx", {"output0": square}), data)
    other = np.zeros((1, 84, 50), np.float32)
    with pytest.raises(SpecError, match=r"states none in its metadata .* --teacher-classes FILE"):
        load(onnx_file(tmp_path / "d.onnx", {"output0": other}, metadata={}), data)


def test_names_that_no_class_has_and_no_names_at_all_are_refused(
    data: ImageData, tmp_path: Path
) -> None:
    other = {"names": "{0: 'cat', 1: 'dog', 2: 'cow'}"}
    with pytest.raises(SpecError, match="knows none of the classes of 'shapes' by name"):
        load(onnx_file(tmp_path / "d.onnx", answer("rows"), metadata=other), data)
    with pytest.raises(SpecError, match="its metadata `names` is no list of names"):
        load(onnx_file(tmp_path / "d.onnx", answer("rows"), metadata={"names": "open('x')"}), data)
    for mean in ("half", "0.5", "[0.5]", '["a", 0, 0]'):
        with pytest.raises(SpecError, match=r"its metadata `mean` is .* each of 3 channels"):
            load(onnx_file(tmp_path / "d.onnx", answer("rows"), metadata={"mean": mean}), data)


def test_a_file_that_does_not_load_and_flags_that_it_has_no_use_for_are_refused(
    data: ImageData, tmp_path: Path
) -> None:
    (tmp_path / "text.onnx").write_text("no file")
    with pytest.raises(SpecError, match="cannot be loaded"):
        load(f"onnx:{tmp_path / 'text.onnx'}", data)
    file = onnx_file(tmp_path / "d.onnx", answer("rows"))
    with pytest.raises(SpecError, match="leave the flag out"):
        load(file, data, epochs=2)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="has weights of its own"):
        load(file, data, weights="x.pt")


def test_the_methods_that_a_teacher_of_boxes_cannot_teach_are_refused(
    data: ImageData, tmp_path: Path
) -> None:
    teacher = load(onnx_file(tmp_path / "d.onnx", answer("rows")), data)
    able = [name for name in METHODS.names() if METHODS.get(name).reads]
    able = [name for name in able if not refusal(name, [teacher])]
    assert able == ["pseudo_boxes", "soft_boxes"]
    assert refusal("det_kd+box_iou", [teacher]) == (
        "det_kd: the teacher gives boxes alone; use pseudo_boxes"
    )


FACTORY = """
import torch

BOXES = torch.tensor({boxes})


class Detector(torch.nn.Module):
    def forward(self, images):
        assert isinstance(images, list) and images[0].max() <= 1
        height, width = images[0].shape[1:]
        boxes = BOXES * torch.tensor([width, height, width, height])
        some = [{{"boxes": boxes, "labels": torch.tensor([1, 2, 3]),
                  "scores": torch.tensor([0.9, 0.8, 0.6])}}]
        none = {{"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64),
                 "scores": torch.zeros(0)}}
        return some + [none] * (len(images) - 1)


def named():
    found = Detector()
    found.categories = ["__background__", "square", "disc", "ring"]
    return found


def unnamed():
    return Detector()


def two():
    found = Detector()
    found.classes = ["square", "disc"]
    return found


class Tensors(Detector):
    def forward(self, images):
        return torch.zeros(2, 3)


def no_dictionaries():
    return Tensors()
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "detectors.py"
    path.write_text(FACTORY.format(boxes=BOXES.tolist()))
    return path


def test_a_factory_answers_in_the_form_of_torchvision(data: ImageData, factory: Path) -> None:
    found = boxes_of(load(f"{factory}:named", data), data)
    assert_boxes(found[0])
    assert len(found[1]) == 0
    in_order = boxes_of(load(f"{factory}:unnamed", data), data)[0][:, 5]
    assert in_order.tolist() == [0, 1, 2]


def test_a_factory_that_answers_otherwise_is_refused(data: ImageData, factory: Path) -> None:
    with pytest.raises(SpecError, match="it answers with the labels 1 to 3, and has 2 classes"):
        load(f"{factory}:two", data)
    with pytest.raises(SpecError, match="expected in eval mode, of a list of images"):
        load(f"{factory}:no_dictionaries", data)


def test_a_detector_of_torchvision_needs_weights_and_knows_classes_by_name(
    data: ImageData, tmp_path: Path
) -> None:
    import torchvision

    name = "ssdlite320_mobilenet_v3_large"
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    torch.save(network.state_dict(), tmp_path / "four.pt")
    notes: list[str] = []
    teacher = load(f"torchvision:{name}", data, weights=str(tmp_path / "four.pt"), notes=notes)
    assert any("states no names of its 3 classes" in note for note in notes)
    images = data.val.at(slice(2)).float() / 255
    expected = network.eval()(list(images))
    finder = teacher.network.finder
    assert isinstance(finder, ListFinder)
    boxes, scores = finder(images)
    for place, found in enumerate(expected):
        count = len(found["boxes"])
        sides = torch.tensor([SIZE[1], SIZE[0]] * 2)
        torch.testing.assert_close(boxes[place, :count] * sides, found["boxes"], atol=1e-3, rtol=0)
        labels = scores[place, :count].argmax(dim=1)
        assert torch.equal(labels, found["labels"])
    assert teacher(data.val.at(slice(2))).shape[2] == 7


@pytest.mark.parametrize(
    "name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"]
)
def test_the_number_of_classes_is_that_of_the_weights(name: str) -> None:
    with torch.device("meta"):
        own, names = torchvision_detector(name, 91)
        other, unknown = torchvision_detector(name, 4)
    assert names is not None
    assert names[17] == ("cat",)
    assert unknown is None
    assert classes_in(other.state_dict(), own.state_dict(), 91) == 4
    assert classes_in(own.state_dict(), own.state_dict(), 91) == 91


TORCHVISION = """
import torch
import torchvision

def detector():
    torch.manual_seed(0)
    network = torchvision.models.detection.{name}(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96
    )
    network.score_thresh = 0.0
    network.classes = ["square", "disc", "ring"]
    return network
"""


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_a_detector_of_torchvision_runs_on_an_image(
    data: ImageData, tmp_path: Path, name: str
) -> None:
    """With random weights: its boxes lie in the image, and its scores are those it gives."""
    path = tmp_path / "own.py"
    path.write_text(TORCHVISION.format(name=name))
    teacher = load(f"{path}:detector", data)
    image = data.val.at(slice(1))
    (found,) = teacher.network.finder.network(list(image.float() / 255))
    answer = teacher(image)
    assert answer.shape[2] == 4 + data.num_classes
    scores = answer[0, :, 4:].amax(dim=1)
    torch.testing.assert_close(scores[scores > 0], found["scores"][found["labels"] > 0])
    (rows,) = shown(answer)
    assert len(rows) > 0
    assert ((rows[:, :4] >= 0) & (rows[:, :4] <= 1)).all()


def test_other_networks_of_torchvision_are_no_detectors(data: ImageData) -> None:
    with pytest.raises(SpecError, match="torchvision has no detector 'resnet18'"):
        load("torchvision:resnet18", data)
