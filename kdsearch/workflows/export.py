"""Export the best student of a study, or one of its trials, to other formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from torch import nn

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.sizes import Size
from kdsearch.deploy import formats as known_formats
from kdsearch.deploy import model_card, runtimes
from kdsearch.deploy.files import ExportedFile, ExportOptions, best, calibration_images, write_file
from kdsearch.deploy.formats.base import Source
from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.package import candidate_of, pack
from kdsearch.deploy.runtimes import Unavailable
from kdsearch.deploy.targets import require_target
from kdsearch.documents import parse_yaml, read_text
from kdsearch.errors import ExportError, KDSearchError, SpecError, StudyError
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import (
    DATA_FIELDS,
    TARGET_FIELDS,
    StudyConfig,
    config_of,
    read_config,
    resume_command,
)
from kdsearch.study.open import find_storage, load_study
from kdsearch.study.study import OpenStudy
from kdsearch.tasks import Metric, Task
from kdsearch.tasks._suppressed import suppressed
from kdsearch.teachers import previous_study
from kdsearch.trials.context import CACHE, lay_out, load_data
from kdsearch.workflows.qat import fine_tune

Shape: TypeAlias = tuple[int, int, int]
_SHOWN = 10  # numbers of trials in a message
_CPU = torch.device("cpu")
_FIELDS = (*DATA_FIELDS, *TARGET_FIELDS, "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The folder, its new files, and the fastest of them without misses.

    left_out: why other formats were not written, such as a missing package.
    """

    path: Path
    metric: Metric
    files: tuple[ExportedFile, ...]
    best: ExportedFile | None
    left_out: tuple[str, ...] = ()


def export_study(
    path: Path,
    formats: Sequence[str],
    callback: Callback,
    *,
    out: Path,
    trial: int | None = None,
    storage: str | None = None,
    max_drop: float = 0.01,
    is_folded: bool = False,
    is_decoded: bool = False,
    is_suppressed: bool = False,
    given: Mapping[str, object] | None = None,
) -> Exported:
    """Export the student at `path` to each format, and measure every file with its runtime.

    path: a study, or a folder of `kdsearch distill`. trial: exported instead of the best one, to
    exported/NUMBER; its weights must be kept. storage: see `open_study`. is_folded: ONNX files take
    raw pixels. is_decoded: files answer with classes, named `-argmax`. is_suppressed: ONNX files
    keep the best boxes alone, named `-nms`. given: target, threads or batch that differ from the
    study's.
    Where an 8-bit file loses more than `max_drop`, quantisation-aware training follows, and the
    better file stays. The results are added to metrics.json. A format that cannot be written costs
    only its own file. Raises SpecError for an unknown format and Unavailable where each lacks a
    package, before anything is written, and ExportError where no file could be.
    """
    alone = {"--fold-preprocess": is_folded, "--nms": is_suppressed}
    left_out = _without_package(formats, [flag for flag, is_given in alone.items() if is_given])
    config = config_of(given or {}, _study_config(path))
    if trial is None:
        _require_best(path)
    if storage is not None:
        find_storage(path, storage)
    folder = path / "best" if trial is None else path / "exported" / f"{trial:06d}"
    study = record = None
    if trial is not None and not folder.is_dir():
        study = load_study(path, storage)
        record = record_of(study, trial)
    data, found = load_data(config, out, callback.on_message)
    if config.data_key and found.data_key != config.data_key:
        raise StudyError(
            f"the images of {config.data!r} are no longer those of the study {path}; a file can "
            "only be evaluated on the same ones"
        )
    latencies = LatencyCache(out / CACHE, require_target(config))
    if study is not None and record is not None:
        _pack_trial(study, record, folder, config, data, latencies, storage=storage)
    student = _student(
        previous_study.find_student(str(path if trial is None else folder), data), data
    )
    task = tasks.of(data)
    callback.on_prepare(task.metric)
    options = ExportOptions(
        budget=_budget(config, task, is_suppressed=is_suppressed),
        max_drop=max_drop,
        is_folded=is_folded,
        is_decoded=is_decoded,
        is_suppressed=is_suppressed,
    )
    write = partial(write_file, data=data, options=options, latencies=latencies)
    answers = _Answers(task, data.size, is_decoded)
    files = []
    with _source_of(student, folder, data, answers) as source:
        for name in (name for name in formats if name not in left_out):
            callback.on_message(f"Writing {name}")
            try:
                file = write(name, student, source, folder)
            except ExportError as error:
                left_out[name] = f"{name} was not written: {error}"
                continue
            if known_formats.get(name).is_8_bit and file.drop > max_drop:
                lost = f"{task.metric.number(file.drop)}{task.metric.points}"
                callback.on_message(f"{file.name} loses {lost}: quantisation-aware training")
                tune = partial(_tuned, student, source, folder, config, data, out=out)
                file = _better(file, tune, source, folder, answers, write, callback)
            files.append(file)
    if not files:
        raise ExportError("\n".join(left_out.values()))
    _add_metrics(folder, files)
    return Exported(
        path=folder,
        metric=task.metric,
        files=tuple(files),
        best=best(files),
        left_out=tuple(left_out.values()),
    )


