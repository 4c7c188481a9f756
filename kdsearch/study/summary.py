"""What a study found, as `front.json` holds it: a stable schema, derived from the records.

Metrics are fractions in [0, 1]; FLOPs count one multiply-add once; latency is in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from kdsearch.data.base import CLASSIFICATION
from kdsearch.hpo.statistics import Gain, Spread
from kdsearch.space import Params
from kdsearch.spec import Budget, Cost
from kdsearch.tasks.base import DEFAULT_METRIC, Details, Metric

SCHEMA = 2
# Complete trials that an importance takes; of eight, noise alone ranked one knob at 0.99.
FEWEST_TRIALS = 30
LATENCY = ("latency_ms", "latency_low_ms", "latency_high_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """The device and runtime that latency was measured on."""

    device: str = "cpu"
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        """Return them in one line."""
        plural = "" if self.threads == 1 else "s"
        return f"{self.device}, {self.runtime}, {self.threads} thread{plural}, batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherEntry:
    """The teacher's own metric and cost; of several, their common metric and the sums.

    knows_all: whether it answers for all classes of the data, so that it could take a student's
    place.
    """

    name: str
    val: float
    test: float | None
    flops: int | None
    params: int
    latency_ms: float | None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    knows_all: bool = True

    def is_within(self, budget: Budget) -> bool | None:
        """Return whether the teacher keeps a budget; None where it sets no limit or a cost lacks.

        None too for a teacher that does not know all classes: it cannot replace a student.

        The rule is that of students: the upper end of the latency counts.
        """
        if not self.knows_all:
            return None
        costs = {name: getattr(self, name) for name in ("flops", "params", *LATENCY)}
        excess = budget.violations(Cost(**costs))
        if any(value > 0 for value in excess.values()):
            return False
        limits = {name for name, limit in asdict(budget).items() if limit is not None}
        return True if limits and excess.keys() == limits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One trial on the front, or one control."""

    trial: int
    val: float
    test: float | None
    flops: float | None
    params: float | None
    latency_ms: float | None
    latency_spread_ms: float | None
    config: Params
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None


