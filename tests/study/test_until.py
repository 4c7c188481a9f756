"""--until ends a search once what would ship reaches a value of the metric, beyond its noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, opened, run_search, run_to

from kdsearch.errors import SpecError
from kdsearch.spec import Cost
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.stop_conditions import StopConditions, how_far, reached
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Images
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.tasks.base import ACCURACY, Metric

LOSS = Metric(key="score", label="score", is_percent=False, image_variance=4.0)
IMAGES = Images(train=10, val=100, test=10)


class Heard(Callback):
    """Keeps messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[OpenStudy]:
    with opened(tmp_path / "phones") as study:
        study.update_facts(images=IMAGES)
        yield study


def rising(proposal: Proposal) -> TrialOutcome:
    """Return 50 %, 55 %, 60 %, ... of validation, at a cost that falls: only the last ships."""
    number = proposal.number
    cost = Cost(flops=1e6 - number, params=1, latency_ms=1.0)
    return TrialOutcome(state="complete", cost=cost, val=0.5 + number / 20)


def test_a_search_ends_at_the_first_trial_that_reaches_it_beyond_its_noise(
    study: OpenStudy,
) -> None:
    """At 80 % of 100 images a standard error is 4.0 points, at 75 % 4.3: 0.75 needs 80 %."""
    heard = Heard()
    ending = StopConditions(study, Callbacks([heard]), until=0.75)
    run_search(study, [rising], n_trials=20, is_enough=ending)
    assert [record.val for record in study.complete()][-1] == pytest.approx(0.8)
    assert heard.lines == [
        "No further trial: trial 6 reaches --until 0.75 with 80.00 %, 75.96 % less one standard "
        "error"
    ]


def test_it_may_be_asked_between_stages_and_again(study: OpenStudy) -> None:
    heard = Heard()
    ending = StopConditions(study, Callbacks([heard]), until=0.5)
    assert not ending()
    run_search(study, [rising], n_trials=3)
    assert ending()
    assert ending()
    assert len(heard.lines) == 1


def test_only_what_may_ship_counts(tmp_path: Path) -> None:
    """Neither trials over the budget nor those below --min-accuracy are on the front."""
    config = replace(REQUEST, min_accuracy=0.99)
    with opened(tmp_path / "minimum", config) as study:
        study.update_facts(images=IMAGES)
        run_to(study, 6)
        assert study.complete()
        assert reached(study, 0.1) is None


@pytest.mark.parametrize("until", [None, 0.0])
def test_without_a_value_it_never_ends(study: OpenStudy, until: float | None) -> None:
    run_search(study, [rising], n_trials=3)
    assert not StopConditions(study, Callbacks([]), until=until)()


def test_a_metric_outside_0_to_1_works_alike(study: OpenStudy) -> None:
    """A standard error of 100 images is sqrt(4 / 100) = 0.2."""
    study.update_facts(metric=LOSS)

    def negative(proposal: Proposal) -> TrialOutcome:
        return replace(rising(proposal), val=proposal.number - 5.0)

    run_search(study, [negative], n_trials=5)
    assert study.complete()[-1].val == -1.0
    assert reached(study, -1.3) is not None
    assert reached(study, -1.1) is None
    assert how_far(study, study.front()[-1], -0.5) == (
        "--until -0.5 is not reached: trial 4 has -1.0000, -1.2000 less one standard error, which "
        "is 0.7000 short."
    )


def test_the_end_says_how_far_the_shipped_trial_is(study: OpenStudy) -> None:
    run_search(study, [rising], n_trials=7)
    best = study.front()[-1]
    found = "trial 6 has 80.00 %, 75.96 % less one standard error"
    assert how_far(study, best, 0.75) == f"--until 0.75 is reached: {found}."
    assert how_far(study, best, 0.8) == (
        f"--until 0.8 is not reached: {found}, which is 4.04 points short."
    )


@pytest.mark.parametrize("value", [95.0, 1.0, -0.1])
def test_a_percentage_takes_fractions_only(value: float) -> None:
    with pytest.raises(SpecError, match="accuracy is a fraction"):
        ACCURACY.require(value, "--until")
    LOSS.require(value, "--until")
