"""An actor lays out its bench once, and refuses a node that does not see the study's folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from toy_data import CPU

from kdsearch.engines import ray_actors
from kdsearch.engines.dispatch import Engine, TrialQueue, search
from kdsearch.engines.ray_actors import OnRay, open_actors
from kdsearch.errors import SpecError, StudyError
from kdsearch.hpo.stopping import CurvePruner
from kdsearch.study.config import config_of
from kdsearch.study.early_stopping import Rung, RungPruner
from kdsearch.study.open import open_study
from kdsearch.study.study import OpenStudy
from kdsearch.training.trainer import Epoch
from kdsearch.trials.context import lay_out, load_data

pytest.importorskip("kdsearch.engines.ray_cluster")
SPACE = """
student:
  family: {choice: {resnet: {width: {float: [0.125, 0.25]}, depth: {int: [3, 4]}}}}
  resolution: {choice: [8]}
method: {name: kd}
train: {epochs: 3, lr: 0.1}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStudy]:
    out = tmp_path_factory.mktemp("results")
    given = {"teacher_epochs": 1, "space": SPACE, "budget_mflops": 5.0}
    data, config = load_data(config_of(given), out)
    lay_out(config, data, out=out, device=CPU)
    with open_study(out / "one", config, versions={}) as opened:
        yield opened


class Hopeless(RungPruner):
    """Prunes each trial after two epochs, and counts the trials that ended before."""

    def __init__(self) -> None:
        super().__init__(CurvePruner(mode="safe", images=1), axis="flops")

    def __call__(self, rung: Rung) -> str | None:
        return f"hopeless after {len(self._ended)}" if len(rung.curve) == 2 else None


@contextmanager
def on_ray(
    study: OpenStudy,
    message: list[tuple[int, int, int]],
    start: Callable[..., object] | None = None,
) -> Iterator[Engine]:
    """Give an engine of one actor, which calls `start` with its own start function."""

    def on_epoch(number: int, epoch: Epoch, epochs: int) -> None:
        message.append((number, epoch.number, epochs))

    opened = open_actors(
        1, study, OnRay(), device=CPU, timeout=None, on_epoch=on_epoch, pruner=Hopeless()
    )
    with opened as engine:
        assert isinstance(engine, partial)
        yield (
            engine
            if start is None
            else partial(engine, start=partial(start, engine.keywords["start"]))
        )


def counted(file: Path, start: Callable[[], object]) -> object:
    with file.open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    return start()


@pytest.mark.slow
def test_an_actor_makes_its_context_once_and_reports_each_trial(
    study: OpenStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for `counted`
    message: list[tuple[int, int, int]] = []
    with on_ray(study, message, partial(counted, tmp_path / "benches")) as engine:
        engine(TrialQueue(study, search(study, n_trials=4)))
    records = study.records()
    assert [record.state for record in records] == ["pruned"] * 4
    assert [record.reason for record in records] == [f"hopeless after {n}" for n in range(4)]
    assert message == [(number, epoch, 3) for number in range(4) for epoch in (1, 2)]
    assert {(record.mode, len(record.curve)) for record in records} == {("fp32 eager", 2)}
    assert len((tmp_path / "benches").read_text().split()) == 1


@pytest.mark.slow
def test_a_node_that_does_not_see_the_folders_ends_the_run(
    study: OpenStudy, tmp_path: Path
) -> None:
    n_trials = 1 + len(study.records())
    with on_ray(study, []) as engine:
        assert isinstance(engine, partial)
        elsewhere = partial(engine.keywords["start"], folder=tmp_path / "gone")
        with pytest.raises(StudyError, match=r"has no .*gone, where kdsearch was started"):
            engine(TrialQueue(study, search(study, n_trials=n_trials)), start=elsewhere)
        (study.path / "unfinished" / "driver").write_text("of another run")
        with pytest.raises(StudyError, match=r"does not see .*put --out on a folder that all"):
            engine(TrialQueue(study, search(study, n_trials=n_trials + 1)))


def test_no_private_attribute_of_ray_is_used() -> None:
    """So no upper bound on its version is needed."""
    for module in ("ray_actors", "ray_cluster", "ray_tune"):
        text = (Path(ray_actors.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert not re.search(r"ray\._|temporary_state|(tune|worker|services)\._", text)


def test_a_share_of_a_gpu_is_for_a_gpu() -> None:
    gpu = torch.device("cuda", 0)
    assert (OnRay().share(gpu), OnRay().share(CPU)) == (1.0, 0.0)
    assert OnRay(gpus_per_trial=0.25).share(gpu) == 0.25
    with pytest.raises(SpecError, match=r"--gpus-per-trial 0.25: trials run on the cpu"):
        OnRay(gpus_per_trial=0.25).share(CPU)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(SpecError, match=r"--gpus-per-trial .*: expected above 0 and up to 1"):
        OnRay(gpus_per_trial=share)


def test_without_ray_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdsearch.engines.ray_actors.find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"pip install \"ray\[tune\]>="):
        OnRay()
