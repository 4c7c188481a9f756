"""Every method at its defaults: cifar_resnet56 teaches one small student, several seeds each.

Accuracy is that of the averaged weights on the 10,000 test images; nothing is chosen by it. All
methods of a seed share the student's first weights, the order of batches and the views. Needs
CIFAR-10 as Parquet and the teacher's weights. What a step costs is told by `method_cost`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from kdsearch import data as datasets
from kdsearch import methods, tasks
from kdsearch.data.base import ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import KDSearchError
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.teachers.load import TeacherSpec, load_teacher
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import train
from kdsearch.training.validation import evaluate
from kdsearch.trials.trial import TrialContext, build_distiller

STUDENT = StudentSpec(family="resnet", knobs={"width": 0.5, "depth": 3})
_VAL_IMAGES = 100
EXTRA = ("at+kd", "fitnet+kd", "rkd+kd")


def main(argv: list[str] | None = None) -> int:
    """Train every method under every seed; write a line of JSON as soon as each is done."""
    given = _arguments().parse_args(argv)
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as folder:
        data = datasets.load(given.data, cache_dir=Path(folder), subset=given.subset)
        few = data.val.take(torch.arange(_VAL_IMAGES))  # judged each epoch, and used for nothing
        data = replace(data, val=few)
        teacher = load_teacher(
            TeacherSpec(name="cifar_resnet56", weights=given.teacher_weights),
            data,
            cache_dir=Path(folder),
            seed=0,
            device=device,
        )
        context = _bench(data, teacher, Path(folder), device, gigabytes=given.gigabytes)
        chosen = given.methods or [*methods.names(), *EXTRA]
        rows = []
        for name in ["none", *(name for name in chosen if name != "none")]:
            rows.append(_row(name, context, given))
            print(json.dumps(rows[-1]), flush=True)
    found = {
        "what": "test accuracy of one small student taught by cifar_resnet56, each method at its "
        "defaults",
        "student": "resnet width 0.5 depth 3",
        "recipe": {"epochs": given.epochs, "batch_size": 64, "images": given.subset},
        "teacher_test": evaluate(teacher, data.test, tasks.of(data), device),
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
        "rows": list(_against_control(rows)),
    }
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="methods_on_cifar10", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of Parquet files")
    parser.add_argument("--teacher-weights", required=True)
    parser.add_argument("--subset", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gigabytes", type=float, default=12, help="for the teacher's outputs")
    parser.add_argument("--json", type=Path)
    return parser


def _bench(
    data: ImageData, teacher: Model, folder: Path, device: torch.device, *, gigabytes: float
) -> TrialContext:
    feed = Feed(data.train, device)
    outputs = TeacherOutputs(teacher, feed, view_seed=0, max_bytes=int(gigabytes * 1e9))
    return TrialContext(
        data=data,
        teachers=(teacher,),
        outputs=(outputs,),
        budget=Budget(),
        latencies=LatencyCache(folder),
        device_lock=DeviceLock(folder, str(device)),
        seed=0,
        device=device,
    )


def _row(name: str, context: TrialContext, given: argparse.Namespace) -> dict[str, object]:
    """Return the accuracies of one method, or why it could not be used."""
    spec = TrainSpec(epochs=given.epochs, batch_size=64, lr=given.lr)
    candidate = Candidate(student=STUDENT, distill=DistillSpec(method=name), train=spec)
    found: list[float] = []
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        student = build_student(STUDENT, context.data)
        torch.manual_seed(seed)
        try:
            distiller = build_distiller(candidate, student.to(context.device), context)
            session = Session(
                data=context.data,
                spec=spec,
                seed=seed,
                view_seed=context.seed,
                device=context.device,
                teachers=context.outputs,
            )
            train(student, distiller, session)
        except KDSearchError as error:
            return {"method": name, "refused": str(error)}
        found.append(evaluate(student, context.data.test, context.task, context.device))
    return {"method": name, "test": found}


def _against_control(rows: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the rows with mean, spread and the gain over the control, paired by seed."""
    control = rows[0]["test"]
    assert isinstance(control, list)
    for row in rows:
        test = row.get("test")
        if not isinstance(test, list):
            yield row
            continue
        gains = [ours - plain for ours, plain in zip(test, control, strict=True)]
        many = len(test) > 1
        yield row | {
            "mean": statistics.mean(test),
            "spread": statistics.stdev(test) if many else None,
            "gain": statistics.mean(gains),
            "gain_spread": statistics.stdev(gains) if many else None,
        }


if __name__ == "__main__":
    raise SystemExit(main())
