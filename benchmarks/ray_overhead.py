"""Seconds a trial on Ray over those on this machine's workers: a digits study, two workers each.

Students of nearly one size are priced, distilled and told, and asked about at each rung. Teacher
and its outputs are in the cache. A side's clock runs from its second trial to end until the last:
the start of its workers is told apart. Wall time, sides in turn, where nothing else runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import bars, trials
from benchmarks.paired import quartiles
from kdsearch.actors import OnRay, open_actors
from kdsearch.bench import lay_out, load_data
from kdsearch.engines import local
from kdsearch.engines.proposals import Engine, Proposals, search
from kdsearch.opening import open_study
from kdsearch.request import Request, request_of
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study import Asked, Outcome, Study
from kdsearch.trial import UNFINISHED
from kdsearch.workers import Worker, open_workers

BAR = 1.1
_WORKERS = 2
_BLOCKS = 3
_TRIALS = 12
SPACE = """
student:
  family: {choice: {resnet: {width: {float: [0.24, 0.26]}, depth: {int: [3, 3]}}}}
  resolution: {choice: [8]}
method: {name: kd}
train: {epochs: 8, lr: {float: [0.03, 0.3], log: true}}
"""


def rows() -> bars.Rows:
    """Return the ratio of seconds a trial, with those of both sides and of their starts."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        given = {"teacher_epochs": 1, "space": SPACE, "budget_mflops": 100.0}
        data, request = load_data(request_of(given), out)
        lay_out(request, data, out=out, device=trials.CPU)
        names = (out / f"study-{number}" for number in count())
        told = []
        for block in range(_BLOCKS + 1):
            sides = (False, True) if block % 2 else (True, False)
            seconds = {side: study(next(names), request, side) for side in sides}
            told.append([*seconds[False], *seconds[True]])
    local_start, local_each, ray_start, ray_each = np.array(
        told[1:]
    ).T  # the first fills the caches
    return [
        bars.Row(
            case=f"{_TRIALS} trials on digits, {_WORKERS} workers",
            measured=quartiles(ray_each / local_each),
            unit="x",
            bar=BAR,
            facts={
                "local_s": quartiles(local_each).median,
                "ray_s": quartiles(ray_each).median,
                "local_start_s": quartiles(local_start).median,
                "ray_start_s": quartiles(ray_start).median,
            },
        )
    ]


def study(path: Path, request: Request, is_on_ray: bool) -> tuple[float, float]:
    """Return the seconds until the second trial ended, and those for each after it."""
    ended: list[float] = []

    def on_trial(record: TrialRecord) -> None:
        if record.state != "complete":
            raise RuntimeError(record.reason)
        ended.append(time.perf_counter())

    began = time.perf_counter()
    with (
        open_study(path, request, versions={}) as opened,
        there(opened) if is_on_ray else here(opened) as engine,
    ):
        engine(Proposals(opened, search(opened, n_trials=_TRIALS), on_trial=on_trial))
    return ended[1] - began, (ended[-1] - ended[1]) / (len(ended) - 2)


@contextmanager
def here(opened: Study) -> Iterator[Engine]:
    """Give the local engine with two worker processes."""
    with open_workers(
        _WORKERS,
        opened.request,
        out=opened.path.parent,
        device=trials.CPU,
        unfinished=opened.path / UNFINISHED,
    ) as workers:
        evaluators = [partial(evaluate, opened, worker) for worker in workers]
        yield partial(local.run, evaluators=evaluators)


def evaluate(opened: Study, worker: Worker, asked: Asked) -> Outcome:
    """Run a trial in a worker, which asks at each rung, as one on Ray does."""
    return worker.run_trial(
        Candidate.from_params(asked.params),
        opened.directory(asked.number),
        on_epoch=ignored,
        on_rung=ignored,
    )


def there(opened: Study) -> AbstractContextManager[Engine]:
    """Give two actors on a Ray of our own."""
    return open_actors(
        _WORKERS, opened, OnRay(), device=trials.CPU, on_epoch=ignored, on_rung=ignored
    )


def ignored(*_: object) -> None:
    """Answer that a training is to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when trials on Ray take more than a tenth longer."""
    given = bars.parser("ray_overhead", __doc__).parse_args(argv)
    return bars.tell("ray_overhead", __doc__, rows, given.json, threads=_WORKERS)
