"""The frozen values that travel between rooms: what to build, how to teach it, what it may cost.

Convention: FLOPs count one multiply-add once, at batch size 1; latency is in milliseconds on the
target that the study names; metrics are fractions in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.schedules import parse_schedule
from kdsearch.space import Params, Value

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAPPINGS = ("last", "even", "stride")
ALL_PAIRS = "all"
PAIRWISE_MAPPINGS = (*MAPPINGS, ALL_PAIRS)
BALANCES = ("fixed", "uncertainty", "gradnorm")
ORDERS = ("together", "progressive")
BLENDS = ("equal", "confidence", "learned")
OPTIMIZERS = ("sgd", "adamw", "muon")
POLICIES = ("plain", "trivial", "rand")
MIXES = ("none", "mixup", "cutmix")
PRECISIONS = ("auto", "fp32", "bf16")
UNITS = {"latency_ms": (1.0, "ms"), "flops": (1e-6, "MFLOPs"), "params": (1e-6, "M parameters")}
_TRAIN_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": OPTIMIZERS,
    "policy": POLICIES,
    "mix": MIXES,
    "precision": PRECISIONS,
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """A student architecture: a family (or `timm:NAME`, `torchvision:NAME`) and its knobs.

    resolution: side of the square input in pixels; 0 means the data's own.
    """

    family: str
    resolution: int = 0
    knobs: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resolution < 0:
            raise SpecError(f"student.resolution: {self.resolution} is not a number of pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSpec:
    """How the teacher is heard: loss = (1 - alpha) * task + alpha * sum of weight * term.

    method: a method's name, or several joined by `+`; then `knobs` holds each one's own settings
    under its name, such as `at.weight`. alpha: weight of the teacher's signal in [0, 1]; None
    means the (first) method's default, likewise `weight`. mapping: `last`, `even`, `stride`,
    `all` pairs with learned weights, or explicit pairs such as `0:1,2:3` (student:teacher).
    *_schedule: see `parse_schedule`; a temperature moves between its knob's value and 1.
    balance: `fixed` weights, `uncertainty` (Kendall et al., CVPR 2018, 1705.07115) or `gradnorm`
    (after Chen et al., ICML 2018, 1711.02257). order: the terms `together`, or `progressive`:
    shallow pairs of stages first, then deep ones, then relations, then responses.
    teachers: how several share: `equal`, `confidence`, `learned`, or fixed such as `0.7,0.3`.
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
    knobs: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise SpecError(f"method.alpha: {self.alpha} is not in [0, 1]")
        if self.weight is not None and not 0 <= self.weight < inf:
            raise SpecError(f"method.weight: {self.weight} is not a number >= 0")
        for name in ("alpha_schedule", "weight_schedule", "temperature_schedule"):
            parse_schedule(f"method.{name}", getattr(self, name))
        for name, known in (("balance", BALANCES), ("order", ORDERS)):
            _require_one_of(f"method.{name}", getattr(self, name), known)
        self.teacher_shares()

    def teacher_shares(self) -> tuple[float, ...] | None:
        """Return the fixed shares of the teachers, summing to 1, or None where they are not."""
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
                "shares such as '0.7,0.3', one a teacher"
            )
        return tuple(share / sum(shares) for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """The recipe of one training: cosine learning rate after a linear warm-up.

    warmup: fraction of all steps. ema: decay of the averaged copy that is evaluated and kept.
    clip: largest norm of the gradient, 0 for none. accumulate: parts that a batch is split into,
    one after another, where memory is short; relations then see a part at a time. policy, mix:
    what views go through after crop and mirror: `trivial` or `rand` augmentation; `mixup` or
    `cutmix`. views: how many of them each image has, seen in turn, so that the teacher is asked no
    more often; 0: a new one each epoch. precision: of the student's step; `auto` is bf16 on a GPU
    that has it, else fp32. repeat: tells trainings apart that are alike otherwise: each number has
    weights, order and views of its own. Above 0 they are the same whatever the method, so that two
    methods can be compared training by training.
    """

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.98
    policy: str = "plain"
    mix: str = "none"
    views: int = 0
    precision: str = "auto"
    repeat: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "accumulate": 1 <= self.accumulate <= self.batch_size,
            "lr": 0 < self.lr < inf,
            "weight_decay": 0 <= self.weight_decay < inf,
            "warmup": 0 <= self.warmup < 1,
            "clip": 0 <= self.clip < inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "ema": 0 <= self.ema < 1,
            "views": self.views >= 0,
            "repeat": self.repeat >= 0,
        }
        bad = [f"train.{name}: {getattr(self, name)!r}" for name, ok in checks.items() if not ok]
        if bad:
            raise SpecError(
                f"{'; '.join(bad)} (epochs and batch_size >= 1, accumulate from 1 to batch_size, "
                "lr > 0, weight_decay, clip, views and repeat >= 0, the others in [0, 1))"
            )
        for name, known in _TRAIN_CHOICES.items():
            _require_one_of(f"train.{name}", getattr(self, name), known)


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
        """Read a walked space: `student.*`, `method.*`, `train.*`. Raises SpecError.

        What an option owns stands under it: `student.resnet.width`, `method.kd.temperature`,
        `train.adamw.lr`.
        """
        rest = dict(params)
        family = str(_take(rest, "student.family"))
        resolution = rest.pop("student.resolution", 0)
        method = str(rest.pop("method.name", "kd"))
        own = _take_under(rest, f"method.{method}.")
        settings = [key for key in _fields(DistillSpec) if key not in ("method", "knobs")]
        distill = {key: own.pop(key) for key in settings if key in own}
        knobs = _take_under(rest, f"student.{family}.")
        resolution = knobs.pop("resolution", resolution)
        train = _take_under(rest, "train.")
        train |= _take_under(train, f"{train.get('optimizer', '')}.")
        _refuse("train", train, _fields(TrainSpec))
        _refuse("", rest, ("student.family", "student.resolution", "method.name"))
        return cls(
            student=make(StudentSpec, family=family, resolution=resolution, knobs=knobs),
            distill=make(DistillSpec, method=method, knobs=own, **distill),
            train=make(TrainSpec, **train),
        )

    def digest(self) -> str:
        """Return a short name that equals for equal candidates and for no others.

        A setting at its default is left out, so that a new setting renames no old candidate.
        """
        own = dict(self.distill.knobs)  # a temperature counts beside the knobs, as it always has:
        warm = {key: own.pop(key) for key in ("temperature",) if key in own}  # digests seed trials
        distill = unusual(replace(self.distill, knobs=own)) | warm
        return digest_of([unusual(self.student), distill, unusual(self.train)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one student: multiply-adds, parameters, milliseconds.

    None is unknown, such as a latency that was not measured. latency_low_ms, latency_high_ms: the
    latency of a new process lies between them 95 times of 100.

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
        """Return (cost - limit) / limit for every limit whose cost is known; > 0 breaks it.

        A latency counts with the upper end of its interval: the next process may find that.
        """
        found = {}
        for name in _fields(Budget):
            limit, value = getattr(self, name), _at_most(name, cost)
            if limit is not None and value is not None:
                found[name] = (value - limit) / limit
        return found

    def explain(self, cost: Cost) -> str:
        """Return which limits a cost breaks, in words, such as '29.7 MFLOPs over 20'."""
        return "; ".join(
            f"{getattr(cost, name) * scale:.4g} {unit}{_up_to(name, cost)} over "
            f"{getattr(self, name) * scale:.4g}"
            for name, (scale, unit) in UNITS.items()
            if self.violations(cost).get(name, 0) > 0
        )

    def axis(self) -> str:
        """Return the cost that the front trades accuracy against: the first limited one."""
        limited = [name for name in _fields(Budget) if getattr(self, name) is not None]
        return limited[0] if limited else "flops"


def _at_most(name: str, cost: Cost) -> float | None:
    value: float | None = getattr(cost, name)
    return cost.latency_high_ms or value if name == "latency_ms" else value


def _up_to(name: str, cost: Cost) -> str:
    if name != "latency_ms" or cost.latency_high_ms is None:
        return ""
    return f", up to {cost.latency_high_ms:.4g} with its spread,"


_SECTIONS: Mapping[type, str] = {
    StudentSpec: "student",
    DistillSpec: "method",
    TrainSpec: "train",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """The record of one trial. `curve` holds the validation metric after each of its `epochs`.

    state: `complete`, `rejected` (over budget, never trained), `pruned` (stopped early),
    `failed`, `interrupted` (its driver died; it is sampled again) or `running`. reason: why it did
    not complete. teacher_seconds: the part of `seconds` that the teacher took.
    mode: how its steps ran, such as `bf16 channels_last graph`, or `fp32 eager: REASON`.
    control_of: the trial whose student this one trains with another method, for comparison.
    refit_of: the trial that this one, or its control, trains again under another `repeat`.
    reused_from: the equal earlier trial. draw: its place in the order of proposals, None for a
    control. rejected_early: by FLOPs or parameters when it was sampled; it counts as no trial.

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

    @property
    def kind(self) -> str:
        """Return what a trial outside the search is, '' for one of it; see `kind_of`."""
        return kind_of(self.control_of, self.refit_of)

    def outside(self) -> str:
        """Return the same with the trial that it belongs to, as 'refit of trial 7'."""
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
    """Return the readers of specs; importing pydantic takes 0.1 s, and `--help` needs none."""
    from pydantic import TypeAdapter

    return {spec: TypeAdapter(spec) for spec in _SECTIONS}


def make(cls: type[T], **values: object) -> T:
    """Build one of the three specs from a file's values. Raises SpecError for a wrong type."""
    from pydantic import ValidationError

    try:
        made: T = _readers()[cls].validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        section = _SECTIONS[cls]
        raise SpecError(
            "; ".join(
                f"{section}.{'.'.join(map(str, item['loc']))}: {item['input']!r}: {item['msg']}"
                for item in error.errors()
            )
        ) from None
    return made


def unusual(spec: object) -> dict[str, object]:
    """Return the fields of a dataclass that differ from their defaults."""
    found = {}
    for item in fields(spec):  # type: ignore[arg-type]
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = getattr(spec, item.name)
        if value != default:
            found[item.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known)
        raise SpecError(f"{name}: {value!r}{hint} is not one of {', '.join(known)}")


def _take(rest: dict[str, Value], name: str) -> Value:
    try:
        return rest.pop(name)
    except KeyError:
        raise SpecError(f"the search space does not say {name!r}") from None


def _take_under(rest: dict[str, Value], prefix: str) -> dict[str, Value]:
    names = [name for name in rest if name.startswith(prefix)]
    return {name.removeprefix(prefix): rest.pop(name) for name in names}


def _refuse(prefix: str, rest: Mapping[str, Value], known: tuple[str, ...]) -> None:
    unknown = [name for name in rest if name not in known]
    if unknown:
        hints = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        where = f"{prefix}: " if prefix else ""
        raise SpecError(f"{where}unknown {hints}; known: {', '.join(known)}")


def digest_of(value: object) -> str:
    """Return 16 hexadecimal digits that name a value made of plain JSON types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
