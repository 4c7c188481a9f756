"""Task: the network, targets and loss of a kind of labels, and its metric.

An answer is the one tensor that a network returns at inference, [B, ...]; a file has that one
output. Labels are one tensor row an image, [N, ...], in the form that the task chooses. Importing
this module loads no torch: a study and its report read a `Metric` only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from kdsearch.data.sizes import Size, scaled_size
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.hpo.statistics import binomial_variance
from kdsearch.spec import StudentSpec
from kdsearch.train_spec import TrainSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdsearch.data.base import Augment, Colour
    from kdsearch.data.views import ViewSeeds
    from kdsearch.models.features import Outputs

Answer: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A share in [0, 1], higher is better, that trials are compared by.

    key: its name in files: front.json, metrics.json, model card. label: its name in sentences and
    on axes. is_percent: written as 97.31 %, differences in points; else as 0.9731. image_variance:
    variance of one image's part in it, which a meter measures (`Details.image_variances`); None:
    that of a right or wrong answer, p(1 - p), the largest of a share. design_effect: factor on the
    variance where images do not count alike (Kish, 1965), as those of a rare class in a mean over
    classes.
    """

    key: str
    label: str
    is_percent: bool = True
    image_variance: float | None = None
    design_effect: float = 1.0

    @property
    def unit(self) -> str:
        """Return `%` or nothing."""
        return "%" if self.is_percent else ""

    @property
    def points(self) -> str:
        """Return the unit of a difference, ` points` or nothing, to follow its number."""
        return " points" if self.is_percent else ""

    def number(self, value: float) -> str:
        """Return 0.9731 as '97.31', or as '0.9731' where the metric is no percentage."""
        return f"{100 * value:.2f}" if self.is_percent else f"{value:.4f}"

    def text(self, value: float) -> str:
        """Return 0.9731 as '97.31 %', or as '0.9731'."""
        return f"{self.number(value)} {self.unit}".strip()

    def difference(self, value: float) -> str:
        """Return 0.012 as '+1.20', in points, or as '+0.0120'."""
        return f"{'-' if value < 0 else '+'}{self.number(abs(value))}"

    def variance(self, value: float, images: int) -> float:
        """Return the variance that the choice of so many images adds to a value."""
        if self.image_variance is not None:
            return self.design_effect * self.image_variance / images
        return self.design_effect * binomial_variance(value, images)

    def standard_error(self, value: float, images: int) -> float:
        """Return the standard error of a value measured on so many images."""
        return math.sqrt(self.variance(value, images))

    def require(self, value: float, name: str) -> None:
        """Raise SpecError where a value that the user gave cannot be one of this metric."""
        if self.is_percent and not 0 <= value < 1:
            raise SpecError(
                f"{name} {value:g}: {self.label} is a fraction; expected a value from 0 to below "
                "1, as 0.95"
            )


