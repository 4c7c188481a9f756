"""`--refit` trains the best candidates again under several seeds, on a study of three trials."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from shell import SPACE, Copies, Shell, Studies, ended_trials

from kdsearch.errors import StudyInterruptedError
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.facts import Refit
from kdsearch.study.open import load_study, open_study
from kdsearch.study.options import RunOptions
from kdsearch.study.refit import candidates, trained
from kdsearch.study.study import searched
from kdsearch.workflows.run import run_study


def shipped_recipe(front: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of the highest mean, among all candidates and controls."""
    sides = [
        side
        for each in front["candidates"]
        for side in (each["trained"], *(control["trained"] for control in each["controls"]))
    ]
    return max(sides, key=lambda side: side["val"]["mean"])


def test_a_run_with_refits_shows_their_spread(finished: Studies) -> None:
    study = finished("refitted")
    assert "refit, trial 3:" in study.stdout
    assert "Did distillation help?" in study.stdout
    report = (study.path / "report.md").read_text(encoding="utf-8")
    assert "Trials retrained with 2 seeds" in report
    assert "The test set was used only for the final numbers of" in report


def test_front_json_has_the_candidates_and_what_was_shipped(finished: Studies) -> None:
    study = finished("refitted").path
    front = json.loads((study / "front.json").read_text())
    kept = load_study(study)
    chosen = candidates(kept, Refit(count=2))
    assert {each["trial"] for each in front["candidates"]} == {r.number for r in chosen}
    (best,) = (each for each in front["candidates"] if each["trial"] == front["best"])
    for each in front["candidates"]:
        for side in (each["trained"], *(control["trained"] for control in each["controls"])):
            assert len(side["val"]["values"]) == len(side["test"]["values"]) == 2
            assert side["val"]["low"] < side["val"]["mean"] < side["val"]["high"]
    recipe = shipped_recipe(front)
    lower = min(zip(recipe["val"]["values"], recipe["trials"], strict=True))
    assert best["shipped"] == front["shipped"]["trial"] == lower[1]
    assert front["shipped"]["config"]["method.name"] == recipe["method"]
    assert front["counts"]["complete"] == 3
    assert front["controls"] == []
    assert front["seconds"]["refit"] > 0
    read = [r.number for r in (*kept.front(), *trained(kept))]
    assert sorted(kept.facts.test) == sorted(read)


def test_the_median_seed_is_in_best_and_trains_again_bit_for_bit(
    finished: Studies, shell: Shell
) -> None:
    study = finished("refitted").path
    front = json.loads((study / "front.json").read_text())
    number, best = front["shipped"]["trial"], shipped_recipe(front)
    weights = study / "trials" / f"{number:06d}" / "student.safetensors"
    shipped = study / "best" / "student.safetensors"
    assert shipped.read_bytes() == weights.read_bytes()
    metrics = json.loads((study / "best" / "metrics.json").read_text())
    message = metrics["accuracy"]
    place = best["trials"].index(number)
    assert message["validation"] == best["val"]["values"][place]
    assert message["test"] == best["test"]["values"][place]
    assert metrics["seeds"]["validation"] == best["val"]
    assert metrics["is_taught"] is (best["method"] != "none")
    card = (study / "best" / "README.md").read_text()
    assert f"{100 * best['test']['mean']:.2f} ± " in card
    line = ("distill", "--config", str(study / "best" / "config.yaml"), "--out", str(shell.out))
    name = "refit-again"
    answer = shell.type(*line, "--name", name)
    assert answer.code == 0, answer
    again = shell.out / name / "best" / "student.safetensors"
    assert again.read_bytes() == shipped.read_bytes()


def test_a_control_with_damaged_weights_falls_back_to_its_trial(copied: Copies) -> None:
    shell = copied("drowned")
    path = shell.out / "drowned"
    shutil.rmtree(path / "best")
    controls = [r.number for r in load_study(path).records() if r.kind == "control"]
    for number in controls:
        (path / "trials" / f"{number:06d}" / "student.safetensors").write_bytes(b"damaged")
    with open_study(path, load_study(path).config, versions={}) as study:
        winner = study.facts.shipped
        assert winner in controls
        study.update_facts(shipped=None, is_finished=False, test={})
    answer = shell.type("run", "--name", path.name, "--out", str(shell.out))
    assert answer.code == 0, answer
    assert f"Trial {winner} is left out: " in answer.stdout
    assert load_study(path).facts.shipped == 0
    kept = path / "trials" / "000000" / "student.safetensors"
    assert (path / "best" / "student.safetensors").read_bytes() == kept.read_bytes()


