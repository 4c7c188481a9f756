"""Teachers in ONNX files, run by ONNX Runtime: classifiers, segmenters and detectors.

Metadata of kdsearch (`classes`, `mean`, `std`, `task`) and of ultralytics (`names`) are read.
Pixels are divided by 255 where no mean and std are stated. A detector is shown the whole image,
scaled to fit into its input and padded with grey.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import CLASSIFICATION, DETECTION, ImageData
from kdsearch.data.sizes import Size, placed, whole_strides
from kdsearch.errors import SpecError
from kdsearch.models.checkpoints import Note
from kdsearch.models.features import Outputs
from kdsearch.models.model import Known, Model, Preprocess
from kdsearch.teachers.box_layouts import Layout, find_layout
from kdsearch.teachers.boxes import (
    BoxNetwork,
    BoxTeacher,
    about_order,
    checked,
    known_columns,
    refuse_training,
)
from kdsearch.teachers.classes import Names, about, in_order, known_of, listed, read_classes
from kdsearch.teachers.heads import answers_on, are_probabilities
from kdsearch.teachers.spec import TeacherSpec

_GREY = 114 / 255  # around an image, as YOLO's
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_FLOATS = (1, 10, 11, 16)  # ONNX's numbers of float, float16, double and bfloat16
_EXPECTED = "expected one float input [batch, 1 or 3, height, width]"


class OnnxFile(nn.Module):
    """An ONNX file as a module without a gradient: images in, a list of tensors out.

    stored: the number of its weights. Raises SpecError for a file that does not load, or whose
    input is no image.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        from kdsearch.deploy.runtimes.onnxruntime import open_session

        super().__init__()
        try:
            content = path.read_bytes()
            self._session = open_session(content, threads=torch.get_num_threads())
            weights = onnx.load_from_string(content).graph.initializer
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise SpecError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from error
        self.path = path
        self.digest = blake2b(content, digest_size=16).hexdigest()
        self.stored = sum(prod(part.dims) for part in weights if part.data_type in _FLOATS)
        inputs = self._session.get_inputs()
        shape = [side if isinstance(side, int) else None for side in inputs[0].shape]
        is_image = len(inputs) == 1 and len(shape) == 4 and shape[1] in (1, 3, None)
        if not is_image or inputs[0].type not in _TYPES:
            shown = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise SpecError(f"{path}: its inputs are {shown}; {_EXPECTED}")
        self.batch, self.channels, height, width = shape
        self.size: Size | None = None if height is None or width is None else (height, width)
        self._input, self._dtype = inputs[0].name, _TYPES[inputs[0].type]
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.names = [output.name for output in self._session.get_outputs()]

    def extra_repr(self) -> str:
        """Return the digest of the content: cached outputs depend on it."""
        return self.digest

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxFile:
        """Return itself: nothing in it changes."""
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs [B, ...] of x: [B, C, H, W], float32 on the device of x."""
        if torch._C._get_tracing_state() is not None:
            raise SpecError(f"{self.path} runs outside of torch: its operators are not counted")
        size = self.batch or len(x)
        found = [self._part(part, size) for part in torch.split(x, size)]
        return [torch.cat(parts)[: len(x)].to(x.device) for parts in zip(*found, strict=True)]

    def _part(self, x: Tensor, size: int) -> list[Tensor]:
        """Return the outputs of at most `size` images, for a file of a fixed batch size."""
        whole = F.pad(x, (0, 0, 0, 0, 0, 0, 0, size - len(x))).to("cpu", self._dtype)
        outputs = self._session.run(None, {self._input: whole.numpy()})
        return [torch.from_numpy(output).float() for output in outputs]

    def classes(self) -> tuple[str, ...] | None:
        """Return the names of its classes, None where its metadata state none."""
        for key, parse in (("classes", json.loads), ("names", ast.literal_eval)):
            if text := self.metadata.get(key):
                try:
                    names = in_order(parse(text))
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    names = ()
                if not names:
                    raise SpecError(
                        f"{self.path}: its metadata `{key}` is no list of names: {text[:60]!r}"
                    )
                return names
        return None

    def preprocess(self, data: ImageData, size: Size) -> Preprocess:
        """Return the preprocessing that its metadata state, for an input of (H, W)."""
        channels = self.channels or data.channels
        found = []
        for key, value in (("mean", 0.0), ("std", 1.0)):
            text = self.metadata.get(key, json.dumps([value] * channels))
            try:
                numbers = tuple(map(float, json.loads(text)))
            except (ValueError, TypeError, RecursionError):
                numbers = ()
            if len(numbers) != channels:
                raise SpecError(
                    f"{self.path}: its metadata `{key}` is {text[:60]!r}; expected a number for "
                    f"each of {channels} channels"
                )
            found.append(numbers)
        mean, std = found
        return Preprocess(mean=mean, std=std, resolution=size, channels=channels)


class LogitsNetwork(nn.Module):
    """A classifier or segmenter in a file: logits [B, K] or [B, K, h, w], and nothing else."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.file = file
        self.are_probabilities = False

    def extra_repr(self) -> str:
        """Return the kind of the answers: cached outputs depend on it."""
        return f"are_probabilities={self.are_probabilities}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; of probabilities, their logarithms."""
        answer: Tensor
        (answer,) = self.file(x)
        if self.are_probabilities:
            answer = answer.clamp(min=torch.finfo(answer.dtype).tiny).log()
        return answer

    def features(self, x: Tensor) -> Outputs:
        """Return outputs without an embedding: there is none."""
        return Outputs(self(x), x.new_zeros(len(x), 0))


