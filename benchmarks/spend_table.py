"""The table of `equal_spend`: accuracies over seeds, paired differences, bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.spend_arms import KDSEARCH, ORACLE, ORACLE_NAME, PEERS, Run
from benchmarks.spend_settings import Bar, Setting

BySeed: TypeAlias = Mapping[int, Run]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Test accuracy of `kdsearch run` minus a peer's in points, one for each seed of both.

    noise: half of the 95 % interval of one difference, were both tested on images of their own.
    """

    points: tuple[float, ...]
    noise: float

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return statistics.mean(self.points)

    @property
    def error(self) -> float:
        """Return the standard error of the mean; NaN for one seed."""
        return _deviation(self.points) / math.sqrt(len(self.points))

    def __str__(self) -> str:
        each = " ".join(f"{points:+.1f}" for points in self.points)
        return f"{self.mean:+.2f} +- {self.error:.2f} ({each})"


def by_arm(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """Return the runs of one setting by arm and seed.

    oracle: under each seed the best of its four on test. Raises ValueError where images differ.
    """
    arms: dict[str, dict[int, Run]] = {}
    keys = set()
    for run in runs:
        arms.setdefault(run.arm.name, {})[run.arm.seed] = run
        keys.add(run.shipped.data)
    if len(keys) > 1:
        raise ValueError(f"runs of one setting have different images: {', '.join(sorted(keys))}")
    four = [arms[name] for name in ORACLE if name in arms]
    if len(four) == len(ORACLE):
        seeds = set.intersection(*(set(arm) for arm in four))
        arms[ORACLE_NAME] = {
            seed: max((arm[seed] for arm in four), key=lambda run: run.shipped.test)
            for seed in sorted(seeds)
        }
    return arms


def differences(own: BySeed, peer: BySeed) -> Differences | None:
    """Return the differences over common seeds, None without one."""
    seeds = sorted(own.keys() & peer.keys())
    if not seeds:
        return None
    pairs = [(own[seed].shipped, peer[seed].shipped) for seed in seeds]
    return Differences(
        points=tuple(100 * (mine.test - other.test) for mine, other in pairs),
        noise=max(_noise(other.test, other.test_images) for _, other in pairs),
    )


def _noise(accuracy: float, images: int) -> float:
    return 196 * math.sqrt(2 * accuracy * (1 - accuracy) / images)


def _deviation(values: Sequence[float]) -> float:
    """Return the sample's standard deviation; NaN for one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def table(name: str, setting: Setting, runs: Iterable[Run]) -> tuple[list[str], bool]:
    """Return the lines of one setting's table, and whether all bars are kept."""
    arms = by_arm(runs)
    lines = [
        "",
        f"{name}: {setting.train} images x {setting.spend} epochs, {setting.mflops:g} MFLOPs, "
        f"{setting.val} images for validation, {setting.test} for test",
        f"  {'arm':16} {'test %':>13} {'val %':>13} {'MFLOPs':>7} {'trained':>7} {'spent':>7} "
        f"{'CPU s':>7}  students",
        *(f"  {arm:16} {_line(list(by_seed.values()))}" for arm, by_seed in arms.items()),
    ]
    own, bars = arms.get(KDSEARCH, {}), {bar.peer: bar for bar in setting.bars}
    verdicts = [_spend(arms, setting.spend)]
    for arm in dict.fromkeys([*arms, *bars]):
        found = differences(own, arms.get(arm, {}))
        parts = list(_verdicts(found, bars.get(arm)))
        if arm != KDSEARCH and (found or parts):
            words = "; ".join(f"{text} {_word(kept)}" for text, kept in parts)
            lines.append(f"  {KDSEARCH} - {arm:16} {found or ''}  {words}".rstrip())
            verdicts += parts
    text, is_spent = verdicts[0]
    lines.append(f"  {text} {_word(is_spent)}")
    return lines, all(kept for _, kept in verdicts)


def _verdicts(found: Differences | None, bar: Bar | None) -> Iterator[tuple[str, bool]]:
    """Yield each part of a bar and whether it is kept; what was not measured keeps no bar."""
    if bar is None:
        return
    if found is None:
        yield "not measured", False
        return
    yield f"mean >= {bar.least:+g}", found.mean >= bar.least
    if bar.never_below:
        yield f"each >= -{found.noise:.1f}", min(found.points) >= -found.noise


def _spend(arms: Mapping[str, BySeed], spend: int) -> tuple[str, bool]:
    """Return which runs spent something else: `kdsearch run` may spend less, peers may not."""
    wrong = [
        f"{arm} {run.shipped.spent} under seed {seed}"
        for arm, by_seed in arms.items()
        for seed, run in by_seed.items()
        if run.shipped.spent > spend or (arm in PEERS and run.shipped.spent < spend)
    ]
    return f"spend of {spend} epochs" + (f", but {', '.join(wrong)}:" if wrong else ":"), not wrong


def _line(runs: Sequence[Run]) -> str:
    shipped = [run.shipped for run in runs]
    mean, students = statistics.mean, dict.fromkeys(one.student for one in shipped)
    return (
        f"{_spread([100 * one.test for one in shipped]):>13} "
        f"{_spread([100 * one.val for one in shipped]):>13} "
        f"{mean(one.mflops for one in shipped):7.2f} "
        f"{mean(one.trained for one in shipped):7.1f} {mean(one.spent for one in shipped):7.1f} "
        f"{mean(run.cpu_s for run in runs):7.1f}  {' | '.join(students)}"
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} +- {_deviation(values):.1f}"


def _word(is_kept: bool) -> str:
    return "PASS" if is_kept else "FAIL"
