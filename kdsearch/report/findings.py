"""The findings of a study in sentences: gains, noise, trouble with the teacher. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kdsearch.hpo.statistics import Gain
from kdsearch.report import words
from kdsearch.report.answers import PASSED, gain_of_one, has_passed
from kdsearch.spec import TrialRecord
from kdsearch.study.chance import by_class, constant_answer, student_at_chance
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.refit import summarised
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import CandidateEntry, GainEntry, Trainings, is_at_chance
from kdsearch.tasks.base import Metric

CONTROLS = {
    "none": "without a teacher",
    "label_smoothing": "with label smoothing alone",
    "kd": "with plain KD at its defaults",
}
_SUBJECTS = {"none": "distillation", "kd": "the search"}
_DROP = 0.05  # from validation to test; a larger one beyond noise is worth a sentence


def about_test(study: OpenStudy) -> str:
    """Return how many networks were evaluated on the test split."""
    count = len(study.facts.test)
    return (
        f"The test set was used only for the final numbers of {counted(count, 'student')} and the "
        "teacher."
    ).replace(SPACE, " ")


def about_classes(study: OpenStudy, ships: TrialRecord) -> str:
    """Return the classes that what ships is worst at, on test images; '' without classes."""
    facts = study.facts
    return by_class(facts.details.get(f"{ships.number} test"), facts.classes, "test")


def about_refits(study: OpenStudy, best: int) -> Iterator[str]:
    """Yield the results of the refits of a study whose trial `best` is shipped."""
    refit, (candidates, together) = study.facts.refit, summarised(study)
    if refit.count > (count := len(study.front())):
        yield f"--refit {refit.count}: the front has {counted(count, 'trial')}, all retrained."
    failed = [r for r in study.records() if r.refit_of is not None and r.state == "failed"]
    if failed:
        example = f"trial {failed[-1].number}: {failed[-1].reason}"
        yield f"{counted(len(failed), 'refit')} failed, for example {example}"
    candidate = next((each for each in candidates if each.trial == best), None)
    recipe = None if candidate is None else candidate.shipped_recipe()
    if candidate is None or recipe is None:
        yield f"Trial {best} was trained once: its refits are not complete, see `kdsearch.log`."
        yield from about_teacher(study, None)
        return
    is_own = recipe is candidate.trained
    which = "" if is_own else f", its student {CONTROLS[recipe.method]}"
    seeds = _seeds(study.metric, recipe)
    yield f"Trial {best}{which}: {seeds} The shipped file is trial {candidate.shipped}."
    yield from _shipped_at_chance(study, recipe.val.mean, candidate.shipped or best)
    for control in candidate.controls:
        if _is_at_chance(study, candidate.trained.val.mean):
            continue
        if _is_at_chance(study, control.trained.val.mean):
            yield _control_at_chance(study, control.trained.method, control.trained.val.mean)
        else:
            gain, split = _on_test(control.gain, control.test_gain)
            yield _gain(study.metric, "", control.trained.method, gain, split)
    if not is_own:
        yield f"The searched recipe of trial {best} scored lower on average and is not shipped."
    if len(candidates) > 1:
        yield from _together(study, best, candidates, together)
    plain = (c.trained.val.mean for c in candidate.controls if c.trained.method == "none")
    yield from about_teacher(study, next(plain, None))


def _together(
    study: OpenStudy,
    best: int,
    candidates: Sequence[CandidateEntry],
    together: Sequence[GainEntry],
) -> Iterator[str]:
    """Yield the gains of all retrained trials; nothing where one of them is at chance."""
    recipes = [recipe for each in candidates for recipe in each.recipes()]
    if any(_is_at_chance(study, each.val.mean) for each in recipes):
        return
    if any(entry.test_gain is None for entry in together):
        yield (
            f"Trial {best} was selected on validation, so its gain there is too high. The "
            f"average of all {len(candidates)} retrained trials is not affected:"
        )
    for entry in together:
        gain, split = _on_test(entry.gain, entry.test_gain)
        yield _gain(study.metric, f"{entry.candidates} retrained trials: ", entry.over, gain, split)


def _is_at_chance(study: OpenStudy, val: float) -> bool:
    return is_at_chance(study.metric, val, study.facts.chance, study.facts.images.val)


def _shipped_at_chance(study: OpenStudy, val: float, shipped: int) -> Iterator[str]:
    if _is_at_chance(study, val):
        facts = study.facts
        answer = constant_answer(facts.details.get(f"{shipped} test"), facts.classes)
        yield student_at_chance(
            study.metric, val, facts.chance, facts.images.val, f"trial {shipped}", answer
        )


def _control_at_chance(study: OpenStudy, method: str, val: float) -> str:
    """Return that a gain over a control means nothing."""
    return (
        f"No gain is stated over the same student {CONTROLS[method]}: at {study.metric.text(val)} "
        f"it is no better than one constant answer ({words.score(study.metric, study.facts.chance)}"
        "), beyond noise."
    ).replace(SPACE, " ")


def _seeds(metric: Metric, recipe: Trainings) -> str:
    """Return the mean of several seeds and the range of a new training."""
    val = recipe.val
    return (
        f"{metric.text(val.mean)} on validation, the mean of {len(recipe.trials)} seeds, standard "
        f"deviation {metric.number(val.sd)}{metric.points}. A new training would reach "
        f"{metric.text(val.low)} to {metric.text(val.high)} (95 %)."
    )


def _on_test(gain: Gain, test: Gain | None) -> tuple[Gain, str]:
    """Return the gain on test where it has been read, else on validation, and the split."""
    return (gain, "validation") if test is None else (test, "test")


def _gain(metric: Metric, who: str, method: str, gain: Gain, split: str) -> str:
    """Return the gain over a control, and whether the trainings show it."""
    subject = _SUBJECTS[method]
    found = f"{subject} {'gained' if gain.difference > 0 else 'lost'}"
    if not gain.is_shown:
        found = f"no measurable gain from {subject}"
    text = (
        f"{who}{found}: {words.gain_interval(metric, gain)}{metric.points} of {split} "
        f"{metric.label} over the same student {CONTROLS[method]} ({gain.pairs} pairs of equal "
        f"seeds, p {words.chance(gain.p)})."
    )
    return text[0].upper() + text[1:]


def about_controls(
    study: OpenStudy,
    best: TrialRecord,
    controls: Sequence[TrialRecord],
    n_val: int,
    *,
    shipped: int,
) -> Iterator[str]:
    """Yield the gain over each control in one training, the noise, and the control that ships."""
    assert best.val is not None
    metric = study.metric
    by_method = {str(record.params["method.name"]): record for record in controls}
    ships = next((record for record in controls if record.number == shipped), best)
    yield from _shipped_at_chance(study, ships.val or 0.0, shipped)
    if best.control_of is not None:
        yield (
            f"Trial {best.number} is the student of trial {best.control_of} "
            f"{CONTROLS[str(best.params['method.name'])]}. It led that trial after as "
            "many epochs, so it was trained in full in its place."
        )
    for method, what in CONTROLS.items():
        control = by_method.get(method)
        if control is None or control.val is None or _is_at_chance(study, best.val):
            continue
        if _is_at_chance(study, control.val):
            yield _control_at_chance(study, method, control.val)
        else:
            yield _gain_of_one(study, best, control, what)
    for method, control in by_method.items():
        if control.number == shipped:
            yield (
                f"The control {CONTROLS[method]}, trial {shipped}, scored higher than trial "
                f"{best.number} and is shipped."
            )
    noise = words.error_of_difference(metric, best.val, best.val, n_val)
    if controls and noise is not None:
        yield (
            f"One training each on {n_val} validation images: the standard error of a difference "
            f"is {metric.number(noise)}{metric.points}, seeds included. Differences below about "
            f"{metric.number(2 * noise)}{metric.points} may be noise; --refit 3 narrows that."
        )
    plain = by_method.get("none")
    yield from about_teacher(study, None if plain is None else plain.val)


def _gain_of_one(study: OpenStudy, best: TrialRecord, control: TrialRecord, what: str) -> str:
    """Return the gain over a control in one training of each, with its interval."""
    metric, facts = study.metric, study.facts
    gain = gain_of_one(metric, facts.images, facts.test, best, control)
    assert gain is not None
    assert gain.interval is not None
    when = f" after {counted(gain.epochs, 'epoch')}".replace(SPACE, " ") if gain.epochs else ""
    text = words.gained(metric, gain.interval, gain.split, f"over the same student {what}{when}")
    flattered = (
        "; the winner was selected on validation, so its gain there is too high"
        if gain.split == "validation"
        else ""
    )
    if what == CONTROLS["none"] and has_passed(best, facts.teacher_entry(), gain):
        flattered += f"; {PASSED}"
    return f"{text} ({metric.text(gain.own)} against {metric.text(gain.others)}){flattered}"


def about_teacher(study: OpenStudy, plain: float | None) -> Iterator[str]:
    """Yield what is wrong with the teacher. plain: validation of the student without a teacher."""
    metric, teacher = study.metric, study.facts.teacher_entry()
    if teacher.test is not None and _drops(study, teacher.val, teacher.test):
        why = "It was probably trained on these validation images"
        if study.config.trains_teachers:  # here, on the training images
            why = "It was trained here, on neither, so the two splits differ"
        yield (
            f"The teacher scores {metric.text(teacher.val)} on validation and "
            f"{metric.text(teacher.test)} on test. {why}: trust the test {metric.label} of the "
            f"students, not their validation {metric.label}."
        )
    is_comparable = teacher.knows_all and not _is_at_chance(study, teacher.val)
    if plain is not None and teacher.val <= plain and is_comparable:
        yield (
            f"The teacher ({metric.text(teacher.val)}) is no better than this student without a "
            f"teacher ({metric.text(plain)}). Look for a better teacher first."
        )


def _drops(study: OpenStudy, val: float, test: float) -> bool:
    """Return whether a drop from validation to test is large, and beyond the noise of both."""
    metric, images = study.metric, study.facts.images
    if not images.val or not images.test:
        return False
    error = math.sqrt(metric.variance(val, images.val) + metric.variance(test, images.test))
    return val - test > max(_DROP, words.NOISE * error)