def test_a_control_that_beats_what_the_search_found_is_shipped(
    finished: Studies, shell: Shell
) -> None:
    path = finished("drowned").path
    front = json.loads((path / "front.json").read_text())
    best = max(front["controls"], key=lambda entry: entry["val"])
    assert front["best"] == front["front"][0]["trial"] == 0
    assert front["shipped"] == best
    verdict = (path / "report.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert (
        f"Trial {best['trial']} would save" in verdict or f"Ship trial {best['trial']}" in verdict
    )
    shipped = (path / "best" / "student.safetensors").read_bytes()
    trained_here = path / "trials" / f"{best['trial']:06d}" / "student.safetensors"
    assert shipped == trained_here.read_bytes()
    metrics = json.loads((path / "best" / "metrics.json").read_text())
    assert metrics["accuracy"] == {"validation": best["val"], "test": best["test"]}
    assert f"method: {best['config']['method.name']}" in (path / "best/config.yaml").read_text()
    assert shell.type("status", "drowned", "--out", str(shell.out)).stdout.count(
        f"best: trial {best['trial']}, "
    )


def test_a_finished_study_is_refitted_later_without_further_trials(copied: Copies) -> None:
    shell = copied("plain")
    path = shell.out / "plain"
    before = ended_trials(path)
    line = ("run", "--name", "plain", "--out", str(shell.out))
    answer = shell.type(*line, "--refit", "9", "--seeds", "2", "--refit-epochs", "2")
    assert answer.code == 0, answer
    assert ended_trials(path) == before
    study = load_study(path)
    notes = " ".join(study.facts.notes).replace("\u00a0", " ")
    assert f"--refit 9: the front has {len(study.front())} trial" in notes
    refits = trained(study)
    assert {record.params["train.epochs"] for record in refits} == {2}
    assert {len(record.curve) for record in refits if record.reused_from is None} == {2}
    assert json.loads((path / "front.json").read_text())["controls"] == []
    count = len(study.records())
    answer = shell.type(*line)  # nothing is left to train, and the result is still printed
    assert answer.code == 0, answer
    assert "Did distillation help?" in answer.stdout
    assert len(load_study(path).records()) == count
    answer = shell.type(*line, "--refit", "0")
    assert answer.code == 0, answer
    assert "Retrained with" not in (path / "report.md").read_text(encoding="utf-8")


class Interrupting(Callback):
    """Interrupts a run when so many refits have ended."""

    def __init__(self, until: int) -> None:
        self._left = until

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        if record.kind:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def test_a_study_interrupted_between_refits_trains_none_of_them_twice(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    given = {"space": str(tmp_path / "space.yaml"), "teacher_epochs": 1, "budget_mflops": 1.0}
    options = RunOptions(trials=2, device="cpu", refit=1, seeds=2)
    for until in (1, 3):
        with pytest.raises(StudyInterruptedError):
            run_study(given, Interrupting(until), out=shell.out, name="halves", options=options)
    run_study({}, Callback(), out=shell.out, name="halves", options=RunOptions(device="cpu"))
    records = load_study(shell.out / "halves").records()
    refits = [record for record in records if record.kind]
    assert len(refits) == len({record.digest for record in refits}) in (4, 6)
    assert {record.state for record in refits} == {"complete"}
    assert len(searched(records)) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--refit", "3", "--seeds", "1"), "--seeds 1: one training has no spread; give --seeds 3"),
        (("--seeds", "3"), "--seeds 3 is for refits: give --refit 3 too"),
        (("--refit-epochs", "3"), "--refit-epochs 3 is for refits"),
        (("--refit", "0", "--seeds", "3"), "--seeds 3 is for refits"),
        (("--refit", "-1"), "--refit -1: expected a number of candidates"),
        (("--refit", "2", "--refit-epochs", "0"), "--refit-epochs 0: expected at least 1"),
    ],
)
def test_what_cannot_be_refitted_is_refused_before_anything_runs(
    shell: Shell, flags: tuple[str, ...], expected: str
) -> None:
    assert expected in shell.refused_run("--name", "unfitted", *flags)
    assert not (shell.out / "unfitted").exists()


@pytest.mark.slow
def test_refits_run_in_workers_as_they_do_without(copied: Copies) -> None:
    line = ("run", "--name", "plain", "--refit", "1", "--seeds", "2")
    found = []
    for workers in ("1", "2"):
        shell = copied("plain")
        answer = shell.type(*line, "--out", str(shell.out), "--workers", workers)
        assert answer.code == 0, answer
        records = trained(load_study(shell.out / "plain"))
        found.append({record.digest: (record.val, record.curve) for record in records})
        shutil.rmtree(shell.out / "plain")
    assert found[0] == found[1]
