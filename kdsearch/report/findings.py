"""What a study found, in sentences: what was gained, what may be noise, what is wrong. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

from kdsearch.hpo.statistics import Gain
from kdsearch.report import words
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.refit import refit_of, summarised
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import TeacherEntry

CONTROLS = {
    "none": "without a teacher",
    "label_smoothing": "with label smoothing alone",
    "kd": "with plain KD at its defaults",
}
_SUBJECTS = {"none": "distillation", "kd": "the search"}
_KNOWN_BY_HEART = 0.05


def of_test(study: OpenStudy) -> str:
    """Say which networks were shown the test split."""
    read = len(cast("dict[str, float]", study.facts()["test"]))
    return (
        f"The test split was read once for each of {read} students and the teacher, after the "
        "search; nothing was chosen by it"
    )


def of_refits(study: OpenStudy, best: int) -> Iterator[str]:
    """Yield what refits say of a study whose best is shipped, in words."""
    refit, (found, together) = refit_of(study), summarised(study)
    if refit.count > (count := len(study.front())):
        yield f"--refit {refit.count}: the front has {counted(count, 'candidate')}, all taken"
    failed = [r for r in study.records() if r.refit_of is not None and r.state == "failed"]
    if failed:
        told = counted(len(failed), "refit")
        yield f"{told} failed, such as trial {failed[-1].number}: {failed[-1].reason}"
    candidate = next((each for each in found if each.trial == best), None)
    recipe = None if candidate is None else candidate.shipped_recipe()
    if candidate is None or recipe is None:
        yield f"No. {best} was trained once; see `kdsearch.log` on its refits"
        yield from of_teacher(study, None)
        return
    is_own = recipe is candidate.trained
    yield (
        f"No. {best}{'' if is_own else f', its student {CONTROLS[recipe.method]}'}: "
        f"{_percent(recipe.val.mean)} on validation, the mean of {len(recipe.trials)} seeds, "
        f"standard deviation {100 * recipe.val.sd:.2f} points; of 20 more trainings about 19 would "
        f"end within {_percent(recipe.val.low)} to {_percent(recipe.val.high)}. Shipped is "
        f"{'the median' if len(recipe.trials) % 2 else 'the lower of the middle two'}, "
        f"trial {candidate.shipped}"
    )
    for control in candidate.controls:
        yield _gained("", control.trained.method, control.gain)
    if not is_own:
        yield f"What was found for no. {best} is on average below that, so it is not shipped"
    if len(found) > 1:
        yield (
            f"No. {best} was chosen by these averages, which flatters it a little; what all "
            f"{len(found)} candidates gained is not chosen, and follows"
        )
        for entry in together:
            yield _gained(f"{entry.candidates} candidates: ", entry.over, entry.gain)
    plain = (c.trained.val.mean for c in candidate.controls if c.trained.method == "none")
    yield from of_teacher(study, next(plain, None))


def _gained(who: str, method: str, gain: Gain) -> str:
    """Say what was gained over a control, and whether the trainings show it."""
    verb = "gained" if gain.difference > 0 else "lost"
    subject, against = _SUBJECTS[method], f"the same student {CONTROLS[method]}"
    if not gain.is_shown:
        verb = "gained nothing that these trainings show"
    text = (
        f"{who}{subject} {verb}: {words.gain_interval(gain)} points of validation accuracy over "
        f"{against}, {gain.pairs} pairs of the same seed, p {words.chance(gain.p)}"
    )
    return text[0].upper() + text[1:]


def _percent(fraction: float) -> str:
    return words.percent(fraction).replace(SPACE, " ")


def of_controls(
    study: OpenStudy,
    best: TrialRecord,
    controls: Sequence[TrialRecord],
    n_val: int,
    *,
    shipped: int,
) -> Iterator[str]:
    """Yield what distillation gained in one training each, what may be noise, what is shipped."""
    assert best.val is not None
    by_method = {str(record.params["method.name"]): record for record in controls}
    noise = math.sqrt(2 * best.val * (1 - best.val) / n_val)
    for method, what in CONTROLS.items():
        control = by_method.get(method)
        if control is not None and control.val is not None:
            yield (
                f"{words.gained(best.val - control.val)} of validation accuracy against the "
                f"same student {what} ({100 * best.val:.2f} % against {100 * control.val:.2f} %)"
            )
    for method, control in by_method.items():
        if control.number == shipped:
            yield (
                f"Shipped is the student of no. {best.number} {CONTROLS[method]}, trial {shipped}: "
                "what the search found for it came out lower"
            )
    yield (
        f"One training each, judged on {n_val} validation images: the standard error of such a "
        f"difference is about {100 * noise:.2f} points; --refit 3 tells more"
    )
    plain = by_method.get("none")
    yield from of_teacher(study, None if plain is None else plain.val)


def of_teacher(study: OpenStudy, plain: float | None) -> Iterator[str]:
    """Yield what is wrong with the teacher. plain: what the best student reaches without one."""
    teacher = TeacherEntry(**cast("dict[str, Any]", study.facts()["teacher"]))
    if teacher.test is not None and teacher.val - teacher.test > _KNOWN_BY_HEART:
        yield (
            f"The teacher scores {100 * teacher.val:.2f} % on validation and "
            f"{100 * teacher.test:.2f} % on test: it has probably been trained on these validation "
            "images, so trust the students' test accuracy more than their validation accuracy"
        )
    if plain is not None and teacher.val <= plain:
        yield (
            f"The teacher ({100 * teacher.val:.2f} %) is no better than this student without one "
            f"({100 * plain:.2f} %): a better teacher is the first thing to look for"
        )
