"""Teachers of boxes: detectors of other libraries, which teach by their boxes alone.

They answer as a student does: boxes in fractions of the image, and a score for each class of the
data. Boxes of classes that the data have not are dropped.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError, explained
from kdsearch.models.checkpoints import Note
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model, Preprocess
from kdsearch.teachers.classes import Names, columns_of, folded, listed
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.teacher_cache.parts import BOXES

_SURE = 0.25  # score of a box that has to lie in its image
_BEYOND = 1.0  # by which the centre of such a box may lie outside of its image, in fractions
_CHECKED = 4  # images


class Columns(NamedTuple):
    """The classes of the data that a teacher knows: columns of its scores, and their places."""

    columns: tuple[int, ...]
    places: tuple[int, ...]


class BoxNetwork(nn.Module):
    """A detector that answers with boxes and a score for each class of the data, [B, P, 4 + K].

    finder: gives boxes [B, P, 4] in fractions of its input [B, C, H, W], and scores [B, P, H] of
    its own classes.
    """

    def __init__(self, finder: nn.Module, known: Columns, num_classes: int) -> None:
        super().__init__()
        self.finder = finder
        self.known = known
        self.num_classes = num_classes

    def extra_repr(self) -> str:
        """Return the classes: cached boxes depend on them."""
        return f"{self.known}, num_classes={self.num_classes}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the answer. Raises SpecError for boxes or scores that cannot be."""
        boxes, scores = self.finder(x)
        _check(boxes, scores, (x.shape[2], x.shape[3]))
        own = scores.new_zeros(*scores.shape[:2], self.num_classes)
        own[..., list(self.known.places)] = scores[..., list(self.known.columns)]
        return torch.cat([boxes, own], dim=2)

    def features(self, x: Tensor) -> Outputs:
        """Return outputs without logits and embedding: there are none."""
        return Outputs(x.new_zeros(len(x), 1, 0), x.new_zeros(len(x), 0))


class BoxTeacher(Model):
    """A teacher that gives boxes alone."""

    teaches: ClassVar[frozenset[str] | None] = BOXES

    def __init__(self, name: str, network: BoxNetwork, preprocess: Preprocess) -> None:
        super().__init__(name, network, preprocess)
        places = network.known.places
        self._classes = None if len(places) == network.num_classes else places

    @property
    def classes(self) -> tuple[int, ...] | None:
        """Return the classes of the data that it knows; None: all."""
        return self._classes

    @property
    def params(self) -> int:
        """Return the number of its weights, of a file too."""
        return super().params + sum(getattr(part, "stored", 0) for part in self.modules())


def known_columns(spec: TeacherSpec, names: Names, data: ImageData, note: Note) -> Columns:
    """Return which classes of the data a teacher knows by name; notes what is dropped.

    Raises SpecError where it knows none.
    """
    found = columns_of(names, data.classes)
    theirs = [name[0] for name in names if name[0] and folded(name[0]) != "background"]
    if not found:
        raise SpecError(
            f"--teacher {spec.name}: it knows none of the classes of {data.name!r} by name "
            f"({listed(data.classes)}); its own are {listed(theirs)}. --teacher-classes FILE gives "
            "its classes the data's names, in the order of its own"
        )
    if missing := [name for place, name in enumerate(data.classes) if place not in found]:
        note(
            f"Teacher {spec.name} knows {len(found)} of the {len(data.classes)} classes: "
            f"{listed(missing)} learn from the labels alone"
        )
    dropped = [name for place, name in enumerate(theirs) if not columns_of([(name,)], data.classes)]
    if dropped:
        note(
            f"Teacher {spec.name}: boxes of {len(dropped)} of its classes are dropped, which the "
            f"data have not ({listed(dropped)})"
        )
    return Columns(columns=tuple(found.values()), places=tuple(found))


def about_order(name: str, data: ImageData) -> str:
    """Return a line on a teacher whose classes have no names."""
    return (
        f"Teacher {name} states no names of its {data.num_classes} classes: they are taken as the "
        f"data's, in order ({listed(data.classes)}); --teacher-classes FILE names them"
    )


def refuse_training(spec: TeacherSpec) -> None:
    """Raise SpecError where a teacher of boxes is to be trained."""
    if spec.epochs is not None:
        raise SpecError(
            f"--teacher-epochs {spec.epochs}: {spec.name} is used as it is; leave the flag out"
        )


@torch.no_grad()
def checked(teacher: BoxTeacher, data: ImageData) -> BoxTeacher:
    """Return the teacher after a few images. Raises SpecError with the reason where it fails."""
    try:
        teacher.eval()(data.train.some(_CHECKED))
    except SpecError as error:
        raise SpecError(f"--teacher {teacher.name}: {error}") from error
    except Exception as error:  # a user's network may raise anything
        raise SpecError(
            f"--teacher {teacher.name} fails on an image: {explained(error)}"
        ) from error
    return teacher


def _check(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> None:
    """Raise SpecError for NaN, scores outside of [0, 1], and boxes that are not of the image."""
    if not boxes.isfinite().all() or not scores.isfinite().all():
        raise SpecError("it answers with NaN or infinity")
    low, high = (float(scores.min()), float(scores.max())) if scores.numel() else (0.0, 0.0)
    if low < -1e-3 or high > 1 + 1e-3:
        raise SpecError(
            f"its scores reach from {low:.3g} to {high:.3g}; expected 0 to 1, after a sigmoid"
        )
    sure = boxes[scores.amax(dim=2) >= _SURE]
    if not len(sure):
        return
    centres = (sure[:, :2] + sure[:, 2:]) / 2
    sides = (sure[:, 2:] - sure[:, :2]) * sure.new_tensor([size[1], size[0]])
    wrong = ((centres < -_BEYOND) | (centres > 1 + _BEYOND)).any(dim=1) | (sides < 0).any(dim=1)
    if wrong.any():
        shown = ", ".join(f"{value:.3g}" for value in sure[wrong][0].tolist())
        raise SpecError(
            f"a box of it is ({shown}) as x1, y1, x2, y2 in fractions of the image: out of range; "
            "its boxes are in another form or unit than its layout has"
        )
    if (sides < 1).all():
        raise SpecError(
            "all of its boxes are below 1 pixel: are they in fractions, in place of pixels?"
        )