def is_at_chance(metric: Metric, val: float, chance: float | None, images: int | None) -> bool:
    """Return whether a value on so many images is at most two standard errors above chance."""
    if chance is None or not images:
        return False
    return val <= chance + 2 * metric.standard_error(chance, images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """One recipe trained under several seeds, in the order of `trials`; test: once it was read.

    seeds: the `train.repeat` of each.
    """

    method: str
    trials: tuple[int, ...]
    seeds: tuple[int, ...]
    val: Spread
    test: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEntry:
    """A candidate's student taught otherwise under the same seeds; what the candidate gained."""

    trained: Trainings
    gain: Gain
    test_gain: Gain | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEntry:
    """A trial of the front trained again, and its student taught otherwise.

    shipped: which of all these trainings is in best/, if one is. roles: `best`, `knee`, as
    the search found them.
    """

    trial: int
    roles: tuple[str, ...]
    shipped: int | None
    trained: Trainings
    controls: tuple[ControlEntry, ...]

    def recipes(self) -> tuple[Trainings, ...]:
        """Return the trainings of its own recipe, then those of its controls."""
        return (self.trained, *(control.trained for control in self.controls))

    def shipped_recipe(self) -> Trainings | None:
        """Return the recipe of which a training is in best/, None where none is."""
        return next((each for each in self.recipes() if self.shipped in each.trials), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainEntry:
    """What so many candidates gained on average over their controls by one method."""

    over: str
    candidates: int
    gain: Gain
    test_gain: Gain | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether the best recipe is better than a control: `yes`, `no`, `not measurable`, `not known`.

    over: the control's method, `none` (did distillation help?) or `kd` (did the search help over
    plain KD?). why: the reason where it is not known. split: where the gain was measured. low,
    high: 95 % interval of the gain, noise of the seeds included. epochs: after which the gain was
    measured, None where what ships had no more.
    """

    over: str
    answer: str
    why: str = ""
    split: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A part of a network: its name there, the shape of its output without the batch, its cost."""

    name: str
    shape: tuple[int, ...]
    params: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedFile:
    """The file of best/, as its metrics.json states it.

    val: validation metric by its own runtime. contention: wall over CPU time while its latency was
    measured, None where unknown. one_round: that latency is of one round by the clock. layers: of
    the network, in order. ends: parameters at an end of their range that family or method ends too.
    """

    bytes: int
    val: float
    contention: float | None
    one_round: bool
    layers: tuple[Layer, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a common network costs on the data and the target of the study; it was not trained."""

    name: str
    flops: int | None
    params: int | None
    latency_ms: float | None
    latency_spread_ms: float | None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Number of images of each split, None where it is not known."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochsSpent:
    """Epochs of all trainings: in first looks, in controls, in what was trained beyond that.

    shipped: those that the student in best/ was trained for, in any of the three.
    """

    looks: int = 0
    controls: int = 0
    further: int = 0
    shipped: int = 0

    @property
    def total(self) -> int:
        """Return the sum of the trainings."""
        return self.looks + self.controls + self.further


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many trials ended in which state; `reused` are complete ones that cost no training.

    rejected_early: candidates rejected by FLOPs or parameters when they were sampled; they count as
    no trials and are in no other count.
    """

    complete: int = 0
    pruned: int = 0
    rejected: int = 0
    failed: int = 0
    reused: int = 0
    rejected_early: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall time of the parts; `refit` is what was trained after the search, controls included.

    outputs: what of search and refit went into asking the teacher. finish: what followed the
    search without refit: the test split, the exported file, the baselines. wall: of all
    runs together, whatever ran side by side or failed.
    """

    teacher: float = 0.0
    search: float = 0.0
    refit: float = 0.0
    outputs: float = 0.0
    wall: float = 0.0
    finish: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The content of `front.json`. `best` is the trial of the front whose student is to be shipped.

    shipped: the training whose weights are in best/, None before they are: `best` itself, or one of
    its refits or controls. baselines: common networks on the study's data.
    stopping: the rule that stopped trials early, `off` without one. min_accuracy: what is shipped
    has at least that. chance: the metric of the best constant answer on validation, if it is known.
    details: of the teacher and of what ships, as `teacher test` and `shipped validation`.
    candidates: trials that were retrained, the best mean first; then `controls`
    is empty, and gains holds what all of them gained. answers: did distillation, did the search
    help? file: what ships, None before it does. advice: what to do next, with
    commands in which `<study>` stands for the folder.
    """

    study: str
    budget: Budget
    target: TargetInfo
    teacher: TeacherEntry
    counts: Counts
    front: tuple[Entry, ...] = ()
    controls: tuple[Entry, ...] = ()
    best: int | None = None
    seconds: Seconds = field(default_factory=Seconds)
    task: str = CLASSIFICATION
    metric: Metric = DEFAULT_METRIC
    candidates: tuple[CandidateEntry, ...] = ()
    gains: tuple[GainEntry, ...] = ()
    answers: tuple[Answer, ...] = ()
    advice: tuple[str, ...] = ()
    file: ShippedFile | None = None
    baselines: tuple[Baseline, ...] = ()
    images: Images = field(default_factory=Images)
    epochs: EpochsSpent = field(default_factory=EpochsSpent)
    stopping: str = "off"
    min_accuracy: float | None = None
    shipped: Entry | None = None
    details: Mapping[str, Details] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    chance: float | None = None
    schema: int = SCHEMA

    def is_at_chance(self, val: float) -> bool:
        """Return whether a validation metric is no better than chance, beyond its noise."""
        return is_at_chance(self.metric, val, self.chance, self.images.val)

    def best_entry(self) -> Entry | None:
        """Return the front's entry that is the one to ship."""
        return next((entry for entry in self.front if entry.trial == self.best), None)

    def needs_no_student(self) -> bool:
        """Return whether the teacher itself is within the budget and reaches `min_accuracy`."""
        is_enough = self.min_accuracy is None or self.teacher.val >= self.min_accuracy
        return is_enough and self.teacher.is_within(self.budget) is True

    def teacher_place(self) -> int | None:
        """Return the place of the teacher on the front, None where it is not on it.

        It is where it needs no student, and none is as good at its cost.
        """
        axis = self.budget.axis()
        cost = getattr(self.teacher, axis)
        if not self.needs_no_student():
            return None
        cheaper = [entry for entry in self.front if getattr(entry, axis) <= cost]
        is_best = all(entry.val < self.teacher.val for entry in cheaper)
        return len(cheaper) if is_best else None

    def to_ship(self) -> int | None:
        """Return the number of the training to ship."""
        return self.best if self.shipped is None else self.shipped.trial

    def best_recipe(self) -> Trainings | None:
        """Return the recipe that is shipped under several seeds, None where it was trained once."""
        found = (each.shipped_recipe() for each in self.candidates if each.trial == self.best)
        return next(found, None)

    def stated_best(self) -> Entry | None:
        """Return the training to ship with the mean values of its recipe."""
        best, recipe = self.shipped or self.best_entry(), self.best_recipe()
        if best is None or recipe is None:
            return best
        test = recipe.test
        return replace(best, val=recipe.val.mean, test=None if test is None else test.mean)

    def to_json(self) -> Mapping[str, object]:
        """Return the mapping that `front.json` holds; the metric is its key."""
        derived = {"teacher_within_budget": self.teacher.is_within(self.budget)}
        return {**asdict(self), "metric": self.metric.key, **derived}