def _budget(config: StudyConfig, task: Task, *, is_suppressed: bool) -> Budget:
    """Return the budget of a file: all of it where the file suppresses boxes.

    Raises SpecError for such a file of a task without boxes.
    """
    if not is_suppressed:
        return config.budget
    suppressed(task)
    return replace(config, nms_ms=None).budget


@dataclass(frozen=True, slots=True)
class _Answers:
    """The form of the answers of a file: those of the task, or classes at the images' size."""

    task: Task
    size: Size
    are_classes: bool

    @property
    def output(self) -> str:
        """Return the name of a file's output."""
        return "classes" if self.are_classes else self.task.output

    def network(self, network: nn.Module) -> nn.Module:
        """Return the network to export."""
        found = self.task.deployed(network)
        return self.task.decoded(found, self.size) if self.are_classes else found

    def write_onnx(self, network: nn.Module, shipped: Path, path: Path, shape: Shape) -> nn.Module:
        """Write a student's network with the metadata of the file that ships, and return it."""
        found, metadata = self.network(network), previous_study.metadata_of(shipped)
        to_onnx(found, input_shape=shape, path=path, metadata=metadata, output=self.output)
        return found


@contextmanager
def _source_of(
    student: Model, folder: Path, data: ImageData, answers: _Answers
) -> Iterator[Source]:
    """Yield what the formats are made from: the file that ships, or one that answers otherwise."""
    shipped, shape = folder / "student.onnx", student.preprocess.input_shape
    source = Source(
        network=answers.network(student.network),
        input_shape=shape,
        onnx=shipped,
        calibration_images=lambda: calibration_images(student, data),
    )
    if not answers.are_classes:
        yield source
        return
    with TemporaryDirectory(dir=folder, prefix=".source-") as fresh:
        path = Path(fresh) / "student.onnx"
        network = answers.write_onnx(student.network, shipped, path, shape)
        yield replace(source, network=network, onnx=path)


def _better(
    file: ExportedFile,
    tune: Callable[..., Model],
    source: Source,
    folder: Path,
    answers: _Answers,
    write: Callable[..., ExportedFile],
    callback: Callback,
) -> ExportedFile:
    """Export the tuned student by `write`; replace `file` where the new one loses less.

    `file` stays, with a message, where the student cannot be tuned or written, or is no better.
    """
    with TemporaryDirectory(dir=folder, prefix=".tuned-") as fresh:
        onnx, full = Path(fresh) / "tuned.onnx", file.val + file.drop
        try:
            tuned = tune(callback=callback)
            network = answers.write_onnx(tuned.network, source.onnx, onnx, source.input_shape)
            source = replace(source, network=network, onnx=onnx)
            better = write(file.format, tuned, source, Path(fresh), full_precision=full)
        except KDSearchError as error:
            callback.on_message(f"{file.name} stays as it is: {error}")
            return file
        if better.drop >= file.drop:
            metric = answers.task.metric
            callback.on_message(
                f"{file.name} stays as it is: after tuning it loses {metric.number(better.drop)}"
                f"{metric.points}, before tuning {metric.number(file.drop)}{metric.points}"
            )
            return file
        (Path(fresh) / better.name).replace(folder / better.name)
        return better


