"""What to ship and why, or what is wrong when there is nothing to ship. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.report import words
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.summary import Entry, Summary

_UNSHIPPED = (
    "Nothing has been shipped yet: controls, the test split and the exported file are still to "
    "come, by the command at the end of this page."
)


def verdict(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the study's result in one sentence, and the next step where there is none."""
    best = summary.stated_best()
    if best is not None:
        told = _ship(summary, best)
        return told if summary.shipped else f"{_UNSHIPPED} {told}"
    if not records:
        return (
            "Nothing to ship: no trial has been run yet. Run the command at the end of this page."
        )
    states = [record.state for record in records]
    if "complete" in states and summary.min_accuracy is not None and not summary.front:
        return _too_inaccurate(summary.min_accuracy, records)
    if "complete" in states:
        return (
            f"Nothing to ship yet: {states.count('complete'):,} of "
            f"{counted(len(records), 'trial')} completed, but none has been chosen."
        )
    over = [
        (record, record.cost) for record in records if record.state == "rejected" and record.cost
    ]
    if over:
        return _too_costly(summary.budget, over)
    return _none_completed(records)


def _ship(summary: Summary, best: Entry) -> str:
    teacher = summary.teacher
    test = "" if best.test is None else f" ({words.percent(best.test)} on the test set)"
    against = [
        f"{text} {words.AXES[axis].name} ({words.scaled(value)} against {words.scaled(reference)})"
        for axis, value, reference in (
            ("flops", best.flops, teacher.flops),
            ("params", best.params, teacher.params),
        )
        if reference and (text := words.compared(value, reference))
    ]
    verb = "Ship" if summary.shipped else "The best so far is"
    return (
        f"{verb} trial{SPACE}{best.trial}{_what(summary, best)}, {_why(summary, best)}: "
        f"{_accuracy(summary, best)}{test}, "
        f"{_speed(summary, best)}; "
        f"it has {' and '.join(against)} than the teacher {teacher.name}, "
        f"{_distance(best.val - teacher.val)} its {words.percent(teacher.val)}."
    )


def _what(summary: Summary, best: Entry) -> str:
    """Say what student it is; of a refit or a control, whose."""
    kind = words.family(best.config)
    text = f", a {kind} student" if kind else ""
    if best.trial == summary.best:
        return text
    method = words.method(best.config)
    taught = "without a teacher" if method == "none" else f"by {method}"
    return f"{text} ({taught}; no. {summary.best} of the front)"


def _accuracy(summary: Summary, best: Entry) -> str:
    """Say what the student scores on validation, and on what that stands."""
    recipe, what = summary.best_recipe(), f"validation {summary.metric}"
    if recipe is None:
        return f"{words.estimate(best.val, summary.images.val)} {what}"
    seeds = counted(len(recipe.trials), "seed")
    found = f"{words.spread(recipe.val)}{SPACE}%"
    return f"{found} {what}, mean and standard deviation of {seeds}"


def _why(summary: Summary, best: Entry) -> str:
    limits, of = words.limits(summary.budget), ""
    among = f"within the budget of {limits}" if limits else "with no budget set"
    is_second = best.val < max(entry.val for entry in summary.front)
    if summary.candidates:
        of = f" of {counted(len(summary.candidates), 'candidate')} trained again"
        means = [recipe.val.mean for each in summary.candidates for recipe in each.recipes()]
        is_second = best.val < max(means)
    return f"the most accurate{of}{' whose exported file was' if is_second else ''} {among}"


def _speed(summary: Summary, best: Entry) -> str:
    if best.latency_ms is None:
        return "latency not measured"
    return f"{words.latency(best)} on {words.target(summary.target)}"


def _distance(difference: float) -> str:
    text = words.points(abs(difference)).lstrip("+")
    if text == "0.00":
        return "level with"
    return f"{text} points {'above' if difference > 0 else 'below'}"


def _too_inaccurate(least: float, records: Sequence[TrialRecord]) -> str:
    done = [record for record in records if record.state == "complete"]
    best = max(done, key=lambda record: record.val or 0.0)
    return (
        f"Nothing to ship: of {counted(len(done), 'completed trial')} none reaches "
        f"--min-accuracy {least:g}; the most accurate, {words.trial(best.number, best.params)}, "
        f"has {words.percent(best.val)} on validation. Train longer (--epochs), raise the budget, "
        "or ask for less, with another --name."
    )


def _too_costly(budget: Budget, over: Sequence[tuple[TrialRecord, Cost]]) -> str:
    """Name the cheapest by the budgeted cost; by FLOPs where that one was never measured."""
    axis = budget.axis()
    if all(getattr(cost, axis) is None for _, cost in over):
        axis = "flops"
    known = [(record, cost) for record, cost in over if getattr(cost, axis) is not None]
    record, cost = min(known, key=lambda item: (getattr(item[1], axis), item[0].number))
    broken = {name for name, excess in budget.violations(cost).items() if excess > 0} or {axis}
    price = " and ".join(
        words.amount(name, getattr(cost, name)) for name in words.AXES if name in broken
    )
    return (
        f"Nothing to ship: {counted(len(over), 'student')} tried, none within the budget of "
        f"{words.limits(budget)}; the cheapest seen is {words.trial(record.number, record.params)} "
        f"with {price}. Raise the budget to that, or let the search space reach smaller students."
    )


def _none_completed(records: Sequence[TrialRecord]) -> str:
    reason = next((record.reason for record in records if record.reason), "")
    said = f" The first reason given: {words.clipped(reason, 300)}" if reason else ""
    return f"Nothing to ship: none of {counted(len(records), 'trial')} completed.{said}"
