"""Write the exported folder: the student as ONNX and safetensors, with its measurements.

Agreement with the PyTorch student, validation metric and latency are those of the ONNX file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from kdsearch import atomic, tasks
from kdsearch.data.base import ImageData
from kdsearch.data.sizes import Size
from kdsearch.deploy import model_card
from kdsearch.deploy.formats.base import EXACT, Agreement, answer_of
from kdsearch.deploy.formats.onnx import OPSET, evaluate, load_file, to_onnx, verify
from kdsearch.deploy.latency import Latency, LatencyCache
from kdsearch.deploy.layers import layers
from kdsearch.deploy.pricing import file_for, save_student
from kdsearch.deploy.script import check_script, refuse_script, write_script
from kdsearch.deploy.suppression import IMAGES, Suppression, measure_suppression
from kdsearch.deploy.targets import target_info
from kdsearch.digests import changed
from kdsearch.documents import parse_json, parse_yaml
from kdsearch.errors import CostError, ExportError, SpecError, StudyError
from kdsearch.json_cache import processor
from kdsearch.models.model import Model, batches
from kdsearch.space import Value
from kdsearch.spec import Budget, Candidate, Cost
from kdsearch.study.chance import constant_answer, student_at_chance
from kdsearch.study.config import DATA_FIELDS, TARGET_FIELDS, StudyConfig
from kdsearch.tasks import Details, Task
from kdsearch.training.distiller.recipe import needed_features

_SHIPPED = ("student.onnx", "student.safetensors", model_card.CONFIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A written folder and the measurements of its ONNX file; warning: why not to use it.

    predicted: of predict.py on raw validation files; None where the data have none. nms: what the
    suppression of boxes takes after it; None for a task without.
    """

    path: Path
    val: float
    agreement: Agreement
    latency: Latency
    predicted: Agreement | None = None
    warning: str = ""
    nms: Suppression | None = None

    def is_within(self, budget: Budget) -> bool:
        """Whether the whole latency interval of the file is within the budget.

        Suppression counts where the budget counts it.
        """
        excess = 0.0 if self.nms is None else self.nms.excess_ms
        return budget.latency_ms is None or self.latency.high_ms + excess <= budget.latency_ms

    @property
    def took(self) -> str:
        """Return what the budget of latency counts, in words."""
        if self.nms is None or self.nms.counted_ms is None:
            return str(self.latency)
        return f"{self.latency}, and {self.nms.p95_ms:.3g} ms of suppression"


def read_package(path: Path) -> Package | None:
    """Return the package in an exported folder, None where files or measurements are missing.

    Nothing is measured again.
    """
    try:
        metrics = parse_json((path / model_card.METRICS).read_text(encoding="utf-8"))
        onnx = metrics["onnx"]
        latency = Latency(
            **{name: onnx[f"latency_{name}"] for name in ("ms", "low_ms", "high_ms", "spread_ms")},
            contention=onnx["contention"],
        )
        agreement = Agreement(
            n=onnx["compared_images"],
            same=onnx["same_predictions"],
            max_abs=onnx["max_logit_difference"],
            max_rel=onnx["max_relative_logit_difference"],
        )
    except (OSError, ValueError, KeyError, TypeError, CostError):
        return None
    if not all((path / name).is_file() for name in _SHIPPED):
        return None
    return Package(
        path=path,
        val=onnx["val"],
        agreement=agreement,
        latency=latency,
        warning=metrics.get("warning", ""),
        nms=None if onnx.get("nms") is None else Suppression(**onnx["nms"]),
    )


def pack(
    path: Path,
    student: Model,
    candidate: Candidate,
    config: StudyConfig,
    data: ImageData,
    *,
    cost: Cost,
    results: Mapping[str, float],
    teacher: Mapping[str, object],
    latencies: LatencyCache,
    limit: float | None = None,
    details: Mapping[str, Details] | None = None,
    taught_epochs: int | None = None,
) -> Package:
    """Write the exported folder to `path`: weights, ONNX file, predict.py, config, metrics, card.

    results, teacher: the metric by split, `validation` and `test`; details: of the student, where
    validation is not evaluated here. limit: see `LatencyCache.measure`. taught_epochs: those with a
    teacher, where its student reached it; None: all. The folder appears whole or
    not at all. Raises ExportError when the file does not agree with the student, or predict.py does
    not on raw validation files.
    """
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise StudyError(f"cannot write to {path.parent}: {error.strerror}") from error
    student = student.cpu().eval()
    save_student(student, fresh / "student.safetensors")
    shape = student.preprocess.input_shape
    file = fresh / "student.onnx"
    task = tasks.of(data)
    metadata = _metadata(student, data, task)
    network = task.deployed(student.network)
    to_onnx(network, input_shape=shape, path=file, metadata=metadata, output=task.output)

    def inputs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches(data.val, torch.device("cpu")):
            yield student.preprocess(images), labels

    agreement = verify(network, file, (images for images, _ in inputs()), task)
    script = write_script(fresh)
    predicted = check_script(script, file, load_file(file), student.preprocess, data, task)
    if wrong := refuse_script(predicted, EXACT.same):
        raise ExportError(f"{file.name} of {path}: {wrong}: {predicted}")
    val, on_val = evaluate(file, inputs(), task, count=len(data.val))
    warning = student_at_chance(
        on_val.with_noise(task.metric_on(data.val.labels)),
        results["validation"],
        task.chance(data.val.labels),
        len(data.val),
        "this student",
        constant_answer(on_val, data.classes),
    )
    target = latencies.target
    timed = file if "onnxruntime" in target.takes else file_for(student.network, target, shape)
    package = Package(
        path=path,
        val=val,
        warning=warning,
        agreement=agreement,
        latency=latencies.measure(timed, shape=shape, limit=limit),
        predicted=predicted,
        nms=_suppression(file, student, data, task, latencies, config.nms_ms),
    )
    images = {"training": len(data.train), "validation": len(data.val), "test": len(data.test)}
    atomic.write(fresh / model_card.CONFIG, config_text(candidate, config))
    model_card.update(
        fresh,
        **{task.metric.key: dict(results)},
        metric=asdict(on_val.with_noise(task.metric)),
        task={"name": task.name, "output_name": task.output, **asdict(task.facts())},
        teacher={"name": config.teacher, **teacher},
        warning=warning,
        details={k: asdict(v) for k, v in {"validation": on_val, **(details or {})}.items()},
        is_taught=bool(needed_features(candidate.distill)) and taught_epochs != 0,
        taught_epochs=taught_epochs,
        data={"name": data.name, "images": images},
        machine=processor().replace(" | ", ", "),
        metadata=metadata,
        layers=[asdict(layer) for layer in layers(student.network, shape)],
        **_metrics(package, config, cost, file.stat().st_size),
    )
    shutil.rmtree(path, ignore_errors=True)
    fresh.rename(path)
    return package


