"""Check a study before it runs: usable methods, calibration of the teacher, size of the gap.

A method is usable if one training step on one batch works, with the losses and the loop of a trial,
on each family with every knob at its lowest. The test split is never read.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdsearch import methods, tasks
from kdsearch.data.base import ImageData, ImageSet
from kdsearch.data.feed import Feed
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import KDSearchError, SpecError, explained
from kdsearch.models.model import Model, batches
from kdsearch.space import (
    Choice,
    Constant,
    Dim,
    Float,
    Int,
    Params,
    SearchSpace,
    Value,
    options_in,
)
from kdsearch.spec import Candidate, StudentSpec
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import StudyConfig
from kdsearch.teachers.spec import teacher_specs
from kdsearch.training.distiller.coverage import refusal
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import train
from kdsearch.trials.context import (
    Prepared,
    load_data,
    pick_device,
    prepare,
    teacher_at_chance_on,
)
from kdsearch.trials.trial import TrialContext, build_distiller
from kdsearch.workflows.calibration import measure_calibration
from kdsearch.workflows.check_report import (
    CheckReport,
    MethodCheck,
    StudentCheck,
    TeacherCheck,
    on_students,
    on_teachers,
)
from kdsearch.workflows.resolve import CHOOSING, with_default_space

logger = logging.getLogger(__name__)
MAX_IMAGES = 5000  # of a split, evenly spaced: a standard error of at most 0.7 points
_ENDS = ("smallest", "largest")

OnTry = Callable[[int, int, str], None]


def check(
    config: StudyConfig,
    callback: Callback,
    *,
    out: Path,
    space: str | None = None,
    params: Params | None = None,
    device: str = "auto",
    on_try: OnTry = lambda *_: None,
) -> CheckReport:
    """Try the methods on the students, and measure the calibration of the teachers.

    space: a name or a file, whose methods are tried in the middle of their ranges; None: every
    method at its defaults, on the students of the data's default space. params: user settings such
    as `student.family` or `train.batch_size`, which override the space.
    Raises KDSearchError for settings that cannot work, and when no student can be built.
    """
    torch_device = pick_device(device)
    teacher_specs(config)
    data, config = load_data(config, out, callback.on_message)
    has_own_methods = space is not None
    if space is None:
        callback.on_message(CHOOSING)
        space, _, lines = with_default_space(config, data)
        for line in lines:
            callback.on_message(line)
    plan = _Plan(find_space(space), params or {}, has_own_methods=has_own_methods, task=data.task)
    callback.on_message("Building the students")
    built = [_build(plan, family, size, data) for family, size in plan.sizes()]
    if not any(model for _, model in built):
        raise SpecError("\n".join(student.reason for student, _ in built))
    prepared = prepare(config, data, out=out, device=torch_device, callback=callback)
    is_one_class = bool(data.classes) and data.val.labels.ndim == 1
    if is_one_class:
        callback.on_message("Measuring the calibration of the teacher")
    teachers = tuple(_teachers(prepared.context)) if is_one_class else ()
    students = tuple(_compared(student, prepared) for student, _ in built)
    models = [model for student, model in built if model and student.size != "largest"]
    tries = len(models) * len(plan.methods)
    callback.on_message(f"Trying methods on students: {tries} pairs, one step each")
    methods = _try_all(plan, models, prepared.context, on_try)
    specs = zip(teacher_specs(config), prepared.context.teachers, strict=True)
    known = [spec.is_trained_here for spec, teacher in specs if teacher.classes != ()]
    chance = prepared.context.task.chance(data.val.labels)
    return CheckReport(
        data=data.name,
        inventory=data.inventory,
        classes=data.num_classes,
        metric=prepared.context.task.metric,
        space=space,
        batch_size=min(plan.batch_size, len(data.labelled)),
        teacher_flops=prepared.teacher.flops,
        teacher_params=prepared.teacher.params,
        teachers=teachers,
        students=students,
        methods=methods,
        notes=(
            *filter(None, [teacher_at_chance_on(data, prepared.teacher.val, prepared.details)]),
            *on_teachers(teachers, known, chance),
            *on_students(students),
        ),
    )


class _Plan:
    """The students and methods to try: those of a space, or the user's own."""

    def __init__(
        self, space: SearchSpace, params: Params, *, has_own_methods: bool, task: str
    ) -> None:
        self._space = space
        self._params = params
        self._has_own_methods = has_own_methods
        named = params.get("student.family")
        families = options_in(space.dims.get("student.family")) if named is None else (named,)
        self.families = [*map(str, families)]
        self.methods: Sequence[str] = methods.names(task)
        if has_own_methods:
            self.methods = [*map(str, options_in(space.dims.get("method.name")))] or ["kd"]

    @property
    def batch_size(self) -> int:
        """Return the number of images in a step."""
        return self.candidate(self.families[0]).train.batch_size

    def sizes(self) -> Iterator[tuple[str, str]]:
        """Yield (family, size), each student once."""
        for family in self.families:
            lowest, highest = (self.candidate(family, size=size).student for size in _ENDS)
            yield from ((family, size) for size in (("only",) if lowest == highest else _ENDS))

    def candidate(
        self, family: str, method: str | None = None, *, size: str = "smallest"
    ) -> Candidate:
        """Return a student at one end of its ranges, with a method in the middle of its ranges.

        Raises SpecError for settings that contradict the student or the recipe.
        """
        method = method or self.methods[0]

        def pick(name: str, dim: Float | Int | Choice) -> Value:
            chosen = {"student.family": family, "method.name": method}.get(name)
            if chosen is not None and chosen in dim:
                return chosen
            return _middle(dim) if name.startswith("method.") else _end(dim, size)

        sections = ["train."]
        sections += [] if "student.family" in self._params else ["student."]
        sections += ["method."] if self._has_own_methods else []
        walked = self._space.walk(pick)
        kept = {name: value for name, value in walked.items() if name.startswith(tuple(sections))}
        return Candidate.from_params({**kept, "method.name": method, **self._params})


