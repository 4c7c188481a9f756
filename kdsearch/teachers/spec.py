"""Name a teacher: `--teacher`, `--teacher-weights` and `--teacher-epochs`, parsed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.cifar_resnet import DEPTHS
from kdsearch.models.inherit.source import read_files
from kdsearch.study.config import StudyConfig
from kdsearch.teachers import previous_study
from kdsearch.teachers.zero_shot import is_tag

KINDS = (
    "auto",
    "cifar_resnet{20,32,44,56,110}",
    "timm:NAME",
    "torchvision:NAME",
    "smp:ARCHITECTURE/ENCODER",
    "open_clip:MODEL",
    "study:FOLDER[#TRIAL]",
    "FILE.py:FACTORY",
    "onnx:FILE",
)

_SOURCES = ("timm", "torchvision", "smp", "open_clip", "study", "onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """A teacher: its name (see KINDS), its weights, and epochs of training on the data.

    weights: a file, or the tag of an open_clip model. classes: a file of class names. epochs: of
    fine-tuning, None for none; `auto` is trained with its own number then. pretrained: weights that
    `auto` may start from, by network. Raises SpecError for settings that contradict each other.
    """

    name: str = "auto"
    weights: str | None = None
    classes: str | None = None
    epochs: int | None = None
    pretrained: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise SpecError(f"--teacher-epochs {self.epochs}: expected at least 1")
        if self.name == "auto" and self.weights:
            raise SpecError(
                "--teacher-weights needs the network they belong to: give --teacher, one of "
                f"{', '.join(KINDS[1:])}"
            )
        if self.name.startswith("study:") and self.weights:
            raise SpecError(f"--teacher-weights: the student {self.name} has weights of its own")
        if self.name.startswith("onnx:") and self.weights:
            raise SpecError(f"--teacher-weights: the file {self.name} has weights of its own")

    def require(self) -> None:
        """Raise SpecError for an unknown name, a study or a file that is not there."""
        kind, _, rest = self.name.partition(":")
        if self.name != "auto" and not self.name.startswith("cifar_resnet") and not rest:
            raise unknown(self.name)
        file = self.weights_file
        if kind in ("study", "open_clip"):  # what they lack is named with what there is
            return
        if self.is_factory and kind.endswith(".py"):
            file = Path(self.name.rpartition(":")[0])
        if file is not None and not file.is_file():
            flag = "--teacher-weights" if self.weights == str(file) else f"--teacher {self.name}"
            raise SpecError(f"{flag}: there is no file {str(file)!r}")

    @property
    def is_trained_here(self) -> bool:
        """Whether this teacher is trained or fine-tuned by kdsearch."""
        return self.name == "auto" or self.epochs is not None

    @property
    def is_factory(self) -> bool:
        """Whether a user's function builds it."""
        return ":" in self.name and self.name.partition(":")[0] not in _SOURCES

    @property
    def weights_file(self) -> Path | None:
        """The file that its weights are read from, if any. Raises SpecError for no such study."""
        if self.name.startswith("study:"):
            return previous_study.weights_file(self.name.removeprefix("study:"))
        if self.name.startswith("onnx:"):
            return Path(self.name.removeprefix("onnx:"))
        is_tagged = self.name.startswith("open_clip:") and is_tag(self.weights or "")
        return Path(self.weights) if self.weights and not is_tagged else None


def unknown(name: str) -> SpecError:
    """Return the error of a name that is none of KINDS."""
    hint = did_you_mean(name, ["auto", *(f"cifar_resnet{depth}" for depth in DEPTHS)])
    if Path(name, "best").is_dir():
        hint = f" (the student of that study is named study:{name})"
    hint = hint or " (a network of a library is named timm:NAME or torchvision:NAME)"
    return SpecError(f"unknown teacher {name!r}{hint}; accepted: {', '.join(KINDS)}")


def teacher_specs(config: StudyConfig) -> tuple[TeacherSpec, ...]:
    """Return one spec for each teacher of a study. Raises SpecError.

    Names are separated by commas, and so are weights: empty for a teacher that needs none, or whose
    network has a file in --pretrained-weights.
    """
    names = [name.strip() for name in config.teacher.split(",")]
    if not all(names):
        raise SpecError(f"--teacher {config.teacher!r}: a name is missing next to a comma")
    weights = _one_each(config.teacher_weights, len(names), "--teacher-weights")
    classes = _one_each(config.teacher_classes, len(names), "--teacher-classes")
    pretrained = read_files(config.pretrained_weights)
    return tuple(
        TeacherSpec(
            name=name,
            weights=file or (str(pretrained[name]) if name in pretrained else None),
            classes=listed,
            epochs=config.teacher_epochs,
            pretrained=pretrained,
        )
        for name, file, listed in zip(names, weights, classes, strict=True)
    )


def _one_each(text: str | None, count: int, flag: str) -> list[str | None]:
    """Return one file for each teacher. Raises SpecError for another number of them."""
    files = [""] * count if text is None else text.split(",")
    if len(files) != count:
        raise SpecError(
            f"{flag}: {len(files)} for {count} teachers; give one for each, "
            "separated by commas, empty for a teacher that needs none"
        )
    return [file.strip() or None for file in files]