def _suppression(
    file: Path,
    student: Model,
    data: ImageData,
    task: Task,
    latencies: LatencyCache,
    counted_ms: float | None,
) -> Suppression | None:
    """Return what the suppression of the file's boxes takes; None for a task without."""
    if not task.joins_boxes:
        return None
    run = load_file(file)
    answers = (answer_of(run, student.preprocess(one[None])) for one in data.val.some(IMAGES))
    return replace(measure_suppression(answers, latencies), counted_ms=counted_ms)


def config_text(candidate: Candidate, config: StudyConfig) -> str:
    """Return the YAML that `kdsearch distill --config` retrains the candidate from."""
    student, distill, train = candidate.student, candidate.distill, candidate.train
    settings: dict[str, Value] = {f"student.{k}": v for k, v in student.knobs.items()}
    settings |= {} if student.init == "scratch" else {"student.init": student.init}
    settings |= {f"method.{k}": v for k, v in distill.knobs.items()}
    named = ("method", "alpha", "weight", "mapping", "knobs")
    others = {k: v for k, v in changed(distill).items() if k not in named}
    settings |= {f"method.{k}": str(v) for k, v in others.items()}
    settings |= {f"train.{k}": v for k, v in asdict(train).items() if k != "epochs"}
    flags: dict[str, object] = {
        **{name: getattr(config, name) for name in DATA_FIELDS},
        "student": student.family,
        "resolution": student.resolution or None,
        "method": distill.method,
        "alpha": distill.alpha,
        "weight": distill.weight,
        "mapping": distill.mapping,
        "epochs": train.epochs,
        "seed": config.seed,
        **{name: getattr(config, name) for name in TARGET_FIELDS},
    }
    given = {name: value for name, value in flags.items() if value is not None}
    text = yaml.safe_dump({**given, "set": settings}, sort_keys=False)
    return f"# kdsearch distill --config config.yaml\n{text}"


def candidate_of(text: str) -> Candidate:
    """Return the candidate of a config.yaml. Raises SpecError when it names none."""
    try:
        config = parse_yaml(text)
        family, method = config["student"], config["method"]
        owners = {"student": f"student.{family}.", "method": f"method.{method}.", "train": "train."}
        params: dict[str, Value] = {"student.family": family, "method.name": method}
        for name, value in config["set"].items():
            section, _, knob = name.partition(".")
            params[owners[section] + knob] = value
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"config.yaml names no candidate ({error!r}); export it again") from error
    flags = ("alpha", "weight", "mapping")
    params |= {f"method.{method}.{flag}": config[flag] for flag in flags if flag in config}
    params |= {"student.resolution": config.get("resolution", 0), "train.epochs": config["epochs"]}
    return Candidate.from_params(params)


def _metadata(student: Model, data: ImageData, task: Task) -> dict[str, str]:
    shown = student.preprocess
    return {
        **task.metadata(),
        "mean": json.dumps(shown.mean),
        "std": json.dumps(shown.std),
        "image_size": _sides(data.size),
        "fit": data.decoding.fit,
        "max_megapixels": f"{data.decoding.max_megapixels:g}",
        "resolution": _sides(shown.size),
        "channels": str(shown.channels),
        "input": "pixels / 255, minus mean, over std; [batch, channels, height, width]",
    }


def _sides(size: Size) -> str:
    """Return `32` for a square and `[24, 32]` for another (H, W), as JSON."""
    return json.dumps(size[0] if size[0] == size[1] else size)


def _metrics(package: Package, config: StudyConfig, cost: Cost, size: int) -> dict[str, object]:
    agreement, latency = package.agreement, package.latency
    return {
        "onnx": {
            "opset": OPSET,
            "bytes": size,
            "val": package.val,
            "same_predictions": agreement.same,
            "compared_images": agreement.n,
            "max_logit_difference": agreement.max_abs,
            "max_relative_logit_difference": agreement.max_rel,
            "predict_py": None if package.predicted is None else asdict(package.predicted),
            **latency.as_cost(),
            "contention": latency.contention,
            "one_round": latency.is_cut,
            **({} if package.nms is None else {"nms": asdict(package.nms)}),
        },
        "within_budget": package.is_within(config.budget),
        "budget": asdict(config.budget),
        "target": asdict(target_info(config)),
        "flops": cost.flops,
        "params": cost.params,
    }
