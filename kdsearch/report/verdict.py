"""The verdict of a study: the student to ship and why, or why there is none. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.report import words
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.chance import constant_answer, student_at_chance, teacher_at_chance
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.summary import Entry, Summary, TeacherEntry
from kdsearch.tasks.base import Metric


def verdict(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the study's result in a few sentences, and the next step where there is none."""
    needless = no_student_needed(summary)
    if needless and summary.shipped is not None and not _student_at_chance_in(summary):
        return needless
    first = (teacher_at_chance_in(summary), needless)
    return " ".join(filter(None, (*first, _found(summary, records))))


def warnings_in(summary: Summary) -> list[str]:
    """Return the warnings on what ships and on the teacher that stand before all else."""
    return list(filter(None, (_student_at_chance_in(summary), teacher_at_chance_in(summary))))


def teacher_at_chance_in(summary: Summary) -> str:
    """Return the warning of a teacher at chance, '' of another."""
    answer = constant_answer(summary.details.get("teacher validation"), summary.classes)
    return teacher_at_chance(
        summary.metric, summary.teacher.val, summary.chance, summary.images.val, answer
    )


def _student_at_chance_in(summary: Summary) -> str:
    if (best := summary.stated_best()) is None:
        return ""
    return student_at_chance(
        summary.metric,
        best.val,
        summary.chance,
        summary.images.val,
        f"trial{SPACE}{best.trial}",
        constant_answer(summary.details.get("shipped test"), summary.classes),
    )


def kept_by(teacher: TeacherEntry, budget: Budget) -> str:
    """Return, before a search, that the teacher itself is within the budget; '' where it is not."""
    if not teacher.is_within(budget):
        return ""
    return (
        f"The teacher keeps this budget: {_limited(teacher, budget)} of {words.limits(budget)}. "
        "No student is needed; the search shows what one would save."
    ).replace(SPACE, " ")


def no_student_needed(summary: Summary) -> str:
    """Return that the teacher itself will do, and what a student would save; '' where it won't."""
    teacher, metric = summary.teacher, summary.metric
    best = summary.shipped or summary.best_entry()
    if not summary.needs_no_student() or summary.is_at_chance(teacher.val):
        return ""
    text = (
        f"No student is needed: the teacher {teacher.name} is within the budget of "
        f"{words.limits(summary.budget)}, with {_limited(teacher, summary.budget)} and a "
        f"validation {metric.label} of {words.score(metric, teacher.val)}."
    )
    if best is None or summary.is_at_chance(best.val):
        return text
    return f"{text} {_saved(summary, best)}"


def _saved(summary: Summary, best: Entry) -> str:
    """Return what a student costs and scores against a teacher that is within the budget."""
    teacher, metric, axis = summary.teacher, summary.metric, summary.budget.axis()
    own, its, name = getattr(best, axis), getattr(teacher, axis), words.AXES[axis].name
    saved = f"save no {name}"
    if own is not None and own < its:
        saved = f"save {words.digits(100 * (1 - own / its))}{SPACE}% of its {name}"
    split, value, reference, images = "validation", best.val, teacher.val, summary.images.val
    if best.test is not None and teacher.test is not None:
        split, value, reference, images = "test", best.test, teacher.test, summary.images.test
    points = words.points(metric, value - reference)
    change = f"{'gain' if value > reference else 'lose'} {points[1:]}{metric.points}"
    error = words.error_of_difference(metric, value, reference, images)
    if not points.startswith(("+", words.MINUS)):
        change = "lose nothing"
    elif error is not None and abs(value - reference) <= words.NOISE * error:
        change = f"{change} (noise)"
    return (
        f"Trial{SPACE}{best.trial} would {saved} ({words.amount(axis, own)} against "
        f"{words.amount(axis, its)}) and {change} of {split} {metric.label}."
    )


def _limited(teacher: TeacherEntry, budget: Budget) -> str:
    """Return the teacher's costs that the budget limits."""
    limits = {axis: getattr(budget, axis) for axis in words.AXES}
    return " and ".join(
        words.amount(axis, getattr(teacher, axis)) for axis, limit in limits.items() if limit
    )


