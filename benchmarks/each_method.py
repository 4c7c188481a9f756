"""Each method against none on one student, on validation and test over seeds.

All trainings have the same student, recipe, data and teacher. Seeds differ in weights, order and
views, alike for every method, so that gains are paired. Results are kept line by line, and a second
run with the same settings trains only what is missing.

    python -m benchmarks each_method --data ../shared/data/bccd --json methods.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch

from kdsearch.data.base import CLASSIFICATION, DETECTION, SEGMENTATION
from kdsearch.deploy.pricing import load_student
from kdsearch.hpo.statistics import Gain, gains
from kdsearch.methods import METHODS
from kdsearch.space import Params
from kdsearch.spec import UNTIL, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.study.config import StudyConfig
from kdsearch.tasks import Metric
from kdsearch.training.validation import evaluate_in_detail
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import WEIGHTS, TrialContext, run_trial

CONTROL = "none"
METHOD_NAMES = {
    CLASSIFICATION: (CONTROL, "kd", "dist", "fitnet", "at", "reviewkd", "vitkd"),
    SEGMENTATION: (
        *(CONTROL, "kd", "dist", "dkd", "nkd", "kd_standardized"),
        *("cwd", "pkd", "fitnet", "at", "mgd", "ifvd", "skd"),
    ),
    DETECTION: (
        *(CONTROL, "det_kd", "box_iou", "det_kd+box_iou", "det_kd+ld", "pseudo_boxes"),
        *("soft_boxes", "score_l2", "fgd", "pkd", "cwd", "fitnet", "at", "mgd", "skd"),
    ),
}
_HEADS: Mapping[str, Params] = {
    CLASSIFICATION: {},
    SEGMENTATION: {"head.kind": "fpn", "head.channels": 32},
    DETECTION: {"head.channels": 32, "head.depth": 1},
}
SETTINGS = ("data", "teacher", "image_size", "subset", "epochs", "teacher_epochs", "until")
CPU = torch.device("cpu")
_SPLITS = ("val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One training. val, test: the metric. cpu_s: of this process, the teacher's views included.

    settings: those that all results of a table share.
    """

    method: str
    seed: int
    val: float
    test: float
    cpu_s: float
    settings: Mapping[str, object]


Train: TypeAlias = Callable[[str, int], Result]


def candidate_of(method: str, seed: int, epochs: int, task: str, until: str) -> Candidate:
    """Return the student taught by a method at its defaults; methods on maps take all levels."""
    student = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 4, **_HEADS[task]})
    parts = [METHODS.get(part) for part in method.split("+")]
    on_maps = all(part.need == "stages" and part.is_pairwise for part in parts)
    distill = DistillSpec(method=method, mapping="even" if on_maps else None)
    return Candidate(
        student=student,
        distill=distill if method == CONTROL else replace(distill, until=until),
        train=TrainSpec(
            epochs=epochs,
            batch_size=8,
            optimizer="adamw",
            lr=2e-3,
            weight_decay=0.05,
            ema=0.99,
            scale=0.4,
            views=8,
            repeat=seed,
        ),
    )


def train(
    method: str, seed: int, *, context: TrialContext, settings: Mapping[str, object]
) -> Result:
    """Train one student and return what it scores. Raises RuntimeError where it cannot be."""
    began = time.process_time()
    epochs, until = int(str(settings["epochs"])), str(settings["until"])
    candidate = candidate_of(method, seed, epochs, context.data.task, until)
    with TemporaryDirectory() as folder:
        outcome = run_trial(candidate, context, Path(folder))
        if outcome.val is None:
            raise RuntimeError(f"{method}, seed {seed}: {outcome.state}: {outcome.reason}")
        student = load_student(candidate.student, context.data, Path(folder) / WEIGHTS)
    test = evaluate_in_detail(student, context.data.test, context.task, CPU).value
    return Result(
        method=method,
        seed=seed,
        val=outcome.val,
        test=test,
        cpu_s=round(time.process_time() - began, 1),
        settings=settings,
    )


def results(
    methods: Sequence[str], seeds: int, known: Sequence[Result], run: Train
) -> Iterator[Result]:
    """Yield the result of each method and seed; those that are known are not trained again."""
    done = {(result.method, result.seed): result for result in known}
    for seed in range(1, seeds + 1):
        for method in methods:
            yield done.get((method, seed)) or run(method, seed)


def table(found: Sequence[Result], metric: Metric, images: int) -> list[str]:
    """Return the lines of a Markdown table: means, and gains over none with their 95 % intervals.

    images: of the test split, whose noise bounds that of a gain from below.
    """
    rows: dict[str, dict[int, Result]] = {}
    for result in found:
        rows.setdefault(result.method, {})[result.seed] = result
    lines = [
        f"| method | {metric.label}, validation | test | gain on test | CPU s a training |",
        "|---|---|---|---|---|",
    ]
    for method, own in rows.items():
        means = [sum(getattr(r, split) for r in own.values()) / len(own) for split in _SPLITS]
        cpu = sum(result.cpu_s for result in own.values()) / len(own)
        shown = " | ".join(map(metric.text, means))
        lines.append(f"| {method} | {shown} | {_gain(own, rows, metric, images)} | {cpu:.0f} |")
    return lines


def _gain(
    own: Mapping[int, Result],
    rows: Mapping[str, Mapping[int, Result]],
    metric: Metric,
    images: int,
) -> str:
    """Return the paired gain on test, '' for the control, or where fewer than two seeds pair."""
    control = rows.get(CONTROL, {})
    seeds = sorted(own.keys() & control.keys())
    if own is control or len(seeds) < 2:
        return ""
    pair = [own[s].test for s in seeds], [control[s].test for s in seeds]
    found: Gain
    (found,) = gains([pair], images, metric.variance)
    low, high = metric.difference(found.low), metric.difference(found.high)
    return f"{metric.difference(found.difference)} ({low} to {high})"


def read(file: Path | None, settings: Mapping[str, object]) -> list[Result]:
    """Return the kept results of these settings; those of others are left alone."""
    if file is None or not file.is_file():
        return []
    kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Result(**row) for row in kept if row["settings"] == settings]


def main(argv: Sequence[str]) -> int:
    """Train what is missing, print the table, and return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks each_method")
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="auto")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--subset", type=int)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--teacher-epochs", type=int, help="without: of auto by its size")
    parser.add_argument("--until", choices=UNTIL, default=UNTIL[0], help="when distillation ends")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", help="separated by commas; all of the task")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--json", type=Path, help="one result a line; resumed")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = {name: getattr(given, name) for name in SETTINGS}
    of_study = {k: v for k, v in settings.items() if k not in ("epochs", "until")}
    config = StudyConfig(**of_study)
    data, config = load_data(config, given.out, print)
    context = lay_out(config, data, out=given.out, device=CPU, note=print)
    teacher = evaluate_in_detail(context.teachers[0], data.test, context.task, CPU)
    metric = teacher.details.with_noise(context.task.metric)
    print(f"teacher {config.teacher}: test {metric.text(teacher.value)}")

    def run(method: str, seed: int) -> Result:
        found = train(method, seed, context=context, settings=settings)
        print(f"{method}, seed {seed}: {metric.text(found.test)}, {found.cpu_s:.0f} CPU s")
        if given.json:
            with given.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        return found

    methods = given.methods.split(",") if given.methods else METHOD_NAMES[data.task]
    found = list(results(methods, given.seeds, read(given.json, settings), run))
    print("\n".join(table(found, metric, len(data.test))))
    return 0
