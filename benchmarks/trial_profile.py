"""Where the time of one trial goes: the package's, beside that of a good user's script (`peer`).

A trial of `kd` from asking the study to telling it. Ours finds the teacher's outputs stored, which
a study fills once, and no latency of such a student; the peer's teacher is live. Made pictures,
batch 128, 32 px, one thread and, for the peer, two workers beside it; wall time, the two in turn,
the median over blocks. A second counts once: losses are without the teacher that they hear, while
building, FLOPs, latency, teacher and validation are with all that happens in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import optuna
import torch

from benchmarks import bars, peer, scheduling, trials
from benchmarks.input_pipeline import WORKERS
from benchmarks.stopwatch import REST, Stopwatch
from kdsearch.deploy.latency import LatencyCache
from kdsearch.hpo.sampler import suggest
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import Budget, Candidate, StudentSpec, TrainSpec
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy
from kdsearch.tasks.classification import Classification
from kdsearch.training import ema, step, validation
from kdsearch.training.distiller import Distiller
from kdsearch.training.optimizers import Optimizers
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.trials import trial
from kdsearch.trials.trial import TrialContext

_BATCHES, _VAL_IMAGES, _EPOCHS, _BLOCKS = 8, 256, 2, 3
# Where the package's rooms meet: what is called there counts for the part.
_SEAMS: Sequence[tuple[str, object, str]] = (
    ("scheduling", OpenStudy, "ask"),
    ("scheduling", OpenStudy, "tell"),
    ("building", trial, "build_student"),
    ("building", trial, "build_distiller"),
    ("FLOPs", trial, "count"),
    ("latency", trial, "latency_of"),
    ("input", step, "shown"),
    ("input", Classification, "target"),
    ("input", Preprocess, "__call__"),
    ("teacher", TeacherOutputs, "rows"),
    ("student", Model, "features"),
    ("losses", Distiller, "forward"),
    ("backward", torch.autograd, "backward"),
    ("optimiser", Optimizers, "zero_grad"),
    ("optimiser", Optimizers, "step"),
    ("optimiser", ema.ModelEma, "update"),
    ("validation", validation.Validation, "__call__"),
)
PARTS = (*dict.fromkeys(part for part, _, _ in _SEAMS), REST)
_WHOLE = ("building", "FLOPs", "latency", "teacher", "validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Milliseconds of a trial by part. filling_ms: of a study, to store the teacher's outputs."""

    steps: int
    peer_ms: Mapping[str, float]
    ours_ms: Mapping[str, float]
    filling_ms: float

    def lines(self) -> Iterator[str]:
        """Yield a table."""
        sides = (self.peer_ms, self.ours_ms)
        peers, own = (sum(side.values()) for side in sides)
        yield f"  {self.steps} steps: the peer {peers:.0f} ms, ours {own:.0f}: {peers / own:.2f}x"
        for part in PARTS:
            cells = [f"{side[part]:9.1f} {side[part] / sum(side.values()):6.1%}" for side in sides]
            yield f"    {part:12} {'   '.join(cells)}"
        yield f"    filling the store, once a study: {self.filling_ms:.0f} ms"


def profiles(*, blocks: int = _BLOCKS) -> dict[str, Profile]:
    """Return a profile a student."""
    data = replace(trials.image_data(_BATCHES), val=trials.image_set(_VAL_IMAGES, seed=1))
    taught_by, budget = trials.teacher(), Budget(flops=1e9)
    found = {}
    for student in (trials.SMALL, trials.LARGE):
        with TemporaryDirectory() as folder:
            context = trials.context(data, taught_by, Path(folder), budget=budget)
            name = trials.NAMES[student.knobs["depth"]]
            found[name] = profile(student, context, Path(folder), blocks=blocks)
    return found


def profile(
    student: StudentSpec,
    context: TrialContext,
    folder: Path,
    *,
    blocks: int,
    workers: int = WORKERS,
) -> Profile:
    """Return where the time of a student's trials goes, the first of each kind left out."""
    recipe = TrainSpec(epochs=_EPOCHS, batch_size=trials.BATCH, lr=1e-3, warmup=0.0)
    candidate = Candidate(student=student, train=recipe)
    on = peer.setting(context, batch_size=trials.BATCH, clock=Stopwatch(), workers=workers)
    theirs(candidate, on, folder / "warm.db")
    filling = ours(candidate, context, folder / "warm")["teacher"]
    both = []
    for block in range(blocks):
        device_lock = [
            lambda at=folder / f"{block}.db": theirs(candidate, on, at),
            lambda at=folder / str(block): ours(candidate, context, at),
        ]
        order = (1, 0) if block % 2 else (0, 1)
        told = {place: device_lock[place]() for place in order}
        both.append((told[0], told[1]))
    peers, own = zip(*both, strict=True)
    return Profile(
        steps=_EPOCHS * len(on.train),
        peer_ms=_medians(peers),
        ours_ms=_medians(own),
        filling_ms=round(1e3 * filling, 1),
    )


def theirs(candidate: Candidate, on: peer.Setting, database: Path) -> Mapping[str, float]:
    """Return the seconds of the parts of the peer's trial."""
    study = peer.create_study(database, seed=0)
    space = scheduling.REQUEST.search_space()
    clock = Stopwatch()

    def propose(asked: optuna.Trial) -> Candidate:
        space.walk(partial(suggest, asked))
        return candidate

    peer.search(study, propose, replace(on, clock=clock), n_trials=1, prices_first=False)
    return clock.seconds


def ours(candidate: Candidate, context: TrialContext, folder: Path) -> Mapping[str, float]:
    """Return the seconds of the parts of a trial in a study at `folder`."""
    fresh = replace(context, latencies=LatencyCache(folder))
    with open_study(folder, scheduling.REQUEST, versions={}) as study:
        clock = Stopwatch(whole=_WHOLE)
        with marked(clock):
            asked = study.ask()
            told = study.tell(asked, trial.run_trial(candidate, fresh, folder))
    assert told.state == "complete", told.reason
    return clock.seconds


@contextmanager
def marked(clock: Stopwatch) -> Iterator[None]:
    """Mark the package's parts for a stopwatch."""
    with ExitStack() as stack:
        for part, owner, name in _SEAMS:
            call = clock.timed(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, call))
        yield


def _medians(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each part's milliseconds."""
    return {
        part: round(1e3 * float(np.median([seconds.get(part, 0.0) for seconds in told])), 2)
        for part in PARTS
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the profiles; there is no bar."""
    given = bars.parser("trial_profile", __doc__).parse_args(argv)
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = profiles()
    finally:
        torch.set_num_threads(usual)
    for name, told in found.items():
        print("\n".join([name, *told.lines()]))
    if given.json:
        written = {
            "benchmark": "trial_profile",
            "what": (__doc__ or "").strip(),
            "machine": bars.machine(),
            "students": {name: asdict(told) for name, told in found.items()},
        }
        given.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0
