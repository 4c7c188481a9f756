"""Value types of one trial: student, distillation, training, cost, budget, record.

Convention: FLOPs count one multiply-add once, at batch size 1; latency is in milliseconds on the
target that the study names; metrics are fractions in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from kdsearch.digests import changed, digest_of
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.schedules import parse_schedule
from kdsearch.space import Params, Value
from kdsearch.train_spec import TrainSpec as TrainSpec
from kdsearch.train_spec import require_one_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAPPINGS = ("last", "even", "stride")
ALL_PAIRS = "all"
LOGITS = "logits"  # the logits in place of stages, where they have positions
PAIRWISE_MAPPINGS = (*MAPPINGS, ALL_PAIRS)
BALANCES = ("fixed", "uncertainty", "gradnorm")
ORDERS = ("together", "progressive")
BLENDS = ("equal", "confidence", "learned")
UNTIL = ("teacher", "end")
INITS = ("scratch", "pretrained", "teacher")
UNITS = {"latency_ms": (1.0, "ms"), "flops": (1e-6, "MFLOPs"), "params": (1e-6, "M parameters")}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """A student architecture: a family (or `timm:NAME`, `torchvision:NAME`) and its knobs.

    resolution: longer side of the input in pixels; 0 means the data's own.
    init: first weights: `scratch` (random), `pretrained` or `teacher`; no cost depends on it.
    """

    family: str
    resolution: int = 0
    init: str = "scratch"
    knobs: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_one_of("student.init", self.init, INITS)
        if self.resolution < 0:
            raise SpecError(f"student.resolution: {self.resolution} is not a number of pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSpec:
    """Distillation settings: loss = (1 - alpha) * task + alpha * sum of weight * term.

    method: a method's name, or several joined by `+`.
    alpha: in [0, 1]; None: the default of the (first) method.
    weight: >= 0; None: the default of the method. Several methods take theirs from knobs.
    mapping: `last`, `even`, `stride`, `all` (learned weights), `logits`, or pairs of stages
        student:teacher such as `0:1,2:3`.
    *_schedule: see `parse_schedule`; a temperature moves between its knob's value and 1.
    balance: `fixed`, `uncertainty` (Kendall et al., CVPR 2018, 1705.07115) or `gradnorm` (after
        Chen et al., ICML 2018, 1711.02257).
    order: `together`, or `progressive`: shallow stages, deep ones, relations, then responses.
    teachers: weights of several: `equal`, `confidence`, `learned`, or fixed such as `0.7,0.3`.
    until: `teacher`: when the student has reached its teacher's validation metric, the labels alone
        teach it (after Cho and Hariharan, ICCV 2019, 1910.01348, who end it early); or `end`.
    knobs: of the method, as `temperature`; of several methods, under their names, as `at.weight`.
    """

    method: str = "kd"
    alpha: float | None = None
    weight: float | None = None
    mapping: str | None = None
    alpha_schedule: str = "constant"
    weight_schedule: str = "constant"
    temperature_schedule: str = "constant"
    balance: str = "fixed"
    order: str = "together"
    teachers: str = "equal"
    until: str = "teacher"
    knobs: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise SpecError(f"method.alpha: {self.alpha} is not in [0, 1]")
        if self.weight is not None and not 0 <= self.weight < inf:
            raise SpecError(f"method.weight: {self.weight} is not a number >= 0")
        for name in ("alpha_schedule", "weight_schedule", "temperature_schedule"):
            parse_schedule(f"method.{name}", getattr(self, name))
        for name, known in (("balance", BALANCES), ("order", ORDERS), ("until", UNTIL)):
            require_one_of(f"method.{name}", getattr(self, name), known)
        self.teacher_shares()

    def teacher_shares(self) -> tuple[float, ...] | None:
        """Return fixed weights of the teachers, which sum to 1, or None if they are not fixed."""
        if self.teachers in BLENDS:
            return None
        try:
            shares = [float(part) for part in self.teachers.split(",")]
        except ValueError:
            shares = []
        if not shares or not all(0 <= share < inf for share in shares) or not sum(shares):
            hint = did_you_mean(self.teachers, BLENDS)
            raise SpecError(
                f"method.teachers: {self.teachers!r}{hint} is not one of {', '.join(BLENDS)}, nor "
                "one share for each teacher, as '0.7,0.3'"
            )
        return tuple(share / sum(shares) for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Everything that decides a trial except its data, its teacher and its seed.

    Example: Candidate.from_params({"student.family": "resnet", "method.name": "kd"})
    """

    student: StudentSpec
    distill: DistillSpec = field(default_factory=DistillSpec)
    train: TrainSpec = field(default_factory=TrainSpec)

    @classmethod
    def from_params(cls, params: Params) -> Candidate:
        """Read sampled parameters: `student.*`, `method.*`, `train.*`. Raises SpecError.

        Parameters of an option have its name: `student.resnet.width`, `method.kd.temperature`,
        `train.adamw.lr`.
        """
        if "student.family" not in params:
            raise SpecError("the search space has no 'student.family'")
        rest = dict(params)
        family = str(rest.pop("student.family"))
        common = {"resolution": 0, "init": "scratch"}
        student = {name: rest.pop(f"student.{name}", value) for name, value in common.items()}
        method = str(rest.pop("method.name", "kd"))
        own = _take_under(rest, f"method.{method}.")
        settings = [key for key in _fields(DistillSpec) if key not in ("method", "knobs")]
        distill = {key: own.pop(key) for key in settings if key in own}
        knobs = _take_under(rest, f"student.{family}.")
        knobs |= {f"head.{name}": v for name, v in _take_under(rest, "student.head.").items()}
        student |= {name: knobs.pop(name) for name in common if name in knobs}
        train = _take_under(rest, "train.")
        train |= _take_under(train, f"{train.get('optimizer', '')}.")
        _refuse("train", train, _fields(TrainSpec))
        known = ("student.family", "student.resolution", "student.init", "method.name")
        _refuse("", rest, known)
        return cls(
            student=make(StudentSpec, family=family, knobs=knobs, **student),
            distill=make(DistillSpec, method=method, knobs=own, **distill),
            train=make(TrainSpec, **train),
        )

    def digest(self) -> str:
        """Return a short name, equal for equal candidates; trials are seeded by it.

        Settings at their defaults are left out, so that a new setting renames no old candidate.
        """
        knobs = dict(self.distill.knobs)  # the temperature is lifted out, as it once was a field
        lifted = {key: knobs.pop(key) for key in ("temperature",) if key in knobs}
        distill = changed(replace(self.distill, knobs=knobs)) | lifted
        return digest_of([changed(self.student), distill, changed(self.train)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one student: multiply-adds, parameters, milliseconds.

    None is unknown, such as a latency that was not measured. latency_low_ms, latency_high_ms: the
    latency of a new process lies between them in 95 % of cases.

    Example: Cost(flops=2e6, params=8e4).flops
    """

    flops: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    latency_spread_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper limits in milliseconds, multiply-adds and parameters; None is no limit.

    Example: Budget(latency_ms=10, params=5e6)
    """

    latency_ms: float | None = None
    flops: float | None = None
    params: float | None = None

    def __post_init__(self) -> None:
        for name in _fields(Budget):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < inf:
                raise SpecError(f"budget.{name}: {limit} is not a number above 0")

    def violations(self, cost: Cost) -> dict[str, float]:
        """Return (cost - limit) / limit for every limit with a known cost; above 0 it is violated.

        A latency counts with the upper end of its interval.
        """
        known = ((name, getattr(self, name), _at_most(name, cost)) for name in _fields(Budget))
        return {
            name: (value - limit) / limit
            for name, limit, value in known
            if limit is not None and value is not None
        }

    def explain(self, cost: Cost) -> str:
        """Return the violated limits as text, such as '29.7 MFLOPs over 20'."""
        return "; ".join(
            f"{getattr(cost, name) * scale:.4g} {unit}{_up_to(name, cost)} over "
            f"{getattr(self, name) * scale:.4g}"
            for name, (scale, unit) in UNITS.items()
            if self.violations(cost).get(name, 0) > 0
        )

    def axis(self) -> str:
        """Return the cost axis of the front: the first limited cost, else `flops`."""
        limited = [name for name in _fields(Budget) if getattr(self, name) is not None]
        return limited[0] if limited else "flops"


def _at_most(name: str, cost: Cost) -> float | None:
    value: float | None = getattr(cost, name)
    return cost.latency_high_ms or value if name == "latency_ms" else value


def _up_to(name: str, cost: Cost) -> str:
    if name != "latency_ms" or cost.latency_high_ms is None:
        return ""
    return f", up to {cost.latency_high_ms:.4g} with its spread,"


_SECTIONS: Mapping[type, str] = {StudentSpec: "student", DistillSpec: "method", TrainSpec: "train"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """The record of one trial. `curve` holds the validation metric after each of its `epochs`.

    state: `complete`, `rejected` (over budget, never trained), `pruned` (stopped early),
        `failed`, `interrupted` (its driver died; it is sampled again) or `running`.
    reason: of any state but `complete`. teacher_seconds: the teacher's part of `seconds`.
    mode: how its steps ran, such as `bf16 channels_last graph`, or `fp32 eager: REASON`.
    control_of: the trial whose student this one trains with another method, for comparison.
    refit_of: the trial that this one, or its control, trains again under another `repeat`.
    reused_from: the equal earlier trial. draw: place in the order of proposals, None for a control.
    inherited: share of the parameters that started from another network's weights.
    rejected_early: by FLOPs or parameters when it was sampled; it counts as no trial.
    taught_epochs: those before the student reached its teacher, where that ended its distillation.

    Example: TrialRecord(number=3, state="complete", params={"student.family": "resnet"}).kind
    """

    number: int
    state: str
    params: Params
    digest: str = ""
    cost: Cost | None = None
    val: float | None = None
    curve: tuple[float, ...] = ()
    epochs: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    mode: str = ""
    reason: str = ""
    violations: Mapping[str, float] = field(default_factory=dict)
    control_of: int | None = None
    refit_of: int | None = None
    reused_from: int | None = None
    draw: int | None = None
    rejected_early: bool = False
    inherited: float = 0.0
    taught_epochs: int | None = None

    @property
    def kind(self) -> str:
        """Return the kind of a trial outside the search; see `kind_of`."""
        return kind_of(self.control_of, self.refit_of)

    def outside(self) -> str:
        """Return the kind and the trial that it belongs to, as 'refit of trial 7'."""
        of = self.control_of if self.refit_of is None else self.refit_of
        return f"{self.kind} of trial {of}" if self.kind else ""


def kind_of(control_of: int | None, refit_of: int | None) -> str:
    """Return `control`, `refit` or `refitted control`; '' for a trial of the search."""
    if refit_of is None:
        return "" if control_of is None else "control"
    return "refit" if control_of is None else "refitted control"


def _fields(cls: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


@cache
def _readers() -> Mapping[type, TypeAdapter[Any]]:
    """Return the readers of specs; pydantic takes 0.1 s to import, too long for `--help`."""
    from pydantic import TypeAdapter

    return {spec: TypeAdapter(spec) for spec in _SECTIONS}


def make(cls: type[T], **values: object) -> T:
    """Build one of the three specs from a file's values. Raises SpecError for a wrong type."""
    from pydantic import ValidationError

    try:
        made: T = _readers()[cls].validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        section = _SECTIONS[cls]
        mistakes = (
            f"{section}.{'.'.join(map(str, item['loc']))}: {item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
        raise SpecError("; ".join(mistakes)) from None
    return made


def _take_under(rest: dict[str, Value], prefix: str) -> dict[str, Value]:
    names = [name for name in rest if name.startswith(prefix)]
    return {name.removeprefix(prefix): rest.pop(name) for name in names}


def _refuse(prefix: str, rest: Mapping[str, Value], known: tuple[str, ...]) -> None:
    unknown = [name for name in rest if name not in known]
    if unknown:
        hints = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        where = f"{prefix}: " if prefix else ""
        raise SpecError(f"{where}unknown {hints}; known: {', '.join(known)}")
