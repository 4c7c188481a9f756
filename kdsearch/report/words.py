"""The words of the report: numbers, costs and facts of a study as plain text. No HTML here.

Fractions are shown in percent, differences in points, costs with their unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdsearch.deploy.timing import BUSY, ONE_ROUND
from kdsearch.hpo.statistics import Gain, Spread
from kdsearch.space import Params
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.formatting import SPACE, counted, milliseconds
from kdsearch.study.summary import Baseline, Entry, Summary, TargetInfo, TeacherEntry
from kdsearch.tasks.base import Metric

TIMES = "\u00d7"
MINUS = "\u2212"
UNKNOWN = "not measured"
NOT_COUNTED = "unknown"  # FLOPs or parameters, as those of a teacher that is an ONNX file


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One kind of cost: its axis title, its unit and its name in a sentence."""

    title: str
    unit: str
    name: str


AXES = {
    "latency_ms": Axis(title="latency, ms", unit="ms", name="latency"),
    "flops": Axis(title="multiply-adds", unit="FLOPs", name="FLOPs"),
    "params": Axis(title="parameters", unit="parameters", name="parameters"),
}

STATES = {
    "complete": "completed",
    "rejected": "rejected (over budget)",
    "pruned": "pruned (stopped early)",
    "failed": "failed",
    "running": "still running",
}


def digits(value: float) -> str:
    """Return the number with three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:,.{max(0, decimals)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scaled(value: float | None) -> str:
    """Return a count, 3210000 as '3.21 M', None as 'unknown'."""
    if value is None:
        return NOT_COUNTED
    value = float(f"{value:.3g}")
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{digits(value / factor)}{SPACE}{letter}"
    return digits(value)


def amount(axis: str, value: float | None) -> str:
    """Return a cost with its unit, '3.21 M FLOPs'; None as 'not measured', of a count 'unknown'."""
    if value is None:
        return UNKNOWN if axis == "latency_ms" else NOT_COUNTED
    unit = AXES[axis].unit
    if axis == "latency_ms":
        return f"{digits(value)}{SPACE}{unit}"
    return f"{scaled(value)}{SPACE}{unit}"


def latency(cost: Cost | Entry | Baseline | TeacherEntry) -> str:
    """Return a latency with its interval, if known, as '1.83 ms (1.79 to 1.88)'."""
    low, middle, high = cost.latency_low_ms, cost.latency_ms, cost.latency_high_ms
    if low is None or high is None or not middle:
        return amount("latency_ms", middle)
    return milliseconds(middle, low, high)


def share(budget: Budget, owner: Cost | Entry, axis: str) -> float | None:
    """Return the share of a limit that a cost uses, None without a limit or a cost.

    Of a latency the upper end counts: it has to be within the budget.
    """
    limit, value = getattr(budget, axis), getattr(owner, axis)
    if axis == "latency_ms" and owner.latency_high_ms is not None:
        value = owner.latency_high_ms
    return None if limit is None or value is None else float(value / limit)


def is_busy(summary: Summary) -> bool:
    """Return whether the machine was busy while the latency of the file was measured."""
    contention = None if summary.file is None else summary.file.contention
    return contention is not None and contention > BUSY


def busy(summary: Summary) -> str:
    """Return the warning that the machine was busy during the measurement, '' where it was not."""
    if not is_busy(summary):
        return ""
    return (
        "The machine was busy while the latency of the file was measured, so it may be too high. "
        "Measure again when the machine is idle."
    )


def percent(fraction: float | None) -> str:
    """Return 0.9731 as '97.31 %'."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.2f}{SPACE}%"


def score(metric: Metric, value: float | None) -> str:
    """Return 0.9731 of a percentage as '97.31 %'."""
    return UNKNOWN if value is None else _with_unit(metric, metric.number(value))


def standard_error(metric: Metric, value: float | None, images: int | None) -> float | None:
    """Return the standard error of a score on so many images, None if one is unknown."""
    return None if value is None or not images else metric.standard_error(value, images)


def estimate(metric: Metric, value: float | None, images: int | None) -> str:
    """Return 0.9731 of 2,000 images as '97.31 ± 0.36 %'."""
    error = standard_error(metric, value, images)
    if value is None or error is None:
        return score(metric, value)
    return _with_unit(metric, f"{metric.number(value)} \u00b1 {metric.number(error)}")


NOISE = 2.0  # standard errors; a difference below may be noise
# Variance of a training over seeds and images, in variances of the images alone. Over seeds a
# student of digits spread by 0.7 points, as much as other images of that number would move it.
_SEEDS = 2.0


def points(metric: Metric, difference: float) -> str:
    """Return the difference of two scores as '+1.20', in points for a percentage."""
    if metric.number(abs(difference)) == metric.number(0):
        return metric.number(0)
    return metric.difference(difference).replace("-", MINUS)


def gain(metric: Metric, difference: float, error: float | None = None) -> str:
    """Return a gain as '+1.20', a loss as '-1.20, lost', what noise explains as '+0.20, noise'.

    error: standard error of the difference, None where it is not known.
    """
    text = points(metric, difference)
    if error is not None and abs(difference) <= NOISE * error:
        return f"{text}, noise"
    return f"{text}, lost" if text.startswith(MINUS) else text


def gained(metric: Metric, interval: tuple[float, float, float], split: str, over: str) -> str:
    """Return the gain over something, with its 95 % interval, in a sentence.

    interval: difference, lower and upper end. It is a gain or a loss where these exclude 0.
    """
    difference, low, high = interval
    amount = (
        f"{points(metric, difference)} [{points(metric, low)}, {points(metric, high)}]"
        f"{metric.points} of {split} {metric.label}"
    )
    if low <= 0 <= high:
        return f"No measurable gain {over}: {amount}"
    return f"{'Gained' if low > 0 else 'Lost'} {over}: {amount}"


