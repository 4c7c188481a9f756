"""Time to equal hypervolume of a whole study on CIFAR-10, beside Optuna with a live teacher.

Ours is `run` in an empty folder, from decoding the images to the last trial of the
search: loading and judging the teacher, filling its store, pricing with latencies. What follows,
test split, controls, export and report, is told apart: the peers (`peer`) have none of it. They
trade accuracy against FLOPs too; one trains every student, the stronger one none over the budget.

Ours has a worker a core with one thread each, the peers one process with a thread a core. Same
images, splits, space, seeds, epochs, number of trials and threads; each study in a process of
its own, its imports not counted; the order is turned round from seed to seed. Hypervolume is that
of validation accuracy above chance and MFLOPs below the budget. The target of a pair of studies is
the lower of their two ends. The bar is for the peer that trains all; for the other it is to be no
slower. Without --data the pictures are made and the teacher is untrained: times hold, volumes not.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from unittest.mock import patch

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import bars, peer, trials, warm_start
from benchmarks.paired import quartiles
from benchmarks.stopwatch import Stopwatch
from kdsearch.hpo.pareto import hypervolume
from kdsearch.hpo.sampler import suggest
from kdsearch.models.features import bare
from kdsearch.models.weights import save_weights
from kdsearch.spec import Budget, Candidate, TrialRecord
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import config_of
from kdsearch.study.options import RunOptions
from kdsearch.teachers.load import load_teacher
from kdsearch.trials.context import load_data, teacher_specs
from kdsearch.workflows.run import run_study

BAR, STRONGER_BAR = 5.0, 1.0
BUDGET_MFLOPS = 20.0
CHANCE = 1 / trials.CLASSES
BATCH = 64
SPACE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done: images of train, and of validation and test; epochs, trials, seeds."""

    train: int = 1000
    held_out: int = 500
    epochs: int = 3
    trials: int = 12
    seeds: int = 3


