"""Resolve the configuration, data, folder and options of a run before anything is trained.

A resumed study keeps its own value for each field and option that the user leaves out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy.targets.base import Note
from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.models.model import Model
from kdsearch.report import words
from kdsearch.report.findings import CONTROLS
from kdsearch.space import Choice, Constant
from kdsearch.study.budget_shares import LIMITS, Share
from kdsearch.study.builtin_spaces import default_spaces, find_space, is_builtin
from kdsearch.study.config import (
    StudyConfig,
    config_of,
    free_name,
    read_config,
    study_path,
)
from kdsearch.study.config_changes import refuse_changes
from kdsearch.study.facts import SEEDS, Refit
from kdsearch.study.open import reach, refuse_driven
from kdsearch.study.options import RunOptions
from kdsearch.study.plan import with_plan
from kdsearch.study.sampler_check import refuse_sampler
from kdsearch.study.storage_url import kept_url
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import TeacherEntry
from kdsearch.study.warm_start import recipes_of
from kdsearch.teachers.spec import teacher_specs
from kdsearch.training.distiller.coverage import check_teachers, refusal
from kdsearch.trials.context import load_data
from kdsearch.trials.start import families_of, with_weights, without_missing
from kdsearch.workflows.suppression import check_suppression

# Of a run that names no images, teacher, space or budget: a limit that the teacher breaks, and a
# spend that ends within a minute.
FIRST_RUN = {"budget_ms": Share(0.5), "teacher_epochs": 8, "epochs": 16}
FIRST_SPEND = 56
CHOOSING = "Choosing the search space"  # it imports torchvision and timm, and may wait for a server
_WORDS = {0.5: "half of", 0.25: "a quarter of", 0.1: "a tenth of", 1.0: "all of"}


def resolve(
    given: Mapping[str, object],
    out: Path,
    name: str | None,
    options: RunOptions,
    note: Note = lambda _: None,
    on_path: Callable[[Path], None] = lambda _: None,
) -> tuple[StudyConfig, RunOptions, ImageData, Path]:
    """Return the full configuration, the options, the images and the study's path.

    Nothing is trained before. note: gets the inventory of the images. on_path: gets the path of a
    study that may run, before the images are read. A new study of no given images, teacher, space
    and budget gets FIRST_RUN, and FIRST_SPEND where no trials, epochs or spend are given.
    Raises KDSearchError for a configuration that cannot run, or that is not the study's.
    """
    old = None if name is None else read_config(study_path(out, name))
    given = with_space(given)
    if old is None and given.keys().isdisjoint(("data", "space", "teacher", *LIMITS)):
        if options.trials is None and options.spend is None and "epochs" not in given:
            options = replace(options, spend=FIRST_SPEND)
        given = {**FIRST_RUN, **given}
    config = config_of(given, old)
    if old is not None:
        assert name is not None
        refuse_driven(study_path(out, name), old, options.storage)
    teacher_specs(config)
    if name is not None:
        on_path(study_path(out, name))
    data, config = load_data(config, out, note)
    if old is None:
        if not config.space:
            note(CHOOSING)
        config, lines = _with_space(config, data)
        for line in (*lines, *_without_budget(config)):
            note(line)
    check_suppression(config, tasks.of(data))
    space = config.search_space()
    starting = families_of(space, "pretrained")
    config = with_weights(config, starting, sole=starting[0] if len(starting) == 1 else None)
    if old is None:
        config = with_plan(config, len(data.train), trials=options.trials, spend=options.spend)
    refuse_sampler(config)
    name = free_name(out, data.name) if name is None else name
    path = study_path(out, name)
    config = with_storage(config, options.storage, name, is_new=old is None)
    if old is not None:
        refuse_changes(name, old, config)
    else:
        recipes_of(config, out)
    reach(path, config, options.storage, tasks.of(data).metric, is_new=old is None)
    return config, options, data, path


def _with_space(config: StudyConfig, data: ImageData) -> tuple[StudyConfig, list[str]]:
    """Return a new study's configuration with its space, and lines on missing weights.

    A space of the user's own stays as it is. Raises SpecError where all weights are missing.
    """
    if not config.space:
        return with_default_space(config, data)[1:]
    return without_missing(config) if is_builtin(config.space) else (config, [])


def _without_budget(config: StudyConfig) -> list[str]:
    """Return that a study has no budget, and the flags that set one; nothing where it has one."""
    if config.budget_shares or any(limit is not None for limit in asdict(config.budget).values()):
        return []
    return [
        "No budget is set, so the most accurate student ships whatever it costs. Set one by "
        "--budget-ms, --budget-mflops or --budget-mparams; 0.5x is half of the teacher's cost"
    ]


def with_default_space(config: StudyConfig, data: ImageData) -> tuple[str, StudyConfig, list[str]]:
    """Return the name of the best default space, and a configuration with it, and lines.

    It is the first that some weights can be had of; the last needs none. The lines are on those
    that are missing.
    """
    *better, last = default_spaces(config.data, max(data.size), len(data.labelled), data.task)
    missing: list[str] = []
    for name in better:
        try:
            found, lines = without_missing(replace(config, space=find_space(name).text))
        except SpecError as error:
            lines = [str(error)]
        else:
            if families_of(found.search_space(), "pretrained"):
                return name, found, lines
        left_out = f"The space {name} is left out, as its pretrained weights are missing"
        missing += [f"{left_out}; {last} takes its place", words.sentence(lines[-1])]
    return last, replace(config, space=find_space(last).text), missing


def with_space(given: Mapping[str, object]) -> Mapping[str, object]:
    """Return the user's fields with the text of the space in place of its name or file."""
    if "space" not in given:
        return given
    return {**given, "space": find_space(str(given["space"])).text}