def _end(dim: Dim, size: str) -> Value:
    """Return the lowest value of a dimension, or the highest for the largest student."""
    is_high = size == "largest"
    if isinstance(dim, Constant):
        return dim.value
    if isinstance(dim, Float | Int):
        return dim.high if is_high else dim.low
    numbers = [option for option in dim.options if not isinstance(option, str)]
    if len(numbers) == len(dim.options):
        return max(numbers) if is_high else min(numbers)
    return dim.options[-1 if is_high else 0]


def _middle(dim: Float | Int | Choice) -> Value:
    if isinstance(dim, Choice):
        return dim.options[len(dim.options) // 2]
    middle = math.sqrt(dim.low * dim.high) if dim.log else (dim.low + dim.high) / 2
    if isinstance(dim, Float):
        return middle
    return dim.low + (round(middle) - dim.low) // dim.step * dim.step


def _build(
    plan: _Plan, family: str, size: str, data: ImageData
) -> tuple[StudentCheck, Model | None]:
    """Build and price one student."""
    spec: StudentSpec = plan.candidate(family, size=size).student
    found = StudentCheck(
        family=family,
        size=size,
        resolution=max(tasks.of(data).input_size(data.size, spec.resolution)),
        knobs=dict(spec.knobs),
    )
    try:
        model = build_student(spec, data)
        flops, params = count(model.network, input_shape=model.preprocess.input_shape)
    except KDSearchError as error:
        return replace(found, reason=str(error)), None
    return replace(found, flops=flops, params=params), model


def _compared(student: StudentCheck, prepared: Prepared) -> StudentCheck:
    """Add the ratios of the teachers' costs to the student's."""
    if student.flops is None or student.params is None:
        return student
    theirs = prepared.teacher
    return replace(
        student,
        flops_ratio=None if theirs.flops is None else theirs.flops / max(student.flops, 1),
        params_ratio=theirs.params / max(student.params, 1),
    )


def _teachers(context: TrialContext) -> Iterator[TeacherCheck]:
    """Yield the calibration of each teacher and of their blend, on validation and training.

    Of a teacher that knows some classes, on the images of these; none of one that knows none.
    """
    splits = [_spaced(images, MAX_IMAGES) for images in (context.data.val, context.data.labelled)]
    answers = [_answers(context.teachers, images, context.device) for images in splits]
    known = [(teacher.name, teacher.classes) for teacher in context.teachers]
    if len(known) > 1 and all(classes is None for _, classes in known):
        shares = torch.full((1, len(known)), 1 / len(known))
        for logits in answers:
            logits.append(context.task.blend(shares, torch.stack(logits, dim=1)))
        known.append(("blend of all", None))
    labels = [images.labels for images in splits]
    for (name, classes), *both in zip(known, *answers, strict=True):
        if classes != ():
            val, train_set = (
                measure_calibration(*of, classes) for of in zip(both, labels, strict=True)
            )
            yield TeacherCheck(name=name, validation=val, train=train_set)


def _spaced(images: ImageSet, limit: int) -> ImageSet:
    """Return at most `limit` images, evenly spaced: a split may be sorted by class."""
    limit = min(limit, len(images))
    return images.take(torch.arange(limit) * len(images) // limit)


@torch.no_grad()
def _answers(teachers: Sequence[Model], images: ImageSet, device: torch.device) -> list[Tensor]:
    """Return the logits [N, K] of each teacher, on the CPU."""
    parts = ([t(batch).float().cpu() for t in teachers] for batch, _ in batches(images, device))
    return [torch.cat(of_one) for of_one in zip(*parts, strict=True)]


def _try_all(
    plan: _Plan, models: Sequence[Model], context: TrialContext, on_try: OnTry
) -> tuple[MethodCheck, ...]:
    """Take one step with every method on every student; teachers run once on the batch."""
    few = _spaced(context.data.labelled, plan.batch_size)
    data = replace(context.data, train=few, val=_spaced(few, 2))
    feed = Feed(few, context.device)
    outputs = tuple(
        TeacherOutputs(teacher, feed, view_seed=context.seed) for teacher in context.teachers
    )
    small = replace(context, data=data, outputs=outputs, train=feed, val=None)
    tries = [(method, model) for method in plan.methods for model in models]
    found = []
    for number, (method, model) in enumerate(tries):
        on_try(number, len(tries), f"{method} on {model.name}")
        found.append(_try(plan.candidate(model.name, method), model, small))
    return tuple(found)


def _try(candidate: Candidate, model: Model, context: TrialContext) -> MethodCheck:
    """Take one step as a trial does; the error that fails a trial is the reason."""
    method, family = candidate.distill.method, candidate.student.family
    found = MethodCheck(method=method, family=family, usable=False)
    if reason := refusal(method, context.teachers):
        return replace(found, reason=reason)
    torch.manual_seed(context.seed)
    student = copy.deepcopy(model)
    try:
        distiller = build_distiller(candidate, student, context)
        session = Session(
            data=context.data,
            spec=replace(candidate.train, epochs=1),
            seed=context.seed,
            view_seed=context.seed,
            device=context.device,
            teachers=context.outputs,
        )
        epoch = train(student, distiller, session)[-1]
    except KDSearchError as error:
        return replace(found, reason=str(error))
    except Exception as error:  # as in a trial: a method must not end the check
        logger.info("%s failed", candidate, exc_info=True)
        return replace(found, reason=explained(error))
    return replace(found, usable=True, loss=epoch.losses["loss"])
