"""Whether the spread that refits state holds the result of one more seed, on digits.

Groups of three students, each taught by KD of its own and beside its two controls, as `--refit 3
--seeds 3` trains them; a fourth seed of each is held against the interval stated from three. Each
seed is the fourth in turn. Beside the rule: intervals from a student's own three results alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.bars import Row, parser, tell
from benchmarks.paired import Ratio
from kdsearch.hpo.statistics import Spread, spreads
from kdsearch.space import Params
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.facts import SEEDS
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import TrialContext, run_trial

BAR = 0.9
TAUGHT = DistillSpec(method="kd", alpha=0.5, knobs={"temperature": 2.0})
METHODS = (TAUGHT, DistillSpec(method="none"), DistillSpec(method="kd"))
KNOBS: tuple[tuple[str, Params], ...] = (
    ("resnet", {"width": 0.125, "depth": 3}),
    ("resnet", {"width": 0.2, "depth": 3}),
    ("resnet", {"width": 0.3, "depth": 3}),
    ("mobilenet", {"width": 0.25, "depth": 4, "expansion": 2}),
    ("mobilenet", {"width": 0.35, "depth": 4, "expansion": 2}),
    ("resnet", {"width": 0.45, "depth": 3}),
    ("resnet", {"width": 0.15, "depth": 4}),
    ("resnet", {"width": 0.25, "depth": 4}),
    ("mobilenet", {"width": 0.5, "depth": 4, "expansion": 2}),
    ("resnet", {"width": 0.175, "depth": 3}),
    ("mobilenet", {"width": 0.3, "depth": 4, "expansion": 3}),
    ("resnet", {"width": 0.35, "depth": 3}),
)
_GROUP = 3 * len(METHODS)


def main(argv: Sequence[str] | None = None) -> int:
    """Train all of them and print how many of the fourth seeds were inside."""
    made = parser("refit_holds", __doc__)
    made.add_argument("--epochs", type=int, default=6)
    given = made.parse_args(argv)
    return tell("refit_holds", __doc__, lambda: measure(given.epochs), given.json)


def measure(epochs: int) -> list[Row]:
    """Return the share of students whose fourth seed is inside, by the rule and without it."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        data, config = load_data(StudyConfig(data="digits"), out)
        context = lay_out(config, data, out=out, device=torch.device("cpu"))
        results = np.array([_results(c, context, out) for c in _candidates(epochs)])
        return rows(results, len(data.val))


def rows(results: np.ndarray, images: int) -> list[Row]:
    """Return the rows for accuracies [recipes, seeds], a candidate before its two controls."""
    groups = [results[i : i + _GROUP] for i in range(0, len(results), _GROUP)]
    together = [told for group in groups for told in _held(group, images)]
    alone = [told for group in results for told in _held(group[None], images)]
    candidates = [i for i in range(len(results)) if i % len(METHODS) == 0]
    return [
        _row("students, the last seed", [together[i][-1] for i in candidates]),
        _row("students, each seed in turn", [h for i in candidates for h in together[i]]),
        _row("controls too", [held for told in together for held in told], results),
        _row("controls too, each alone", [held for told in alone for held in told]),
    ]


def _candidates(epochs: int) -> Iterator[Sequence[Candidate]]:
    """Yield each recipe under every seed."""
    for family, knobs in KNOBS:
        for method in METHODS:
            yield [
                Candidate(
                    student=StudentSpec(family=family, knobs=knobs),
                    distill=method,
                    train=TrainSpec(epochs=epochs, repeat=repeat),
                )
                for repeat in range(1, SEEDS + 2)
            ]


def _results(candidates: Sequence[Candidate], context: TrialContext, out: Path) -> list[float]:
    found = []
    for candidate in candidates:
        outcome = run_trial(candidate, context, out / "trial")
        assert outcome.val is not None, outcome.reason
        found.append(outcome.val)
    return found


Held = tuple[bool, Spread]


def _held(group: np.ndarray, images: int) -> list[list[Held]]:
    """Return for each recipe of a group, for each of its seeds, whether the others hold it."""
    told: list[list[Held]] = [[] for _ in group]
    for seed in range(group.shape[1]):
        stated = spreads(np.delete(group, seed, axis=1).tolist(), images)
        for i, spread in enumerate(stated):
            told[i].append((bool(spread.low <= group[i, seed] <= spread.high), spread))
    return told


def _row(case: str, told: Sequence[Held], results: np.ndarray | None = None) -> Row:
    share = float(np.mean([inside for inside, _ in told]))
    error = float(np.sqrt(share * (1 - share) / len(told)))
    reach = np.median([(spread.high - spread.low) / 2 for _, spread in told])
    return Row(
        case=case,
        measured=Ratio(median=share, low=share - error, high=min(1.0, share + error)),
        unit="",
        bar=BAR,
        is_floor=True,
        facts={"of": len(told), "half_width_points": round(100 * float(reach), 2)},
        series={} if results is None else {"accuracies": results.tolist()},
    )