class LogitsTeacher(Model):
    """A teacher that gives logits alone."""

    teaches: ClassVar[frozenset[str] | None] = frozenset({"logits"})
    network: LogitsNetwork

    @property
    def params(self) -> int:
        """Return the number of its weights in the file."""
        stored: int = self.network.file.stored
        return stored


class BoxFinder(nn.Module):
    """A detector in a file; see `box_layouts`. canvas: (H, W) of its input."""

    def __init__(self, file: OnnxFile, layout: Layout, canvas: Size) -> None:
        super().__init__()
        self.file = file
        self.layout = layout
        self.canvas = canvas

    def extra_repr(self) -> str:
        """Return the layout: cached boxes depend on it."""
        return f"{self.layout}, canvas={self.canvas}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes [B, P, 4] in fractions of x, and scores [B, P, H]."""
        height, width = x.shape[2:]
        boxes, scores = self.layout(self.file(on_canvas(x, self.canvas)), self.canvas)
        top, left = (
            (whole - own) // 2 for whole, own in zip(self.canvas, x.shape[2:], strict=True)
        )
        place = boxes.new_tensor([left, top, left, top])
        whole = boxes.new_tensor([self.canvas[1], self.canvas[0]] * 2)
        return (boxes * whole - place) / boxes.new_tensor([width, height] * 2), scores


def on_canvas(x: Tensor, canvas: Size) -> Tensor:
    """Return images [B, C, H, W] in the middle of a grey canvas of (H, W)."""
    height, width = (whole - own for whole, own in zip(canvas, x.shape[2:], strict=True))
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, sides, value=_GREY)


def onnx_teacher(spec: TeacherSpec, data: ImageData, note: Note) -> Model:
    """Return a teacher that an ONNX file holds. Raises SpecError with what the file has."""
    refuse_training(spec)
    file = OnnxFile(Path(spec.name.removeprefix("onnx:")))
    given = file.classes()
    if spec.classes is not None:
        given = read_classes(Path(spec.classes), least=1 if data.task == DETECTION else 2)
    try:
        if data.task == DETECTION:
            return _detector(spec, file, given, data, note)
        return _classifier(spec, file, given, data, note)
    except SpecError as error:
        if spec.name in str(error):
            raise
        raise SpecError(f"--teacher {spec.name}: {error}") from error


def _detector(
    spec: TeacherSpec, file: OnnxFile, given: tuple[str, ...] | None, data: ImageData, note: Note
) -> BoxTeacher:
    canvas = file.size or (whole_strides(data.size[0]), whole_strides(data.size[1]))
    if file.metadata.get("task") == DETECTION and file.size:
        size = canvas  # as predict.py shows it
    else:
        size = placed(data.size, canvas)[2:] if file.size else data.size
    shown = file.preprocess(data, size)
    with torch.no_grad():
        few = on_canvas(shown(data.train.at(slice(2))), canvas)
        outputs = dict(zip(file.names, file(few), strict=True))
    layout = find_layout(
        outputs,
        classes=None if given is None else len(given),
        expected=data.num_classes,
        task=file.metadata.get("task", "") if "classes" in file.metadata else "",
    )
    names: Names = [(name,) for name in given or data.classes]
    if given is None:
        note(about_order(spec.name, data))
    note(f"Teacher {spec.name}: its answer is read as {layout.kind}, of {layout.classes} classes")
    known = known_columns(spec, names, data, note)
    network = BoxNetwork(BoxFinder(file, layout, canvas), known, data.num_classes)
    return checked(BoxTeacher(spec.name, network, shown), data)


def _classifier(
    spec: TeacherSpec, file: OnnxFile, given: tuple[str, ...] | None, data: ImageData, note: Note
) -> LogitsTeacher:
    shown = file.preprocess(data, file.size or data.size)
    network = LogitsNetwork(file)
    with torch.no_grad():
        outputs = dict(zip(file.names, file(shown(data.train.at(slice(2)))), strict=True))
    ndim = 2 if data.task == CLASSIFICATION else 4
    if len(outputs) != 1 or next(iter(outputs.values())).ndim != ndim:
        seen = ", ".join(f"{name} {list(found.shape)}" for name, found in outputs.items())
        form = "[B, K]" if ndim == 2 else "[B, K, h, w]"
        raise SpecError(f"its outputs are {seen}; expected logits {form} of K classes alone")
    model = LogitsTeacher(spec.name, network, shown)
    answers = answers_on(model, data)
    width = answers.shape[1]
    if given is not None and len(given) != width:
        raise SpecError(f"it names {len(given)} classes and has {width} outputs")
    if are_probabilities(answers):
        network.are_probabilities = True
        note(f"Teacher {spec.name} answers with probabilities: their logarithms are its logits")
    names = None if given is None else [(name,) for name in given]
    if names is None and width == data.num_classes:
        return model
    known = known_of(names, data.classes)
    if not known.columns or (known.classes is not None and data.task != CLASSIFICATION):
        raise SpecError(
            f"it has {width} classes ({listed(given or ['without names'])}) and the data "
            f"{data.name!r} has {listed(data.classes)}; --teacher-classes FILE names its own"
        )
    if text := about(spec.name, known, names, width, data.classes):
        note(text)
    is_same = known == Known(columns=tuple(range(width)), classes=None)
    return model if is_same else LogitsTeacher(spec.name, network, shown, known)