MAX_CONFUSION = 32  # classes
ACCURACY = Metric(key="accuracy", label="accuracy")
DEFAULT_METRIC = ACCURACY
"""The metric of a study that states none: that of the data's default task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about a task for the model card.

    pipeline_tag: the task's name on Hugging Face. output: form and meaning of the answer.
    limits: sentences on what the network cannot do. script: predict.py's verb and object.
    snippet: lines of Python from `answer` to classes, with `names` of predict.py.
    head_outputs: outputs of a library's own network with the student's weights; None where the
    student has another head.
    """

    pipeline_tag: str
    output: str
    limits: tuple[str, ...]
    script: str = "prints what `student.onnx` answers"
    snippet: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    head_outputs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """A score of each class, in percent of its label: `IoU`.

    values, errors: score in [0, 1] and standard error, None where there is none. shares: of the
    labels.
    """

    label: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxCurves:
    """How well a detector finds objects, at an IoU of 0.5.

    precision: of each class, by recall from 0 to 1 in even steps; None for one without objects.
    sides: edges of groups of objects by size, the square root of their share of the image.
    objects, found: of each group, one fewer than edges, how many there are, and how many have a box
    of their class with a score of at least `score`.
    """

    precision: tuple[tuple[float, ...] | None, ...]
    sides: tuple[float, ...]
    objects: tuple[int, ...]
    found: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """An evaluation beyond its metric.

    metrics: all metrics of the task, by key. images, right, answered: by class, how many images
    have it, are right, and got it as the answer; empty where an image has no class of its own.
    confusion: images, or their pixels, by [class, answer], for at most MAX_CONFUSION classes.
    image_variances: variance of one image's part in a metric, by key, where the evaluation measured
    it. scores: of the classes, where they are not those of `images` and `right`. curves: of a
    detector.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    images: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    image_variances: Mapping[str, float] = field(default_factory=dict)
    scores: ClassScores | None = None
    curves: BoxCurves | None = None

    def with_noise(self, metric: Metric) -> Metric:
        """Return a metric with the noise that this evaluation measured, else as it is."""
        found = self.image_variances.get(metric.key)
        if found is None:
            return metric
        return replace(metric, image_variance=found, design_effect=1.0)

    def only_answer(self) -> int | None:
        """Return the class that every image got, None where there are several."""
        found = [i for i, count in enumerate(self.answered) if count]
        return found[0] if len(found) == 1 and sum(map(bool, self.images)) > 1 else None


class Meter(ABC):
    """A metric over a split, batch by batch.

    `add` changes tensors in place on their device and never waits for it, so that a GPU can replay
    it as a graph; a meter that cannot sets `captures` to False. `value` waits.
    """

    captures: ClassVar[bool] = True

    @abstractmethod
    def reset(self) -> None:
        """Forget all images."""

    def keep_images(self, count: int) -> None:  # noqa: B027
        """Keep the counts of each of so many images, where `details` measures noise by them.

        Called before the first batch, by an evaluation of a whole split.
        """

    @abstractmethod
    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch; images without a label count nowhere. Both: [B, ...]."""

    @abstractmethod
    def value(self) -> float:
        """Return the metric over all images since `reset`. Raises DataError without images."""

    def details(self) -> Details:
        """Return the rest of the evaluation; it waits for the device."""
        return Details()