def resolved(config: StudyConfig, teacher: TeacherEntry) -> tuple[StudyConfig, list[str]]:
    """Return the configuration with a number for each share, and a line on each of these.

    Limits have three significant digits. A latency counts with the upper end of its interval, as a
    student's does, or nothing would fit on a busy machine. Raises SpecError where the teacher's
    cost is not known.
    """
    lines = []
    teacher = replace(teacher, latency_ms=teacher.latency_high_ms or teacher.latency_ms)
    for name, (axis, scale, unit) in LIMITS.items():
        if getattr(config, name) is not None or name not in config.budget_shares:
            continue
        share, cost = config.budget_shares[name], getattr(teacher, axis)
        if cost is None:
            raise SpecError(
                f"{config.flag(name)} {Share(share)}: the teacher's own cost is not known, so give "
                f"a number in {unit}"
            )
        limit = float(f"{share * cost * scale:.3g}")
        config = replace(config, **{name: limit})  # type: ignore[arg-type]
        words = _WORDS.get(share, f"{share:g} of" if share < 1 else f"{share:g} times")
        lines.append(f"Budget: {limit:g} {unit}, {words} the teacher's {cost * scale:.3g} {unit}")
    return config, lines


def with_usable_methods(
    config: StudyConfig, teachers: Sequence[Model], task: tasks.Task
) -> tuple[StudyConfig, list[str]]:
    """Return the configuration without the methods that the teachers cannot teach, and a line.

    Of the controls, those that are not for the task are left out too.

    Raises SpecError where no method with a teacher is left.
    """
    dim = config.search_space().dims.get("method.name", Constant(value="kd"))
    values = dim.options if isinstance(dim, Choice) else (getattr(dim, "value", "kd"),)
    options = [str(value) for value in values]
    bad = {name: reason for name in options if (reason := refusal(name, teachers))}
    controls = [
        name
        for name in CONTROLS
        if refusal(name, teachers)
        or (METHODS.get(name).need == "logits" and not task.has_class_rows())
    ]
    left_out = tuple(dict.fromkeys([*config.left_out, *bad, *controls]))
    kept = [name for name in options if name not in bad]
    if bad and not any(METHODS.get(part).reads for name in kept for part in name.split("+")):
        check_teachers(next(iter(bad)), teachers)
    lines = (
        [f"Left out of method.name: {', '.join(bad)}: {next(iter(bad.values()))}"] if bad else []
    )
    return replace(config, left_out=left_out), lines


def with_storage(config: StudyConfig, given: str | None, name: str, *, is_new: bool) -> StudyConfig:
    """Return the configuration with its storage, in which a new study gets a name of its own."""
    url = kept_url(given, config.storage, is_new=is_new)
    if url is None or not is_new:
        return config
    return replace(config, storage=url, storage_study=f"{name}-{uuid.uuid4().hex[:8]}")


def with_earlier(options: RunOptions, study: OpenStudy) -> RunOptions:
    """Return the options with those of the last run where they are None."""
    facts = study.facts
    return replace(
        options,
        trials=facts.trials if options.trials is None else options.trials,
        spend=facts.spend if options.spend is None else options.spend,
        flat_after=facts.flat_after if options.flat_after is None else options.flat_after,
        until=facts.until if options.until is None else options.until,
    )


def refit_in(options: RunOptions) -> Refit | None:
    """Return what is retrained after the search, None for what the last run chose."""
    if options.refit is None:
        return None
    seeds = SEEDS if options.seeds is None else options.seeds
    return Refit(count=options.refit, seeds=seeds, epochs=options.refit_epochs)
