"""The verdict of a study: the student to ship and why, or why there is none. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.report import words
from kdsearch.spec import Budget, Cost, TrialRecord
from kdsearch.study.chance import constant_answer, student_at_chance, teacher_at_chance
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.summary import Entry, Summary, TeacherEntry
from kdsearch.tasks.base import Metric

_UNSHIPPED = (
    "Nothing has been shipped yet. The command at the end of this page trains the controls, "
    "exports the student and reads the test split."
)


def verdict(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the study's result in a few sentences, and the next step where there is none."""
    first = (teacher_at_chance_in(summary), no_student_needed(summary))
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
    teacher, metric, best = summary.teacher, summary.metric, summary.stated_best()
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
    points = words.points(metric, best.val - teacher.val)
    change = f"{'gain' if best.val > teacher.val else 'lose'} {points[1:]}{metric.points}"
    error = words.error_of_difference(metric, best.val, teacher.val, summary.images.val)
    if not points.startswith(("+", words.MINUS)):
        change = "lose nothing"
    elif error is not None and abs(best.val - teacher.val) <= words.NOISE * error:
        change = f"{change} (noise)"
    return (
        f"Trial{SPACE}{best.trial} would {saved} ({words.amount(axis, own)} against "
        f"{words.amount(axis, its)}) and {change} of validation {metric.label}."
    )


def _limited(teacher: TeacherEntry, budget: Budget) -> str:
    """Return the teacher's costs that the budget limits."""
    limits = {axis: getattr(budget, axis) for axis in words.AXES}
    return " and ".join(
        words.amount(axis, getattr(teacher, axis)) for axis, limit in limits.items() if limit
    )


def _found(summary: Summary, records: Sequence[TrialRecord]) -> str:
    best = summary.stated_best()
    if warning := _student_at_chance_in(summary):
        return warning
    if best is not None:
        text = _best_student(summary, best)
        return text if summary.shipped else f"{_UNSHIPPED} {text}"
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


def _best_student(summary: Summary, best: Entry) -> str:
    teacher, metric = summary.teacher, summary.metric
    test = (
        "" if best.test is None else f" ({words.score(summary.metric, best.test)} on the test set)"
    )
    against = [
        f"{text} {words.AXES[axis].name} ({words.scaled(value)} against {words.scaled(reference)})"
        for axis, value, reference in (
            ("flops", best.flops, teacher.flops),
            ("params", best.params, teacher.params),
        )
        if reference and (text := words.compared(value, reference))
    ]
    verb = "Ship" if summary.shipped else "The best so far is"
    if summary.shipped and summary.needs_no_student():
        verb = "The best student is"
    smaller = f"It has {' and '.join(against)} than the teacher {teacher.name}. " if against else ""
    return (
        f"{verb} trial{SPACE}{best.trial}{_what(summary, best)}, {_why(summary, best)}. "
        f"Its validation {metric.label} is {_score(summary, best)}{test}, "
        f"{_distance(metric, best.val - teacher.val)} the teacher's "
        f"{words.score(metric, teacher.val)}. "
        f"{smaller}{_speed(summary, best)}"
    )


def _what(summary: Summary, best: Entry) -> str:
    """Return the kind of the student; for a refit or a control also its trial on the front."""
    kind = words.family(best.config)
    text = f", a {kind} student" if kind else ""
    if best.trial == summary.best:
        return text
    method = words.method(best.config)
    taught = "without a teacher" if method == "none" else f"by {method}"
    return f"{text} ({taught}; trial{SPACE}{summary.best} of the front)"


def _score(summary: Summary, best: Entry) -> str:
    """Return the score of the student on validation with its error or spread."""
    recipe = summary.best_recipe()
    if recipe is None:
        return words.estimate(summary.metric, best.val, summary.images.val)
    spread = words.spread(summary.metric, recipe.val, unit=True)
    return f"{spread} (mean of {counted(len(recipe.trials), 'seed')})"


def _why(summary: Summary, best: Entry) -> str:
    limits, of = words.limits(summary.budget), ""
    among = f"within the budget of {limits}" if limits else "with no budget set"
    is_second = best.val < max(entry.val for entry in summary.front)
    if summary.candidates:
        of = f" of {counted(len(summary.candidates), 'retrained trial')}"
        means = [recipe.val.mean for each in summary.candidates for recipe in each.recipes()]
        is_second = best.val < max(means)
    return f"the best{of}{' whose exported file was' if is_second else ''} {among}"


def _speed(summary: Summary, best: Entry) -> str:
    if best.latency_ms is None:
        return "Its latency was not measured."
    return f"Its latency is {words.latency(best)} on {words.target(summary.target)}."


def _distance(metric: Metric, difference: float) -> str:
    text = words.points(metric, abs(difference))
    if not text.startswith("+"):
        return "level with"
    return f"{text[1:]}{metric.points} {'above' if difference > 0 else 'below'}"


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