QUICK = Size(train=128, held_out=50, epochs=1, trials=3, seeds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all studies are asked for. folder: has the images and the teacher's weights."""

    folder: Path
    size: Size
    threads: int

    def config(self, seed: int) -> Mapping[str, object]:
        """Return it as `kdsearch run` takes it."""
        return {
            "data": str(self.folder / "images"),
            "teacher": "cifar_resnet56",
            "teacher_weights": str(self.folder / "teacher.safetensors"),
            "budget_mflops": BUDGET_MFLOPS,
            "epochs": self.size.epochs,
            "space": str(SPACE),
            "seed": seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A study: (seconds, accuracy, MFLOPs) as each student's training ended, and its bill.

    parts: where its seconds went. after_s: what ours took after the search, which is not in them.
    """

    points: Sequence[tuple[float, float, float]]
    seconds: float
    parts: Mapping[str, float]
    after_s: float = 0.0

    def __str__(self) -> str:
        curve = ", ".join(f"{volume:.2f} at {at:.1f} s" for at, volume in self.curve())
        return f"{self.seconds:.1f} s; hypervolume {curve}; {_parts([self])}"

    def curve(self) -> list[tuple[float, float]]:
        """Return (seconds, hypervolume) after each training."""
        found = [(val, mflops) for _, val, mflops in self.points]
        return [
            (point[0], hypervolume(found[:count], (CHANCE, BUDGET_MFLOPS)))
            for count, point in enumerate(self.points, start=1)
        ]


def ours(task: Task, seed: int, out: Path) -> Told:
    """Run `kdsearch run`; the teacher's seconds, and those of others, are summed over trials."""
    callback = Trials()
    run_study(
        task.config(seed),
        callback,
        out=out,
        options=RunOptions(trials=task.size.trials, device="cpu", workers=task.threads),
    )
    ended = callback.seconds()
    trained = [(at, record) for at, record in callback.told if record.state == "complete"]
    asking = sum(record.teacher_seconds for _, record in trained)
    working = sum(record.seconds for _, record in trained)
    search = callback.told[-1][0]
    return Told(
        points=[(at, *_values(record)) for at, record in trained],
        seconds=search,
        parts={
            "before the first trial": callback.began,
            "teacher": asking,
            "students": working - asking,
            "others": sum(record.seconds for _, record in callback.told) - working,
        },
        after_s=ended - search,
    )


def _values(record: TrialRecord) -> tuple[float, float]:
    assert record.val is not None
    assert record.cost is not None
    assert record.cost.flops is not None
    return record.val, record.cost.flops / 1e6


class Trials(Callback):
    """Keeps the trials of a search, each with the seconds from the start to its end."""

    def __init__(self) -> None:
        self.told: list[tuple[float, TrialRecord]] = []
        self.began = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return those since the start."""
        return time.perf_counter() - self._started

    def on_search_begin(
        self, done: Sequence[TrialRecord], n_trials: int, *, budget: Budget
    ) -> None:
        """Note how long it took until the search begins."""
        self.began = self.seconds()

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Keep a trial of the search."""
        if not record.kind:
            self.told.append((self.seconds(), record))


def theirs(task: Task, seed: int, out: Path, *, prices_first: bool) -> Told:
    """Run the peer's study."""
    started, clock = time.perf_counter(), Stopwatch()
    torch.manual_seed(seed)
    config = config_of({**task.config(seed), "space": find_space(str(SPACE)).text})
    data, _ = load_data(config, out)
    (spec,) = teacher_specs(config)
    teacher = load_teacher(spec, data, cache_dir=out, seed=seed, device=trials.CPU)
    context = replace(trials.context(data, teacher, out, budget=config.budget), seed=seed)
    space = config.search_space()
    points: list[tuple[float, float, float]] = []

    def propose(trial: optuna.Trial) -> Candidate:
        return Candidate.from_params(space.walk(partial(suggest, trial)))

    def on_trial(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.values is not None:
            val, flops = trial.values
            points.append((time.perf_counter() - started, val, flops / 1e6))

    peer.search(
        peer.create_study(out / "study.db", seed=seed),
        propose,
        peer.setting(context, batch_size=BATCH, clock=clock),
        n_trials=task.size.trials,
        prices_first=prices_first,
        callbacks=[on_trial],
    )
    return Told(points=points, seconds=time.perf_counter() - started, parts=clock.seconds)


Side: TypeAlias = Callable[[Task, int, Path], Told]
SIDES: dict[str, Side] = {
    "ours": ours,
    "trains all": partial(theirs, prices_first=False),
    "prices first": partial(theirs, prices_first=True),
}


def rows(
    size: Size, given: str | None = None, weights: str | None = None, *, threads: int = 1
) -> bars.Rows:
    """Return a row a peer."""
    with TemporaryDirectory() as below:
        folder = Path(below)
        prepare(folder, size, given, weights)
        task = Task(folder=folder, size=size, threads=threads)
        found: dict[str, list[Told]] = {name: [] for name in SIDES}
        for seed in range(size.seeds):
            for name in reversed(SIDES) if seed % 2 else SIDES:
                found[name].append(apart(SIDES[name], task, seed))
                print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    return [
        row(name, bar, found["ours"], found[name])
        for name, bar in (("trains all", BAR), ("prices first", STRONGER_BAR))
    ]


def apart(side: Side, task: Task, seed: int) -> Told:
    """Run a study in a new process and an empty folder.

    Its threads sleep while they wait for one another. Spinning, as is usual, they are lost where
    somebody else is at work: a pass of 128 images through the teacher takes two threads 0.20 s
    alone and 1.40 s beside one busy process; sleeping ones take 0.25 and 0.36 s.
    """
    with (
        patch.dict(os.environ, OMP_WAIT_POLICY="PASSIVE"),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(_apart, side, task, seed).result()


def _apart(side: Side, task: Task, seed: int) -> Told:
    torch.set_num_threads(task.threads)
    with TemporaryDirectory() as out:
        return side(task, seed, Path(out))


def row(name: str, bar: float, own: Sequence[Told], peers: Sequence[Told]) -> bars.Row:
    """Return the ratio of a peer's time to ours."""
    told = list(zip(own, peers, strict=True))
    pairs = [(mine.curve(), other.curve()) for mine, other in told]
    reached = [times_to_equal(*pair) for pair in pairs]
    ratios = [theirs / mine for mine, theirs in reached]
    return bars.Row(
        case=f"over a peer that {name}",
        measured=quartiles(np.array(ratios)),
        unit="x",
        bar=bar,
        is_floor=True,
        facts={
            "seeds_x": _list(ratios, 2),
            "reached_s": ", ".join(f"{mine:.1f} of {theirs:.1f}" for mine, theirs in reached),
            "all_trials_x": _list([theirs.seconds / mine.seconds for mine, theirs in told], 2),
            "ends": ", ".join(f"{mine[-1][1]:.2f} and {other[-1][1]:.2f}" for mine, other in pairs),
            "trained": ", ".join(f"{len(a.points)} and {len(b.points)}" for a, b in told),
            "ours_s": _parts(own),
            "ours_after_s": _list([told.after_s for told in own], 1),
            "theirs_s": _parts(peers),
        },
        series={
            f"seed {seed}, {side}, seconds and hypervolume": curve
            for seed, pair in enumerate(pairs)
            for side, curve in zip(("ours", "theirs"), pair, strict=True)
        },
    )


def times_to_equal(
    mine: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Return the seconds at which each of two curves gets to the lower of their ends.

    Raises ValueError for a study that trained nothing.
    """
    if not mine or not other:
        raise ValueError("a study trained no student; ask for more trials")
    target = min(mine[-1][1], other[-1][1])
    first, second = (next(at for at, volume in c if volume >= target) for c in (mine, other))
    return first, second


def _list(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _parts(told: Sequence[Told]) -> str:
    """Return the mean seconds of a study's parts, the largest first."""
    total = sum((Counter(one.parts) for one in told), Counter[str]())
    means = [f"{part} {seconds / len(told):.1f}" for part, seconds in total.most_common()]
    return f"{np.mean([one.seconds for one in told]):.1f}: {', '.join(means)}"


def prepare(folder: Path, size: Size, given: str | None, weights: str | None) -> None:
    """Write the images and the teacher's weights that studies are asked for."""
    teacher = folder / "teacher.safetensors"
    if weights is None:
        save_weights(bare(trials.teacher().network), teacher)
    else:
        shutil.copyfile(weights, teacher)
    images = folder / "images"
    images.mkdir()
    parts = {"train": size.train, "val": size.held_out, "test": size.held_out}
    if given is None:
        whole = made(sum(parts.values()))
    else:
        whole = pq.read_table(min(Path(given).glob("train*.parquet")))
    start = 0
    for split, count in parts.items():
        pq.write_table(whole.slice(start, count), images / f"{split}.parquet")
        start += count


def made(count: int) -> pa.Table:
    """Return pictures whose class is a channel and a quarter of the rows that is bright."""
    pixels, labels = trials.pictures(count), torch.arange(count) % trials.CLASSES
    for label in range(trials.CLASSES):
        quarter = slice(label // 3 * 8, label // 3 * 8 + 8)
        pixels[labels == label, label % 3, quarter] = 255
    images = [{"bytes": encoded} for encoded in warm_start.encoded(pixels)]
    return pa.table({"img": images, "label": labels.numpy()})


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a peer is too near."""
    parser = bars.parser("whole_study", __doc__)
    parser.add_argument("--data", help="a folder with CIFAR-10 as train*.parquet")
    parser.add_argument("--teacher-weights", help="of a cifar_resnet56, trained on it")
    parser.add_argument("--seeds", type=int, default=Size().seeds)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it works")
    given = parser.parse_args(argv)
    if (given.data is None) != (given.teacher_weights is None):
        parser.error("--data and --teacher-weights go together")
    threads = os.cpu_count() or 1
    measure = partial(
        rows,
        QUICK if given.quick else Size(seeds=given.seeds),
        given.data,
        given.teacher_weights,
        threads=threads,
    )
    return bars.tell("whole_study", __doc__, measure, given.json, threads=threads)
