"""The values between rooms: read from parameters, refused by name, equal by digest."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.digests import changed, digest_of
from kdsearch.errors import SpecError
from kdsearch.space import Value
from kdsearch.spec import (
    INITS,
    MAPPINGS,
    Budget,
    Candidate,
    Cost,
    DistillSpec,
    StudentSpec,
    TrainSpec,
    make,
)


def params_of(candidate: Candidate) -> dict[str, Value]:
    """Return parameters that say the candidate in full."""
    student, distill = candidate.student, candidate.distill
    own = {
        item.name: getattr(distill, item.name)
        for item in fields(DistillSpec)
        if item.name not in ("method", "knobs") and getattr(distill, item.name) is not None
    }
    return {
        "student.family": student.family,
        "student.resolution": student.resolution,
        "student.init": student.init,
        **{f"student.{student.family}.{name}": value for name, value in student.knobs.items()},
        "method.name": distill.method,
        **{f"method.{distill.method}.{name}": value for name, value in own.items()},
        **{f"method.{distill.method}.{name}": value for name, value in distill.knobs.items()},
        **{f"train.{name}": value for name, value in asdict(candidate.train).items()},
    }


# Floats that no integer equals: 1 and 1.0 are equal in Python, and two texts in JSON.
positive = st.floats(0.001, 100, allow_nan=False).filter(lambda x: x != int(x))
shares = positive.map(lambda x: x % 1)
knobs = st.dictionaries(
    st.sampled_from(["width", "depth", "kernel"]),
    st.one_of(positive, st.integers(2, 99), st.booleans(), st.sampled_from(["a", "b"])),
)
candidates = st.builds(
    Candidate,
    student=st.builds(
        StudentSpec,
        family=st.sampled_from(["resnet", "timm:small.tag_1", "my.package:Net"]),
        resolution=st.integers(0, 224),
        init=st.sampled_from(INITS),
        knobs=knobs,
    ),
    distill=st.builds(
        DistillSpec,
        method=st.sampled_from(["kd", "at", "my.package:Loss"]),
        alpha=st.none() | shares,
        weight=st.none() | positive,
        mapping=st.none() | st.sampled_from(MAPPINGS),
        knobs=knobs,
    ),
    train=st.builds(
        TrainSpec,
        epochs=st.integers(1, 99),
        optimizer=st.sampled_from(["sgd", "adamw"]),
        lr=positive,
        warmup=shares,
    ),
)


@given(candidates)
def test_a_candidate_is_read_back_from_its_params(candidate: Candidate) -> None:
    again = Candidate.from_params(params_of(candidate))
    assert again == candidate
    assert again.digest() == candidate.digest()


# So few that equal ones meet often.
few = st.builds(
    Candidate,
    student=st.builds(
        StudentSpec,
        family=st.sampled_from(["resnet", "vit"]),
        knobs=st.sampled_from([{}, {"width": 0.5}, {"width": 0.25}, {"depth": 2, "width": 0.5}]),
    ),
    distill=st.builds(DistillSpec, alpha=st.sampled_from([None, 0.5])),
    train=st.builds(TrainSpec, lr=st.sampled_from([0.1, 0.2])),
)


@given(few, few)
def test_digests_are_equal_exactly_when_candidates_are(one: Candidate, other: Candidate) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(st.permutations(sorted(params_of(Candidate(student=StudentSpec(family="vit"))).items())))
def test_the_order_of_params_changes_nothing(pairs: list[tuple[str, Value]]) -> None:
    plain = Candidate(student=StudentSpec(family="vit"))
    assert Candidate.from_params(dict(pairs)).digest() == plain.digest()


def test_only_the_family_is_required() -> None:
    assert Candidate.from_params({"student.family": "vit"}) == Candidate(
        student=StudentSpec(family="vit"), distill=DistillSpec(method="kd"), train=TrainSpec()
    )


def test_a_family_may_own_its_init() -> None:
    params = {"student.family": "vit", "student.init": "teacher", "student.vit.init": "pretrained"}
    assert Candidate.from_params(params).student == StudentSpec(family="vit", init="pretrained")


def test_a_digest_has_the_init_only_where_it_is_not_scratch() -> None:
    spec = StudentSpec(family="vit")
    assert changed(spec) == {"family": "vit"}
    assert changed(replace(spec, init="teacher")) == {"family": "vit", "init": "teacher"}


def test_a_family_may_own_its_resolution() -> None:
    params = {"student.family": "vit", "student.resolution": 32, "student.vit.resolution": 16}
    assert Candidate.from_params(params).student == StudentSpec(family="vit", resolution=16)


def test_a_digest_does_not_change_between_versions() -> None:
    # sha256 of {"a":1,"b":[2.5,"x"]}, first 16 digits: a study's records name candidates by it.
    assert digest_of({"b": [2.5, "x"], "a": 1}) == "5f097a2417b218fb"


REFUSED: dict[str, dict[str, Value]] = {
    "the search space has no 'student.family'": {"train.lr": 0.1},
    "train: unknown 'lrr' (did you mean 'lr'?)": {"train.lrr": 0.1},
    "unknown 'student.width'": {"student.width": 1},
    "unknown 'student.vit.width'": {"student.vit.width": 1},
    "unknown 'method.kd.beta'": {"method.name": "at", "method.kd.beta": 1},
    "unknown 'student.resolutio' (did you mean 'student.resolution'?)": {"student.resolutio": 8},
    "train.epochs: 2.5": {"train.epochs": 2.5},
    "train.epochs: 'many'": {"train.epochs": "many"},
    "train.lr: True": {"train.lr": True},
    "train.batch_size: 0": {"train.batch_size": 0},
    "train.lr: inf": {"train.lr": float("inf")},
    "train.warmup: 1.0": {"train.warmup": 1},
    "train.optimizer: 'adam'": {"train.optimizer": "adam"},
    "train.ema: 1.0": {"train.ema": 1},
    "student.resolution: '32'": {"student.resolution": "32"},
    "student.init: 'pretraned' (did you mean 'pretrained'?)": {"student.init": "pretraned"},
    "student.resolution: -1": {"student.resolution": -1},
    "method.alpha: 1.5": {"method.kd.alpha": 1.5},
    "method.alpha: 'half'": {"method.kd.alpha": "half"},
    "method.alpha: nan": {"method.kd.alpha": float("nan")},
    "method.weight: -1.0": {"method.kd.weight": -1},
    "method.mapping: 3": {"method.kd.mapping": 3},
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_impossible_setting_is_refused_by_its_name(message: str) -> None:
    family = {} if "student.family" in message else {"student.family": "resnet"}
    with pytest.raises(SpecError) as caught:
        Candidate.from_params({**family, **REFUSED[message]})
    assert message in str(caught.value)


def test_all_wrong_values_of_a_section_are_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"train\.epochs: 0; train\.lr: -1\.0; train\.ema: 2\.0"):
        make(TrainSpec, epochs=0, lr=-1, ema=2)
    with pytest.raises(SpecError, match=r"train\.epochs: 'x'.*train\.lr: 'y'"):
        make(TrainSpec, epochs="x", lr="y")


COST = Cost(flops=30_000_000, params=500_000, latency_ms=12.5)


def test_violations_are_relative_to_the_limit() -> None:
    # (12.5 - 10) / 10, (30e6 - 40e6) / 40e6, (0.5e6 - 0.5e6) / 0.5e6
    budget = Budget(latency_ms=10, flops=40e6, params=0.5e6)
    assert budget.violations(COST) == {"latency_ms": 0.25, "flops": -0.25, "params": 0.0}


def test_violations_leave_out_costs_without_a_limit_or_a_measurement() -> None:
    assert Budget().violations(COST) == {}
    assert Budget(latency_ms=10).violations(Cost(flops=1, params=1)) == {}
    assert Budget(params=1e6).violations(COST) == {"params": -0.5}


def test_explain_names_the_broken_limits_only_in_their_units() -> None:
    assert Budget(latency_ms=10, flops=20e6, params=1e6).explain(COST) == (
        "12.5 ms over 10; 30 MFLOPs over 20"
    )
    assert Budget(params=0.4e6).explain(COST) == "0.5 M parameters over 0.4"
    assert Budget(latency_ms=12.5).explain(COST) == ""


def test_a_latency_counts_with_the_upper_end_of_its_interval() -> None:
    """(10.4 - 10) / 10 = 0.04: the median keeps the limit, the next process may not."""
    cost = Cost(latency_ms=9.8, latency_low_ms=9.2, latency_high_ms=10.4)

    assert Budget(latency_ms=10).violations(cost) == {"latency_ms": pytest.approx(0.04)}
    assert Budget(latency_ms=10).explain(cost) == ("9.8 ms, up to 10.4 with its spread, over 10")
    assert Budget(latency_ms=10.4).violations(cost) == {"latency_ms": 0.0}


def test_the_axis_is_the_first_limit_of_latency_flops_params() -> None:
    assert Budget().axis() == "flops"
    assert Budget(params=1).axis() == "params"
    assert Budget(params=1, flops=1).axis() == "flops"
    assert Budget(params=1, flops=1, latency_ms=1).axis() == "latency_ms"


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_limit_is_a_number_above_zero(limit: float) -> None:
    with pytest.raises(SpecError, match=r"budget\.flops"):
        Budget(flops=limit)
