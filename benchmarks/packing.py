"""The same trials by `--workers 1`, with torch's threads, over those by two workers of one thread.

Trials as a study runs them: priced, distilled, weights written. Teacher, its outputs and latencies
are in the cache, and the workers have started: each side runs all trials once before. Wall time, on
a machine where nothing else runs: two workers need two cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np

from benchmarks import bars, trials, warm_start
from benchmarks.paired import quartiles
from kdsearch.engines.processes import Worker
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import TrialContext, run_trial

BAR = 1.3
_BLOCKS = 3
_IMAGES = 512

Run: TypeAlias = Callable[[Candidate, Path], TrialOutcome]


def rows() -> bars.Rows:
    """Return a row for 32 px and one for digits."""
    with TemporaryDirectory() as folder:
        pictures, _ = next(warm_start.made(Path(folder), small=_IMAGES, large=0))
        return [
            row(StudyConfig(data=str(pictures), teacher_epochs=1), "8 trials at 32 px", epochs=1),
            row(StudyConfig(teacher_epochs=1), "8 trials on digits, 8 px", epochs=2),
        ]


def candidates(epochs: int) -> list[Candidate]:
    """Return eight small ones."""
    sizes = product((0.25, 0.35, 0.5, 0.7), ("kd", "none"))
    return [
        Candidate(
            student=StudentSpec(family="resnet", knobs={"width": width}),
            distill=DistillSpec(method=method),
            train=TrainSpec(epochs=epochs, batch_size=trials.BATCH),
        )
        for width, method in sizes
    ]


def row(config: StudyConfig, case: str, *, epochs: int) -> bars.Row:
    """Return the ratio of one after the other to two at a time."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        data, config = load_data(config, out)
        context = lay_out(config, data, out=out, device=trials.CPU)
        chosen = candidates(epochs)
        worker = partial(Worker, config, out=out, device=trials.CPU)
        with worker() as first, worker() as second:
            here = partial(run_here, context)
            sides: list[list[Run]] = [[here], [first.run_trial, second.run_trial]]
            for side in sides:
                seconds(side, chosen, out)
            told = [[seconds(side, chosen, out) for side in sides] for _ in range(_BLOCKS)]
    one, two = np.array(told).T
    return bars.Row(
        case=case,
        measured=quartiles(one / two),
        unit="x",
        bar=BAR,
        is_floor=True,
        facts={"one_s": quartiles(one).median, "two_s": quartiles(two).median},
    )


def run_here(context: TrialContext, candidate: Candidate, directory: Path) -> TrialOutcome:
    """Run a trial in this process."""
    return run_trial(candidate, context, directory)


def seconds(runs: Sequence[Run], chosen: Sequence[Candidate], folder: Path) -> float:
    """Return how long the trials take, each by whichever is free. Raises for one that failed."""
    free: SimpleQueue[Run] = SimpleQueue()
    for run in runs:
        free.put(run)

    def one(place: int) -> TrialOutcome:
        run = free.get()
        try:
            return run(chosen[place], folder / str(place))
        finally:
            free.put(run)

    started = time.perf_counter()
    with ThreadPoolExecutor(len(runs)) as pool:
        outcomes = list(pool.map(one, range(len(chosen))))
    for outcome in outcomes:
        if outcome.state != "complete":
            raise RuntimeError(outcome.reason)
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when two workers are not quick enough."""
    given = bars.parser("packing", __doc__).parse_args(argv)
    return bars.tell("packing", __doc__, rows, given.json, threads=os.cpu_count() or 1)