def _found(summary: Summary, records: Sequence[TrialRecord]) -> str:
    best = summary.shipped or summary.best_entry()
    if warning := _student_at_chance_in(summary):
        return warning
    if best is not None:
        text = _best_student(summary, best)
        return text if summary.shipped else f"{_unshipped(records)} {text}"
    if not records:
        return "Nothing to ship: no trial has run yet. Run the command at the end of this page."
    states = [record.state for record in records]
    if "complete" in states and summary.min_accuracy is not None and not summary.front:
        return _below_minimum(summary.metric, summary.min_accuracy, records)
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


def _unshipped(records: Sequence[TrialRecord]) -> str:
    """Return that nothing has been shipped, and what is still to come."""
    if running := sum(record.state == "running" for record in records):
        return f"Nothing has been shipped yet: {counted(running, 'training')} still running."
    return (
        "Nothing has been shipped yet. The command at the end of this page trains the controls, "
        "exports the student and reads the test split."
    )


def _best_student(summary: Summary, best: Entry) -> str:
    """Return what ships, its metric, its cost, and its speed next to the teacher's: a sentence."""
    teacher, metric, axis = summary.teacher, summary.metric, summary.budget.axis()
    verb = "Ship" if summary.shipped else "The best so far is"
    split, value = ("test", best.test) if best.test is not None else ("validation", best.val)
    axis = axis if getattr(best, axis) is not None else "flops"
    names = words.SPEED if axis == "latency_ms" else ("fewer", "more")
    ratio = words.compared(getattr(best, axis), getattr(teacher, axis), names)
    against = f", {ratio} than the teacher {teacher.name}" if ratio else ""
    return (
        f"{verb} trial{SPACE}{best.trial}{_what(summary, best)}, {_why(summary, best)}: "
        f"{split} {metric.label} {words.score(metric, value)}, "
        f"{words.amount(axis, getattr(best, axis))}{against}."
    )


def _what(summary: Summary, best: Entry) -> str:
    """Return the kind of the student; for a refit or a control also its trial on the front."""
    kind, teacher = words.family(best.config), summary.teacher
    text = f", a {kind} student" if kind else ""
    whole = teacher.params or 0
    if kind == teacher.name and best.params and whole > best.params:
        part = words.digits(float(f"{100 * best.params / whole:.2g}"))
        text += f" with {part}{SPACE}% of the teacher's parameters"
    if best.trial == summary.best:
        return text
    method = words.method(best.config)
    taught = "without a teacher" if method == "none" else f"by {method}"
    return f"{text} ({taught}; trial{SPACE}{summary.best} of the front)"


def _why(summary: Summary, best: Entry) -> str:
    limits, of = words.limits(summary.budget), ""
    among = f" within the budget of {limits}" if limits else ""
    recipe = summary.best_recipe()
    val = best.val if recipe is None else recipe.val.mean
    is_second = val < max(entry.val for entry in summary.front)
    if summary.candidates:
        of = f" of {counted(len(summary.candidates), 'retrained trial')}"
        means = [recipe.val.mean for each in summary.candidates for recipe in each.recipes()]
        is_second = val < max(means)
    if is_second:
        return "not the most accurate of the front"
    return f"the best{of}{among}"


def _below_minimum(metric: Metric, least: float, records: Sequence[TrialRecord]) -> str:
    done = [record for record in records if record.state == "complete"]
    best = max(done, key=lambda record: record.val or 0.0)
    return (
        f"Nothing to ship: none of {counted(len(done), 'completed trial')} reaches "
        f"--min-accuracy {least:g}. The best, {words.trial(best.number, best.params)}, "
        f"has {words.score(metric, best.val)} on validation. Train longer (--epochs), raise the "
        "budget, or lower --min-accuracy, with another --name."
    )


def _too_costly(budget: Budget, over: Sequence[tuple[TrialRecord, Cost]]) -> str:
    """Name the cheapest student by the budgeted cost; by FLOPs if that was never measured."""
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
        f"Nothing to ship: {counted(len(over), 'student')} rejected, none within the budget of "
        f"{words.limits(budget)}. The cheapest is {words.trial(record.number, record.params)} "
        f"with {price}. Raise the budget to that, or add smaller students to the search space."
    )


def _none_completed(records: Sequence[TrialRecord]) -> str:
    reason = next((record.reason for record in records if record.reason), "")
    first = f" The first reason: {words.clipped(reason, 300)}" if reason else ""
    return f"Nothing to ship: none of {counted(len(records), 'trial')} completed.{first}"
