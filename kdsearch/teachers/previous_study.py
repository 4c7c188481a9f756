"""The student of an earlier study as a teacher (Furlanello et al., ICML 2018, arXiv:1805.04770).

`FOLDER` is the best student of a study or of `kdsearch distill`, `FOLDER#TRIAL` one trial of a
study. A student gets images as in its own training: best/student.onnx states how. For a trial
only the study's data does, so that it teaches on no other data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdsearch.data.base import ImageData
from kdsearch.data.sizes import Size, as_size
from kdsearch.deploy.pricing import preprocess_of, with_statistics
from kdsearch.documents import parse_json, parse_yaml, read_text
from kdsearch.errors import SpecError
from kdsearch.models.features import bare
from kdsearch.models.model import Preprocess
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.space import Value
from kdsearch.spec import Candidate, StudentSpec, make
from kdsearch.study.open import load_study
from kdsearch.tasks import Task

_WEIGHTS = "student.safetensors"
_METADATA = ("mean", "std", "resolution", "channels")
_TRIAL = re.compile(r"(?P<folder>.+)#(?P<number>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudent:
    """A student on disk: its spec, weights, classes and preprocessing."""

    spec: StudentSpec
    weights: Path
    classes: tuple[str, ...]
    preprocess: Preprocess

    def build(self, task: Task) -> nn.Module:
        """Return the trained network, with a new head for another number of classes."""
        trained = self._untrained(type(task)(self.classes))
        fit_weights(bare(trained), read_weights(self.weights), where=str(self.weights))
        if len(task.classes) == len(self.classes):
            return trained
        network = self._untrained(task)
        state, own = bare(trained).state_dict(), bare(network).state_dict()
        head = frozenset(name for name in own if own[name].shape != state[name].shape)
        fit_weights(bare(network), state, where=str(self.weights), but=head)
        return network

    def _untrained(self, task: Task) -> nn.Module:
        shown = self.preprocess
        return task.network(self.spec, channels=shown.channels, size=shown.size)


def weights_file(name: str) -> Path:
    """Return the path of the weights of `FOLDER` or `FOLDER#TRIAL`. Raises SpecError."""
    trial = _TRIAL.fullmatch(name)
    if trial is None:
        return _shipped(Path(name)) / _WEIGHTS
    folder, number = Path(trial["folder"]), int(trial["number"])
    return _trial(folder, number)[1]


def find_student(name: str, data: ImageData, storage: str | None = None) -> SavedStudent:
    """Return the student at `FOLDER` or `FOLDER#TRIAL`, to teach on `data`. Raises SpecError.

    storage: of the study, see `open_study`.
    """
    trial = _TRIAL.fullmatch(name)
    if trial is None:
        return _of_folder(_shipped(Path(name)))
    folder = Path(trial["folder"])
    spec, weights = _trial(folder, int(trial["number"]), storage)
    if load_study(folder, storage).config.data_key != data.key:
        raise SpecError(
            f"study:{name}: a trial teaches on its own study's images alone, the same "
            f"--data, --seed, --subset, --image-size and --flip as in {folder / 'study.yaml'}; "
            f"study:{folder}, the best student, teaches on any"
        )
    return SavedStudent(
        spec=spec,
        weights=weights,
        classes=data.classes,
        preprocess=with_statistics(preprocess_of(spec, data), weights),
    )


def _shipped(folder: Path) -> Path:
    """Return the folder with config.yaml: `folder`'s best/, or `folder` itself."""
    for found in (folder / "best", folder):
        if (found / "config.yaml").is_file():
            return found
    message = f"study:{folder}: there is no {folder / 'best' / 'config.yaml'}"
    numbers = trials_with_weights(folder)
    if numbers:
        message += f"; trials with weights: {_listed(folder, numbers)}"
    raise SpecError(message)


def _trial(folder: Path, number: int, storage: str | None = None) -> tuple[StudentSpec, Path]:
    """Return the student of a trial, and its weights file."""
    record = next((r for r in load_study(folder, storage).records() if r.number == number), None)
    if record is None:
        raise SpecError(f"study:{folder}#{number}: the study has no such trial")
    holder = number if record.reused_from is None else record.reused_from
    weights = folder / "trials" / f"{holder:06d}" / _WEIGHTS
    if not weights.is_file():
        raise SpecError(
            f"study:{folder}#{number}: its weights were not kept (trials on the front "
            f"keep theirs); those that have them: "
            f"{_listed(folder, trials_with_weights(folder)) or 'none'}"
        )
    return Candidate.from_params(record.params).student, weights


def trials_with_weights(folder: Path) -> list[int]:
    """Return the numbers of the trials whose weights are there."""
    return sorted(int(file.parent.name) for file in folder.glob(f"trials/[0-9]*/{_WEIGHTS}"))


def _listed(folder: Path, numbers: list[int]) -> str:
    return ", ".join(f"study:{folder}#{number}" for number in numbers)


def _of_folder(folder: Path) -> SavedStudent:
    """Read an exported folder: the spec from config.yaml, the preprocessing from student.onnx."""
    metadata = metadata_of(folder / "student.onnx")
    file = folder / "config.yaml"
    try:
        config = parse_yaml(read_text(file))
        knobs: dict[str, Value] = {
            name.removeprefix("student."): value
            for name, value in config["set"].items()
            if name.startswith("student.") and name != "student.init"
        }
        family, resolution = config["student"], config.get("resolution", 0)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise SpecError(f"{file} does not name a student ({error!r}); export it again") from error
    spec = make(StudentSpec, family=family, resolution=resolution, knobs=knobs)
    return SavedStudent(
        spec=spec,
        weights=folder / _WEIGHTS,
        classes=tuple(parse_json(metadata.get("classes", "[]"))),
        preprocess=Preprocess(
            mean=tuple(parse_json(metadata["mean"])),
            std=tuple(parse_json(metadata["std"])),
            resolution=_size_in(metadata["resolution"]),
            channels=int(metadata["channels"]),
        ),
    )


def _size_in(text: str) -> Size:
    """Return (H, W) of a resolution in a file: `32` or `[24, 32]`."""
    found = parse_json(text)
    return as_size(found if isinstance(found, int) else tuple(found))


def metadata_of(file: Path) -> dict[str, str]:
    """Return the metadata of an exported ONNX file: its classes and its input."""
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        return metadata | {key: metadata[key] for key in _METADATA}
    except Exception as error:  # what a damaged file raises depends on the byte
        raise SpecError(
            f"{file} does not state the images that its student was trained on ({error!r}); "
            "export it again"
        ) from error
