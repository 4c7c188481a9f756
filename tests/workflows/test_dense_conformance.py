"""Detection and segmentation under what works for any study: enqueue, refit, compare, resume.

One tiny study of each is shared. Studies of classes hold the same laws in detail.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dense_study import HEADS, Finished, finished

import kdsearch
from kdsearch.report.comparison import compare
from kdsearch.study.open import load_study
from kdsearch.study.study import searched
from kdsearch.study.warm_start import enqueue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted(HEADS))
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(request.param, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def second(first: Finished) -> Path:
    """Return a copy of the study, resumed with an enqueued candidate and refits."""
    path = first.path.with_name("second")
    shutil.copytree(first.path, path)
    settings = {"student.family": "resnet", "student.depth": 5, "method.name": "none"}
    _, needed = enqueue(path, settings)
    assert needed == 2
    first.run("second", trials=2, refit=1, seeds=2)
    return path


def test_an_enqueued_candidate_is_the_next_trial(second: Path) -> None:
    _, guess = searched(load_study(second).records())
    assert guess.state == "complete"
    assert guess.params["method.name"] == "none"
    assert guess.params["student.resnet.depth"] == 5


def test_the_best_is_refitted_under_seeds_beside_its_controls(second: Path) -> None:
    study = load_study(second)
    refits = [record for record in study.records() if record.kind == "refit"]
    assert {record.state for record in refits} == {"complete"}
    assert {record.params["train.repeat"] for record in refits} == {1, 2}
    assert "seeds" in (second / "best" / "metrics.json").read_text()
    assert study.facts.shipped in [record.number for record in refits]


def test_two_studies_are_compared_by_the_metric_of_their_task(
    first: Finished, second: Path
) -> None:
    one, other = load_study(first.path), load_study(second)
    found = compare(one, other)
    assert [side.study for side in found.sides] == ["first", "second"]
    assert found.metric.key in ("map50", "miou")
    assert found.to_json()


class Interrupts(kdsearch.Callback):
    """Ctrl-C after the first epoch of a trial."""

    def on_epoch(self, number: int, epoch: Any, epochs: int) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_training_resumes_to_the_same_curve(first: Finished) -> None:
    with pytest.raises(kdsearch.StudyInterruptedError):
        first.run("stopped", callback=Interrupts())
    resumed = first.run("stopped")
    (whole,) = searched(load_study(first.path).records())
    (again,) = searched(resumed.trials)
    assert (again.params, again.curve) == (whole.params, whole.curve)
