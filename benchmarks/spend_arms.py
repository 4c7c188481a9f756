"""The arms of `equal_spend`: `kdsearch run` itself, and peers that spend as much.

widest: the widest resnet within the limit, plain KD (T 4, alpha .9), SGD at .1, all of the spend in
one training. The three like it, with Muon or a mobilenet, make the oracle. They use the package's
trainer, so that what is compared is the choice. optuna: see `optuna_peer`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import torch

from benchmarks import optuna_peer
from benchmarks.spend_settings import BATCH, SETTINGS, TRIALS, Setting
from kdsearch import load_study
from kdsearch.data.base import ImageData
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.space import Params
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.options import flag
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import teacher_specs
from kdsearch.training.step import Session
from kdsearch.training.trainer import train
from kdsearch.training.validation import evaluate
from kdsearch.trials.context import CACHE, lay_out, load_data
from kdsearch.trials.trial import TrialContext, build_distiller

KDSEARCH, ORACLE_NAME = "kdsearch", "oracle"
PLAN = ("--spend", "{spend}ep")
CPU = torch.device("cpu")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_KD = DistillSpec(method="kd", alpha=0.9, knobs={"temperature": 4.0})
_SGD = TrainSpec(batch_size=BATCH, optimizer="sgd", lr=0.1, weight_decay=5e-4, ema=0.99)
_MUON = TrainSpec(batch_size=BATCH, optimizer="muon", lr=0.01, weight_decay=0.01, ema=0.99)
_MOBILENET: Params = {"depth": 5, "expansion": 3, "kernel": 3}
_NARROWEST, _WIDEST, _HALVINGS = 0.02, 4.0, 14  # the width is found within .04 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to run. flags: the plan of `kdsearch run`; `{spend}` stands for the setting's."""

    setting: str
    name: str
    seed: int
    flags: tuple[str, ...] = ()

    @property
    def plan(self) -> list[str]:
        """Return the flags with their values."""
        return [text.replace("{spend}", str(SETTINGS[self.setting].spend)) for text in self.flags]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What an arm ships. val, test: accuracies. test_images, data: their number and all's digest.

    trained: epochs that the student has had. spent: epochs of all trainings together.
    """

    student: str
    val: float
    test: float
    mflops: float
    trained: int
    spent: int
    test_images: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An arm and what it shipped. cpu_s: of all its processes, their start included."""

    arm: Arm
    shipped: Shipped
    cpu_s: float
    wall_s: float


