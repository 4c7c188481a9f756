"""CPU seconds a trial on Ray over those on our own workers: a digits study, two of each.

Students of nearly one size are priced, distilled and told, and asked about at each rung. Teacher
and its outputs are in the cache. A side's clock runs from its second trial to end until the last:
the start of its workers is told apart. CPU seconds are those of the driver and all below it, Ray's
own processes too. Wall time stands beside them and holds only where nothing else runs: beside five
busy processes on two cores Ray took 0.65 of it, as workers were preempted 1000 times and actors
31, at equal CPU.
"""

from __future__ import annotations

import os
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
from kdsearch.engines import local
from kdsearch.engines.dispatch import Engine, Proposals, search
from kdsearch.engines.processes import Worker, open_workers
from kdsearch.engines.ray_actors import OnRay, open_actors
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.config import StudyConfig, config_of
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy, Proposal, TrialOutcome
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import UNFINISHED

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
        data, config = load_data(config_of(given), out)
        lay_out(config, data, out=out, device=trials.CPU)
        names = (out / f"study-{number}" for number in count())
        told = []
        for block in range(_BLOCKS + 1):
            sides = (False, True) if block % 2 else (True, False)
            seconds = {side: study(next(names), config, side) for side in sides}
            told.append([*seconds[False], *seconds[True]])
    local_start, local_each, local_cpu, ray_start, ray_each, ray_cpu = np.array(
        told[1:]
    ).T  # the first fills the caches
    facts = {
        "local_cpu_s": local_cpu,
        "ray_cpu_s": ray_cpu,
        "local_wall_s": local_each,
        "ray_wall_s": ray_each,
        "local_start_s": local_start,
        "ray_start_s": ray_start,
    }
    return [
        bars.Row(
            case=f"digits, {_WORKERS} workers, CPU s",
            measured=quartiles(ray_cpu / local_cpu),
            unit="x",
            bar=BAR,
            facts={name: quartiles(values).median for name, values in facts.items()},
        )
    ]


def study(path: Path, config: StudyConfig, is_on_ray: bool) -> tuple[float, float, float]:
    """Return the seconds until the second trial ended, and wall and CPU seconds for each after."""
    ended: list[float] = []
    used: list[float] = []

    def on_trial(record: TrialRecord) -> None:
        if record.state != "complete":
            raise RuntimeError(record.reason)
        ended.append(time.perf_counter())
        used.append(cpu_seconds())

    began = time.perf_counter()
    with (
        open_study(path, config, versions={}) as opened,
        there(opened) if is_on_ray else here(opened) as engine,
    ):
        engine(Proposals(opened, search(opened, n_trials=_TRIALS), on_trial=on_trial))
    later = len(ended) - 2
    return ended[1] - began, (ended[-1] - ended[1]) / later, (used[-1] - used[1]) / later


def cpu_seconds() -> float:
    """Return the CPU seconds so far of this process and of all that run below it."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(file.parent.name)] = int(fields[1])
        ticks[int(file.parent.name)] = int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


@contextmanager
def here(opened: OpenStudy) -> Iterator[Engine]:
    """Give the local engine with two worker processes."""
    with open_workers(
        _WORKERS,
        opened.config,
        out=opened.path.parent,
        device=trials.CPU,
        unfinished=opened.path / UNFINISHED,
    ) as workers:
        evaluators = [partial(evaluate, opened, worker) for worker in workers]
        yield partial(local.run, evaluators=evaluators)


def evaluate(opened: OpenStudy, worker: Worker, proposal: Proposal) -> TrialOutcome:
    """Run a trial in a worker, which asks at each rung, as one on Ray does."""
    return worker.run_trial(
        Candidate.from_params(proposal.params),
        opened.directory(proposal.number),
        on_epoch=ignored,
        on_rung=ignored,
    )


def there(opened: OpenStudy) -> AbstractContextManager[Engine]:
    """Give two actors on a Ray of our own."""
    return open_actors(
        _WORKERS,
        opened,
        OnRay(),
        device=trials.CPU,
        timeout=None,
        on_epoch=ignored,
        on_rung=ignored,
    )


def ignored(*_: object) -> None:
    """Answer that a training is to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when trials on Ray take more than a tenth longer."""
    given = bars.parser("ray_overhead", __doc__).parse_args(argv)
    return bars.tell("ray_overhead", __doc__, rows, given.json, threads=_WORKERS)