class Task(ABC):
    """What depends on the kind of labels; everything else in kdsearch is the same for all tasks.

    A task is chosen by the data (`ImageData.task`) and made with the data's `classes`, which may be
    none. name: in messages and files. metric: that trials are compared by, the first unless another
    key is given. also: the others. output: name of the one output of an exported file.
    auto_teacher, auto_recipe: the teacher `auto`, and its training. has_library_networks: whether
    networks of timm and torchvision are students as they are. is_dense: whether networks answer
    with logits at each position, [B, K, h, w]. compares_numbers: whether two answers are compared
    number by number, besides `agreement`. joins_boxes: whether predict.py suppresses boxes of an
    answer, which takes its own time. looked: images that `picture` gets, at most. colours: of the
    classes, where the data state them.
    """

    name: ClassVar[str]
    metric: Metric
    auto_teacher: ClassVar[StudentSpec] = StudentSpec(
        family="resnet", knobs={"width": 1.0, "depth": 9}
    )
    # On digits, seeds 0, 1, 2: 99.7, 99.2 and 99.4 % on validation; batches of 64 at twice the rate
    # without smoothing reach 98.3 % at seed 1 in the same time.
    auto_recipe: ClassVar[TrainSpec] = TrainSpec(
        epochs=20, batch_size=32, lr=0.05, label_smoothing=0.1, ema=0.99
    )
    also: ClassVar[tuple[Metric, ...]] = ()
    has_library_networks: ClassVar[bool] = True
    is_dense: ClassVar[bool] = False
    compares_numbers: ClassVar[bool] = True
    joins_boxes: ClassVar[bool] = False
    output: ClassVar[str] = "output"
    looked: ClassVar[int] = 6
    colours: tuple[Colour, ...] = ()

    def __init__(self, classes: Sequence[str] = (), metric: str = "") -> None:
        self.classes = tuple(classes)
        known = {each.key: each for each in (self.metric, *self.also)}
        if metric and metric not in known:
            raise SpecError(
                f"--metric {metric}: unknown for {self.name}{did_you_mean(metric, known)}; known: "
                f"{', '.join(known)}"
            )
        self.metric = known.get(metric, self.metric)

    @classmethod
    def has_class_rows(cls) -> bool:
        """Return whether answers are distributions over classes, which methods can compare."""
        return cls.rows is not Task.rows

    def metric_on(self, labels: Tensor) -> Metric:
        """Return the metric with its noise on a split of these labels."""
        return self.metric

    def class_weights(self, labels: Tensor, power: float) -> Tensor:
        """Return the weight [K] of each class in the loss: its share of labels to the -power.

        Their mean over the images is 1. Raises SpecError for a task without classes.
        """
        raise SpecError(f"train.class_weights: the task {self.name!r} has no classes to weigh")

    def input_size(self, size: Size, resolution: int) -> Size:
        """Return (H, W) of a student's input for images of a size; resolution: its longer side."""
        return scaled_size(size, resolution)

    @abstractmethod
    def network(self, spec: StudentSpec, *, channels: int, size: Size) -> nn.Module:
        """Return an untrained student on the CPU: the body of a specification under a head.

        channels, size: of the data's images, (H, W), which the specification's resolution scales.
        """

    @abstractmethod
    def target(
        self, labels: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
    ) -> Tensor:
        """Return the labels of the samples at `index` [B] in a view, moved as its pixels were.

        labels: of all samples. size: (H, W) of the view. Never waits for the device.
        """

    @abstractmethod
    def loss(self, outputs: Outputs, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean loss over what is labelled, 0 with a graph where nothing is."""

    @abstractmethod
    def meter(self, device: torch.device) -> Meter:
        """Return a meter of `metric`, on a device."""

    def chance(self, labels: Tensor) -> float | None:
        """Return the best metric of a constant answer on these labels; None where it is unknown."""
        return None

    @abstractmethod
    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of images [N, ...] for which two runtimes give the same answer."""

    @abstractmethod
    def facts(self) -> Facts:
        """Return the facts for the model card."""

    def picture(self, images: Tensor, labels: Tensor, answers: Mapping[str, Answer]) -> bytes:
        """Return a PNG that shows images with labels and answers; empty for a task without one.

        images: uint8 [B, C, H, W]. labels: [B, ...]. answers: functions from such images to answers
        [B, ...], by the network's name, `teacher` and `student`.
        """
        return b""

    def metadata(self) -> dict[str, str]:
        """Return the metadata of an exported file on its answers, besides its preprocessing."""
        return {}

    def deployed(self, network: nn.Module) -> nn.Module:
        """Return the network that is exported: as it is, or with its answers decoded."""
        return network

    def decoded(self, network: nn.Module, size: Size) -> nn.Module:
        """Return the network that answers with classes in place of logits, for images of a size.

        Raises SpecError for a task without such a file.
        """
        raise SpecError(f"--argmax is for segmentation; the task {self.name!r} has no such file")

    def rows(
        self, student: Outputs, teacher: Outputs | None, target: Tensor | None
    ) -> tuple[Outputs, Outputs | None, Tensor | None]:
        """Return rows of class logits [n, K] and targets [n] or [n, K] for methods that need them.

        The rows are the `logits` of the outputs returned. Raises SpecError where answers are no
        distributions over classes.
        """
        raise SpecError(f"the task {self.name!r} has no class logits that methods could compare")

    def stacked(self, answers: Sequence[Tensor]) -> Tensor:
        """Return the answers [B, ...] of T teachers as one tensor [B, T, ...]."""
        import torch

        return torch.stack(list(answers), dim=1)

    def image_losses(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the loss [B, T] of each image for the answers [B, T, ...] of T teachers."""
        raise SpecError(f"the task {self.name!r} cannot weigh teachers by their losses")

    @abstractmethod
    def blend(self, weights: Tensor, answers: Tensor) -> Tensor:
        """Return the common answer [B, ...] of T teachers: answers [B, T, ...], weights [B, T]."""

    def labelled_by(self, target: Tensor, teacher: Outputs) -> Tensor:
        """Return the target with the teacher's answer where an image has no label."""
        raise SpecError(f"the task {self.name!r} takes no labels from a teacher")