def run(arm: Arm, folder: Path, below: Path | None) -> Run:
    """Run an arm in this process, which is new; `prepare` has filled `folder`.

    Raises RuntimeError where `kdsearch run` fails, with what it printed.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    setting = SETTINGS[arm.setting]
    fields = setting.fields(folder, below, arm.seed)
    with TemporaryDirectory() as name:
        out = Path(name)
        copytree(folder / CACHE, out / CACHE)  # images and teacher; its outputs are the arm's own
        if arm.name in PEERS:
            config = StudyConfig(**fields)  # type: ignore[arg-type]
            data, config = load_data(config, out)
            context = lay_out(config, data, out=out, device=CPU)
            shipped = PEERS[arm.name](setting, context)
        else:
            shipped = by_command(fields, arm.plan, out)
    times = os.times()
    return Run(
        arm=arm,
        shipped=shipped,
        cpu_s=round(times.user + times.system + times.children_user + times.children_system, 1),
        wall_s=round(time.perf_counter() - started, 1),
    )


def prepare(setting: Setting, folder: Path, below: Path | None, seed: int) -> None:
    """Decode the images, and load or train the teacher: both are in the cache of `folder` then."""
    config = StudyConfig(**setting.fields(folder, below, seed))  # type: ignore[arg-type]
    data, config = load_data(config, folder)
    for spec in teacher_specs(config):
        load_teacher(spec, data, cache_dir=folder / CACHE, seed=seed, device=CPU)


def by_command(fields: Mapping[str, object], plan: Sequence[str], out: Path) -> Shipped:
    """Run `kdsearch run` with a study's fields and its plan; return what its folder says."""
    given = [text for name, value in fields.items() for text in (flag(name), str(value))]
    name = "study"
    command = [sys.executable, "-m", "kdsearch", "run", *given, *plan]
    command += ["--out", str(out), "--name", name, "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    study = load_study(out / name)
    front = json.loads((study.path / "front.json").read_text(encoding="utf-8"))
    entry = front["shipped"]
    chosen = Candidate.from_params(entry["config"])
    (trained,) = (record for record in study.trials if record.number == entry["trial"])
    return Shipped(
        student=f"{_named(chosen.student)}, {chosen.distill.method}, {chosen.train.optimizer}",
        val=entry["val"],
        test=entry["test"],
        mflops=entry["flops"] / 1e6,
        trained=len(trained.curve),
        spent=epochs_of(study.trials),
        test_images=front["images"]["test"],
        data=study.config.data_key,
    )


def epochs_of(records: Sequence[TrialRecord]) -> int:
    """Return the epochs that a study trained, those of controls and refits included.

    A trial that was resumed is one record, with the curve of all its epochs.
    """
    return sum(len(record.curve) for record in records if record.reused_from is None)


def alone(setting: Setting, context: TrialContext, *, family: str, recipe: TrainSpec) -> Shipped:
    """Spend everything on the widest student of a family within the limit, plain KD."""
    data, seed = context.data, context.seed
    knobs = {"depth": setting.depth} if family == "resnet" else _MOBILENET
    student_spec, flops = widest(family, knobs, data, limit=setting.mflops * 1e6)
    spec = replace(recipe, epochs=setting.spend)
    candidate = Candidate(student=student_spec, distill=_KD, train=spec)
    torch.manual_seed(seed)
    student = build_student(student_spec, data)
    session = Session(
        data=data,
        spec=spec,
        seed=seed,
        view_seed=seed,
        device=CPU,
        teachers=context.outputs,
        train=context.train,
        val=context.val,
    )
    epochs = train(student, build_distiller(candidate, student, context), session)
    return Shipped(
        student=f"{_named(student_spec)}, kd, {spec.optimizer}",
        val=epochs[-1].val,
        test=evaluate(student, data.test, context.task, CPU),
        mflops=flops / 1e6,
        trained=len(epochs),
        spent=len(epochs),
        test_images=len(data.test),
        data=data.key,
    )


def widest(family: str, knobs: Params, data: ImageData, *, limit: float) -> tuple[StudentSpec, int]:
    """Return the widest student of at most `limit` multiply-adds, and its own."""

    def priced(width: float) -> tuple[StudentSpec, int]:
        spec = StudentSpec(family=family, knobs={**knobs, "width": round(width, 4)})
        student = build_student(spec, data)
        return spec, count(student.network, input_shape=student.preprocess.input_shape)[0]

    low, high = _NARROWEST, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if priced(middle)[1] <= limit else (low, middle)
    found = priced(low)
    if found[1] > limit:
        raise ValueError(f"no {family} within {limit / 1e6:g} MFLOPs: {found[1] / 1e6:g}")
    return found


def by_optuna(setting: Setting, context: TrialContext) -> Shipped:
    """Search as Optuna's documentation shows."""
    (teacher,) = context.teachers
    epochs = setting.spend // TRIALS
    found = optuna_peer.search(
        context.data,
        teacher,
        limit=setting.mflops * 1e6,
        n_trials=TRIALS,
        epochs=epochs,
        seed=context.seed,
    )
    return Shipped(
        student=found.network,
        val=found.val,
        test=found.test,
        mflops=found.flops / 1e6,
        trained=epochs,
        spent=found.spent,
        test_images=len(context.data.test),
        data=context.data.key,
    )


ORACLE = {
    "widest": partial(alone, family="resnet", recipe=_SGD),
    "resnet-muon": partial(alone, family="resnet", recipe=_MUON),
    "mobilenet-sgd": partial(alone, family="mobilenet", recipe=_SGD),
    "mobilenet-muon": partial(alone, family="mobilenet", recipe=_MUON),
}
PEERS: Mapping[str, Callable[[Setting, TrialContext], Shipped]] = {**ORACLE, "optuna": by_optuna}


def _named(student: StudentSpec) -> str:
    width = f" x{student.knobs['width']:.3g}" if "width" in student.knobs else ""
    depth = f" d{student.knobs['depth']}" if "depth" in student.knobs else ""
    return f"{student.family}{depth}{width}"
