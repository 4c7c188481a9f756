"""A draw has a share of the tightest limit, and the widest student that keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.models import students
from kdsearch.space import Float, Params
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Budget, Candidate, Cost
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.config import OBJECTIVE, StudyConfig
from kdsearch.study.first_trials import first_trial
from kdsearch.study.importances import rankings
from kdsearch.study.open import open_study
from kdsearch.study.ranking import shares
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.study.warm_start import enqueue, read_guess
from kdsearch.study.width import FREE_EVERY, SHARE, STEP, Widths, shared, widest

SPACE = """
student:
  family:
    choice:
      resnet: {width: {float: [0.25, 2.0], log: true}, depth: {int: [3, 15]}}
      vit: {width: {float: [0.25, 1.5], log: true}, depth: {int: [2, 12]}}
train: {lr: {float: [0.01, 1.0], log: true}}
"""
FLAT = "student: {family: resnet, resnet: {width: {float: [0.25, 2.0]}, depth: {int: [3, 15]}}}"
CONFIG = StudyConfig(space=SPACE, budget_mflops=20.0, seed=5)


def price(params: Params) -> Cost:
    """Return a cost that rises with the width in steps, as channels do; a vit costs twice."""
    family = params["student.family"]
    width, depth = params[f"student.{family}.width"], params[f"student.{family}.depth"]
    channels = int(32 * float(width) + 0.5)
    flops = 2_000 * channels**2 * int(depth) * (2 if family == "vit" else 1)
    return Cost(flops=flops, params=100 * channels)


def opened(path: Path, config: StudyConfig = CONFIG):
    return open_study(path, config, versions={})


def trained(study: OpenStudy, count: int) -> Iterator[Params]:
    for _ in range(count):
        proposal = study.ask(price)
        cost = price(proposal.params)
        study.tell(
            proposal,
            TrialOutcome(
                state="complete",
                cost=cost,
                violations=study.budget.violations(cost),
                val=0.5 + float(proposal.params["train.lr"]) / 10,
            ),
        )
        yield proposal.params


@given(
    st.floats(0.05, 1.0), st.floats(1.0, 3.0), st.floats(0.0, 4.0), st.sampled_from([None, 0.25])
)
def test_the_widest_is_that_of_every_width_tried(
    low: float, times: float, limit: float, step: float | None
) -> None:
    low = 0.25 if step else low
    high = 0.25 + step * 5 if step else low * times
    dim = Float(low=low, high=high, step=step)
    found = widest(dim, lambda width: round(8 * width) / 8 <= limit)
    assert found in dim
    every = [low + i * (step or STEP) for i in range(math.ceil((high - low) / (step or STEP)))]
    kept = [width for width in [*every, high] if round(8 * width) / 8 <= limit]
    assert found == pytest.approx(max(kept, default=low))


@pytest.mark.parametrize("family", students.names())
@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
def test_the_width_of_each_family_is_the_widest_that_keeps_its_share(
    family: str, share: float
) -> None:
    dim = students.knobs_of(family)["width"]
    assert isinstance(dim, Float)
    space = parse_space(
        f"student: {{family: {family}, {family}: {{width: {{float: [{dim.low}, {dim.high}]}}}}}}"
    )
    name = f"student.{family}.width"

    def params_of(params: Params) -> Cost:
        with torch.device("meta"):
            network = students.build(
                Candidate.from_params(params).student, in_channels=3, num_classes=10, data_size=32
            )
        return Cost(params=sum(weight.numel() for weight in network.parameters()))

    def at(width: float) -> float:
        return float(params_of({"student.family": family, name: width}).params or 0)

    limit = math.sqrt(at(dim.low) * at(dim.high)) / 0.7
    widths = Widths(space, Budget(params=limit), is_wide=False)
    given = {"student.family": family, f"student.{family}.share": share}
    solved, learned = widths.solve(given, params_of)

    width = float(solved[name])
    assert list(solved) == ["student.family", name]
    assert learned == {name: (dim_of(space, name), width)}
    assert at(width) <= share * limit < at(round(width + STEP, 9))
    samples = [dim.low * (dim.high / dim.low) ** (i / 40) for i in range(41)]
    costs = [at(width) for width in samples]
    assert costs == sorted(costs)


def dim_of(space, name):
    return dict(space.all_dims())[name]


def test_equal_networks_have_equal_widths() -> None:
    widths = Widths(parse_space(FLAT), Budget(flops=20e6), is_wide=False)
    cells = {
        (price(solved).flops, solved["student.resnet.width"])
        for share in (0.4 + i / 500 for i in range(301))
        for solved, _ in [widths.solve(base(share), price)]
    }
    assert len({flops for flops, _ in cells}) == len(cells) > 10


def base(share: float) -> Params:
    return {"student.family": "resnet", "student.resnet.share": share, "student.resnet.depth": 6}


@pytest.mark.parametrize(
    ("budget", "width"),
    [
        (Budget(flops=1.0), 0.25),  # nothing fits: the lowest, which is rejected
        (Budget(flops=1e12), 2.0),  # everything does
        (Budget(), 2.0),  # no limit
        (Budget(flops=1e12, params=6_399), 1.984),  # the tightest counts: 63 channels
    ],
)
def test_the_ends_of_the_widths_and_the_tightest_limit(budget: Budget, width: float) -> None:
    widths = Widths(parse_space(FLAT), budget, is_wide=False)
    assert widths.solve(base(1.0), price)[0]["student.resnet.width"] == width


def test_a_student_that_cannot_be_built_has_the_lowest_width() -> None:
    widths = Widths(parse_space(FLAT), Budget(flops=20e6), is_wide=False)
    solved, _ = widths.solve(base(1.0), lambda params: None)
    assert solved["student.resnet.width"] == 0.25


def test_a_shared_space_differs_in_the_widths_alone() -> None:
    space = find_space("classification-small")
    names = {name.replace(".share", ".width"): dim for name, dim in shared(space).all_dims()}
    dims = dict(space.all_dims())
    assert names.keys() == dims.keys()
    changed = {name for name in dims if dims[name] != names[name] and name != "student.family"}
    assert changed == {f"student.{f}.width" for f in ("resnet", "mobilenet", "convnext", "vit")}
    assert all(names[name] == SHARE for name in changed)


def test_draws_use_most_of_the_budget_and_a_tenth_any_width(tmp_path: Path) -> None:
    with opened(tmp_path / "study") as study:
        for params in trained(study, 60):
            assert "student.resnet.share" not in params
            assert price(params).flops <= 20e6
        trials = [t for t in study.store.trials() if t.state.name == "COMPLETE"]
        sampled = [t for t in trials if any(n.endswith(".share") for n in t.params)]
        spent = [float(t.values[1]) / 20e6 for t in sampled]
        assert len(sampled) >= 60 - 60 // FREE_EVERY * 2
        assert all(any(n.endswith(".width") for n in t.params) for t in trials)
        # One channel less than the widest costs at most an eighth of these students less.
        assert sum(share > 0.35 for share in spent) >= 0.8 * len(spent)
        # Both are ranked, as in optuna-dashboard.
        assert {"student.resnet.share", "student.resnet.width"} <= shares(rankings(study)).keys()


def test_an_explored_front_has_widths_as_the_space_spreads_them(tmp_path: Path) -> None:
    config = StudyConfig(space=SPACE, budget_mflops=20.0, seed=5, explore="front")
    with opened(tmp_path / "study", config) as study:
        list(trained(study, 15))
        given = [first_trial(config, study.facts, draw, [], lambda _: True) for draw in range(15)]
        trials = study.store.trials()[sum(map(bool, given)) :]
        names = {name for trial in trials for name in trial.params}
    assert trials
    assert not any(name.endswith(".share") for name in names)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_study_proposes_the_same_shares(sampler: str, tmp_path: Path) -> None:
    config = StudyConfig(space=SPACE, budget_mflops=20.0, seed=5, sampler=sampler)
    with opened(tmp_path / "whole", config) as study:
        whole = list(trained(study, 16))
    again: list[Params] = []
    for count in (5, 6, 4, 1):
        with opened(tmp_path / "parts", config) as study:
            again += list(trained(study, count))
            study.ask(price)  # interrupted, and drawn again
    assert again == whole


@pytest.mark.parametrize(
    "config",
    [
        StudyConfig(explore="front"),
        StudyConfig(sampler="nsga2"),
        StudyConfig(data=OBJECTIVE),
    ],
)
def test_some_studies_sample_widths_and_no_shares(config: StudyConfig) -> None:
    assert config.is_wide
    assert not StudyConfig().is_wide


def test_a_guess_gives_a_width_or_a_share(tmp_path: Path) -> None:
    path = tmp_path / "study"
    with opened(path):
        pass
    enqueue(path, {"student.family": "resnet", "student.depth": 6, "student.share": 1.0})
    enqueue(path, {"student.family": "resnet", "student.depth": 6, "student.width": 0.25})
    with opened(path) as study:
        by_share, by_width = trained(study, 2)
    assert by_width["student.resnet.width"] == 0.25
    assert by_share["student.resnet.width"] == 1.265  # 40 channels: 19.2 MFLOPs; 41: 20.2


def test_a_guess_of_both_is_refused() -> None:
    both = {"student.family": "resnet", "student.width": 0.5, "student.share": 1.0}
    with pytest.raises(Exception, match=r"--set student.width: unknown"):
        read_guess(parse_space(SPACE), both)
    too_low = {"student.family": "resnet", "student.share": 0.1}
    with pytest.raises(Exception, match=r"student.share=0.1: expected 0.4 to 1.0"):
        read_guess(parse_space(SPACE), too_low)


def test_the_depth_of_a_librarys_network_is_solved_like_a_width() -> None:
    family = "timm:resnet18.a1_in1k"
    space = parse_space(f"""
student:
  family:
    choice:
      {family}: {{depth: {{float: [0.0, 1.0]}}}}
      resnet: {{depth: {{int: [4, 12]}}}}
""")
    assert f"student.{family}.share" in dict(shared(space).all_dims())
    assert "student.resnet.depth" in dict(shared(space).all_dims())
    widths = Widths(space, Budget(flops=100.0), is_wide=False)
    params = {"student.family": family, f"student.{family}.share": 0.5}

    def cost(params: Params) -> Cost:
        return Cost(flops=20.0 + 8 * int(10 * float(params[f"student.{family}.depth"])))

    solved, _ = widths.solve(params, cost)  # 20 + 8 * 3 is within 50, 20 + 8 * 4 is not
    assert solved[f"student.{family}.depth"] == pytest.approx(0.399)