def _without_package(formats: Sequence[str], of_onnx: Sequence[str]) -> dict[str, str]:
    """Return and say why formats cannot be written here. Raises Unavailable where none can be.

    of_onnx: the flags given that change ONNX files alone.
    """
    left_out = {}
    for name in formats:
        runtime = known_formats.get(name).runtime
        try:
            runtimes.require(runtime)
        except Unavailable as error:
            left_out[name] = f"{name} was not written: {error}"
        if of_onnx and runtime != "onnxruntime":
            raise SpecError(f"{of_onnx[0]} is for the ONNX formats; {name} is none of them")
    if len(left_out) == len(formats):
        raise Unavailable("\n".join(left_out.values()))
    return left_out


def _tuned(
    student: Model,
    source: Source,
    folder: Path,
    config: StudyConfig,
    data: ImageData,
    *,
    out: Path,
    callback: Callback,
) -> Model:
    """Return the student after quantisation-aware training."""
    context = lay_out(
        config,
        data,
        out=out,
        device=_CPU,
        on_epoch=callback.on_teacher_epoch,
        note=callback.on_message,
    )
    candidate = candidate_of((folder / "config.yaml").read_text(encoding="utf-8"))
    return fine_tune(student, candidate, context, source.calibration_images())


def _study_config(path: Path) -> StudyConfig:
    """Return the configuration of a study, or of a distillation."""
    config = read_config(path)
    if config is not None:
        return config
    file = path / "best" / "config.yaml"
    try:
        config = parse_yaml(read_text(file))
        return config_of({key: config[key] for key in _FIELDS if key in config})
    except FileNotFoundError:
        raise StudyError(
            f"there is nothing to export at {path}: no study.yaml, no {file}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise SpecError(
            f"{file} states no configuration ({error!r}); run `kdsearch distill` again"
        ) from error


def _require_best(path: Path) -> None:
    """Raise StudyError for a study without best/."""
    if not (path / "best" / "config.yaml").is_file():
        numbers = _shown(previous_study.trials_with_weights(path))
        other = f", or export a trial whose weights are kept: --trial {numbers}" if numbers else ""
        raise StudyError(
            f"the study {path.name!r} has no best student yet; `{resume_command(path)}` "
            f"resumes it{other}"
        )


def _shown(numbers: Sequence[int]) -> str:
    """Return the first numbers of trials as alternatives, '' for none."""
    return " or ".join(map(str, numbers[:_SHOWN])) + (", …" if numbers[_SHOWN:] else "")


def _student(earlier: previous_study.SavedStudent, data: ImageData) -> Model:
    if earlier.classes != data.classes:
        raise StudyError(f"the student's classes are not those of {data.name!r}")
    network = earlier.build(tasks.of(data))
    return Model(earlier.spec.family, network, earlier.preprocess).freeze()


def record_of(study: OpenStudy, number: int) -> TrialRecord:
    """Return a trial whose weights are kept. Raises SpecError for another."""
    numbers = previous_study.trials_with_weights(study.path)
    record = next((r for r in study.records() if r.number == number), None)
    advice = f"give --trial {_shown(numbers)}" if numbers else "no trial has weights"
    if record is None:
        raise SpecError(f"--trial {number}: the study {study.name!r} has no such trial; {advice}")
    if (number if record.reused_from is None else record.reused_from) not in numbers:
        raise SpecError(
            f"--trial {number}: its weights were not kept (trials on the front keep theirs); "
            f"{advice}"
        )
    return record


def _pack_trial(
    study: OpenStudy,
    record: TrialRecord,
    folder: Path,
    config: StudyConfig,
    data: ImageData,
    latencies: LatencyCache,
    *,
    storage: str | None,
) -> None:
    """Write the folder of one trial as that of the best."""
    earlier = previous_study.find_student(f"{study.path}#{record.number}", data, storage)
    teacher = study.facts.teacher_entry()
    assert record.cost is not None
    assert record.val is not None
    folder.parent.mkdir(exist_ok=True)
    pack(
        folder,
        _student(earlier, data),
        Candidate.from_params(record.params),
        config,
        data,
        cost=record.cost,
        results={"validation": record.val},
        teacher={"validation": teacher.val, "test": teacher.test},
        latencies=latencies,
        taught_epochs=record.taught_epochs,
    )


def _add_metrics(folder: Path, files: Sequence[ExportedFile]) -> None:
    """Add the files to metrics.json, each under its name, and to the card."""
    known = model_card.read_metrics(folder).get("files", {})
    model_card.update(folder, files={**known, **{file.name: asdict(file) for file in files}})