def error_of_difference(
    metric: Metric, one: float, other: float, images: int | None
) -> float | None:
    """Return the standard error of the difference of two trainings on so many images.

    It holds other images and other seeds.
    """
    if not images:
        return None
    return math.sqrt(_SEEDS * (metric.variance(one, images) + metric.variance(other, images)))


def spread(metric: Metric, found: Spread, *, unit: bool = False) -> str:
    """Return a mean and the standard deviation of one training as '97.31 ± 0.36'."""
    text = f"{metric.number(found.mean)} \u00b1 {metric.number(found.sd)}"
    return _with_unit(metric, text) if unit else text


def gain_interval(metric: Metric, found: Gain) -> str:
    """Return a gain and its confidence interval as '+1.20 [+0.40, +2.00]'."""
    low, high = points(metric, found.low), points(metric, found.high)
    return f"{points(metric, found.difference)} [{low}, {high}]"


def heading(title: str, unit: str) -> str:
    """Return the heading of a column with its unit, if it has one."""
    return f"{title}, {unit.strip()}" if unit.strip() else title


def _with_unit(metric: Metric, text: str) -> str:
    return f"{text}{SPACE}{metric.unit}" if metric.unit else text


def sentence(text: str) -> str:
    """Return the text with a capital letter; a label such as mAP50 stays."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def chance(p: float) -> str:
    """Return a chance as '0.012', a very small one as '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared(
    value: float | None, reference: float | None, words: tuple[str, str] = ("fewer", "more")
) -> str:
    """Return the ratio of two costs, '41.2x fewer', or '' if one is unknown."""
    if not value or not reference:
        return ""
    if value <= reference:
        return f"{digits(reference / value)}{TIMES} {words[0]}"
    return f"{digits(value / reference)}{TIMES} {words[1]}"


SPEED = ("faster", "slower")  # of `compared`, for latencies


def clipped(text: str, length: int) -> str:
    """Return at most `length` characters of the text, ending in an ellipsis if it was longer."""
    return text if len(text) <= length else f"{text[: length - 1]}\u2026"


def reason(record: TrialRecord) -> str:
    """Return why the trial did not complete: its own reason, else the limits it broke."""
    if record.reason:
        return record.reason
    return ", ".join(
        f"{AXES[axis].name} {digits(100 * excess)}{SPACE}% over the budget"
        for axis, excess in record.violations.items()
        if excess > 0
    )


def family(params: Params) -> str:
    """Return the student's family, '' in a space without one."""
    return str(params.get("student.family", ""))


def method(params: Params) -> str:
    """Return the name of the distillation method, '' in a space without one."""
    return str(params.get("method.name", ""))


def trial(number: int, params: Params) -> str:
    """Return 'trial 7 (resnet)'."""
    kind = family(params)
    return f"trial{SPACE}{number}" + (f" ({kind})" if kind else "")


def ship_mark(summary: Summary) -> str:
    """Return the mark of the training to ship: 'the best so far' until a file has been shipped."""
    return "to ship" if summary.shipped else "the best so far"


def shipping(summary: Summary, number: int) -> str:
    """Return 'to ship' for the training to ship; for the best trial, the one that ships instead."""
    if number == summary.to_ship():
        return ship_mark(summary)
    if number != summary.best:
        return ""
    return f"shipped (weights of trial {summary.to_ship()})"


def network(name: str) -> str:
    """Return the name of a network without its library."""
    return name.rpartition(":")[2]


def limits(budget: Budget) -> str:
    """Return the limits of a budget in words, '' without one."""
    found = {axis: getattr(budget, axis) for axis in AXES}
    return " and ".join(amount(axis, value) for axis, value in found.items() if value is not None)


def target(where: TargetInfo) -> str:
    """Return the device and runtime that latency was measured on."""
    threads = counted(where.threads, "thread")
    return f"{where.device}, {where.runtime}, {threads}, batch{SPACE}{where.batch}"


def conventions(summary: Summary) -> str:
    """Return the units and conventions that a reader must know."""
    brackets = (
        f"Brackets: 95{SPACE}% range over new processes, slower moments of the machine included. "
        "The upper end must be within the budget."
    )
    if summary.budget.latency_ms is None:
        brackets = (
            f"Brackets: one round by the clock, {ONE_ROUND:g} times less and more; on a busy "
            "machine it is too high. `kdsearch measure` measures a file in full."
        )
    return (
        f"{sentence(summary.metric.label)} is on the validation set unless marked as test. "
        "FLOPs count one multiply-add once, for one image. "
        f"Latency is measured on {target(summary.target)}. {brackets}"
    )


def tally(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the number of trials in each state, in one sentence."""
    counts = summary.counts
    states = ("complete", "rejected", "pruned", "failed")
    found = {state: getattr(counts, state) for state in states}
    found["running"] = sum(record.state == "running" for record in records)
    parts = [f"{number:,} {STATES[state]}" for state, number in found.items() if number]
    text = (
        f"{counted(sum(found.values()), 'trial')}: {'; '.join(parts)}." if parts else "No trials."
    )
    if counts.reused:
        equal = (
            "equals an earlier trial and was"
            if counts.reused == 1
            else "equal earlier ones and were"
        )
        text += f" {counts.reused:,} of the completed {equal} not trained."
    if counts.rejected_early:
        more = counted(counts.rejected_early, "more candidate")
        text += f" {more} rejected by FLOPs or parameters when sampled, not counted as trials."
    return text


def costs(owner: Cost | Entry | TeacherEntry) -> dict[str, float | None]:
    """Return every kind of cost by the name of its axis."""
    return {axis: getattr(owner, axis) for axis in AXES}
