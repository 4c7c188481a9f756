"""A finished student in other formats: every file is measured, and metrics.json has them all."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from shell import Copies, Shell

from kdsearch import tasks
from kdsearch.cli.export import FORMATS
from kdsearch.deploy.files import ExportedFile
from kdsearch.deploy.formats import FORMATS as KNOWN
from kdsearch.deploy.formats.onnx import evaluate
from kdsearch.deploy.package import candidate_of
from kdsearch.deploy.runtimes import RUNTIMES
from kdsearch.errors import TrainingError
from kdsearch.models.model import Model
from kdsearch.study.callbacks import Callback
from kdsearch.study.open import load_study
from kdsearch.workflows import export as export_workflow


@pytest.fixture
def shell(copied: Copies) -> Shell:
    """Return a shell whose results folder has a finished study of its own, `plain`."""
    return copied("plain")


@pytest.fixture
def study(shell: Shell) -> Path:
    return shell.out / "plain"


def files_of(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "metrics.json").read_text())["files"]
    return found


def test_each_format_leaves_its_file_and_what_it_measured(study: Path, shell: Shell) -> None:
    answer = shell.type(
        "export", "plain", "--out", str(shell.out), "--format", "onnx,onnx-int8, torch-export"
    )

    assert answer.code == 0, answer
    files = files_of(study / "best")
    assert set(files) == {"student.onnx", "student-int8.onnx", "student.pt2"}
    for name, file in files.items():
        assert name in answer.stdout
        assert file["bytes"] == (study / "best" / name).stat().st_size
        assert 0 < file["latency"]["ms"] < 10  # type: ignore[index]
        assert file["agreement"]["n"] == 359  # type: ignore[index]
    shipped = json.loads((study / "best" / "metrics.json").read_text())["onnx"]["val"]
    assert files["student.onnx"]["val"] == pytest.approx(shipped, abs=1e-6)
    assert files["student.pt2"]["drop"] == pytest.approx(0, abs=1e-6)
    assert not list((study / "best").glob(".new-*"))


def test_a_folded_file_takes_pixels_and_predicts_the_same(study: Path, shell: Shell) -> None:
    """What 8 bits cost a student of one epoch differs between processors; the other files agree."""
    answer = shell.type(
        *("export", "plain", "--out", str(shell.out), "--fold-preprocess", "--json"),
        *("--format", "onnx,onnx-fp16,onnx-int8", "--max-drop", "1"),
    )

    found = {file["name"]: file for file in json.loads(answer.stdout)}
    whole, half, rounded = (f"student{kind}-uint8.onnx" for kind in ("", "-fp16", "-int8"))
    assert list(found) == [whole, half, rounded]
    assert found[whole]["agreement"]["max_rel"] < 1e-4
    assert not found[whole]["misses"]
    assert not found[half]["misses"]
    for name in found:
        session = onnxruntime.InferenceSession(study / "best" / name)
        assert session.get_inputs()[0].type == "tensor(uint8)"
        (logits,) = session.run(None, {"images": np.zeros((3, 8, 8, 1), np.uint8)})
        assert logits.shape == (3, 10)


def test_a_second_export_keeps_what_the_first_measured(study: Path, shell: Shell) -> None:
    for name in ("onnx", "onnx-fp16"):
        shell.type("export", "plain", "--out", str(shell.out), "--format", name)

    assert {"student.onnx", "student-fp16.onnx"} <= set(files_of(study / "best"))


def test_a_file_over_the_budget_is_kept_and_marked(study: Path, shell: Shell) -> None:
    config = study / "study.yaml"
    config.write_text(config.read_text().replace("budget_ms: 10.0", "budget_ms: 1.0e-06"))

    answer = shell.type("export", "plain", "--out", str(shell.out), "--format", "onnx", "--json")

    (file,) = json.loads(answer.stdout)
    assert "over the budget of 1e-06" in file["misses"][0]
    assert (study / "best" / "student.onnx").is_file()


TIMING = """
import os, sys
assert os.path.isfile(sys.argv[-1])
images = tuple(os.environ[f"KDSEARCH_{name}"] for name in ("BATCH", "INPUT", "DTYPE"))
print({("2", "1x8x8", "float32"): 3.0, ("2", "8x8x1", "uint8"): 5.0}[images])
"""


def test_a_file_is_timed_on_another_target_where_that_takes_it(study: Path, shell: Shell) -> None:
    script = shell.folder / "timing.py"
    script.write_text(TIMING)
    command = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(script))}"
    line = ("export", "plain", "--out", str(shell.out), "--json", "--max-drop", "1")
    onto = ("--target", f"cmd:{command}", "--batch", "2")

    answer = shell.type(*line, *onto, "--format", "onnx,torch-export")
    onnx, pt2 = json.loads(answer.stdout)
    assert onnx["target"] == {"device": "cmd", "runtime": command, "threads": 1, "batch": 2}
    assert (onnx["latency"]["ms"], onnx["misses"]) == (pytest.approx(3), [])
    assert pt2["target"] == {
        "device": "cpu",
        "runtime": "torch_export",
        "threads": 1,
        "batch": 2,
    }
    assert pt2["misses"] == ["timed on the CPU, since --target cmd cannot run this file"]

    answer = shell.type(*line, *onto, "--format", "onnx", "--fold-preprocess")
    (pixels,) = json.loads(answer.stdout)
    assert pixels["target"]["device"] == "cmd"
    assert pixels["latency"]["ms"] == pytest.approx(5)


def test_of_two_8_bit_files_the_one_that_loses_less_stays(study: Path, shell: Shell) -> None:
    from kdsearch.cli.live import StudyConsole
    from kdsearch.workflows.export import export_study

    def exported(max_drop: float) -> ExportedFile:
        with StudyConsole(quiet=True) as callback:
            found = export_study(study, ["onnx-int8"], callback, out=shell.out, max_drop=max_drop)
        return found.files[0]

    plain, better = exported(1.0), exported(-1.0)  # -1: whatever it loses is too much

    assert not plain.tuned
    if not better.tuned:
        (miss,) = better.misses
        assert miss.endswith(" on 359 images, over -100.00 points (--max-drop -1)")
    assert better.tuned == (better.drop < plain.drop)
    assert better.drop <= plain.drop
    assert better.val + better.drop == pytest.approx(plain.val + plain.drop)
    assert (study / "best" / better.name).stat().st_size == better.bytes
    assert not list((study / "best").glob(".*"))


@pytest.mark.parametrize("case", ["fails", "is no better"])
def test_a_tuning_without_a_better_file_keeps_the_first_and_says_why(
    study: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    class Lines(Callback):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def on_message(self, text: str) -> None:
            self.lines.append(text)

    def exported(max_drop: float) -> tuple[ExportedFile, bytes, list[str]]:
        callback = Lines()
        (file,) = export_workflow.export_study(
            study, ["onnx-int8"], callback, out=shell.out, max_drop=max_drop
        ).files
        return file, (study / "best" / file.name).read_bytes(), callback.lines

    def diverges(*_: object) -> None:
        raise TrainingError("the loss is not finite")

    def changes_nothing(student: Model, *_: object) -> Model:
        return student

    untuned, content, _ = exported(1.0)
    points = 100 * untuned.drop
    no_better = f"after tuning it loses {points:.2f} points, before tuning {points:.2f} points"
    tune, why = {
        "fails": (diverges, "the loss is not finite"),
        "is no better": (changes_nothing, no_better),
    }[case]
    monkeypatch.setattr(export_workflow, "fine_tune", tune)
    file, kept, lines = exported(-1.0)  # whatever it loses is too much

    assert f"{file.name} stays as it is: {why}" in lines
    assert not file.tuned
    assert (kept, file.val, file.drop) == (content, untuned.val, untuned.drop)
    assert not list((study / "best").glob(".*"))
    assert files_of(study / "best")[file.name]["val"] == file.val


def test_a_trial_is_exported_to_a_folder_of_its_own(study: Path, shell: Shell) -> None:
    number = load_study(study).front()[0].number
    before = (study / "best" / "metrics.json").read_bytes()

    answer = shell.type(
        *("export", "plain", "--out", str(shell.out)),
        *("--trial", str(number), "--format", "torch-export", "--json"),
    )

    folder = study / "exported" / f"{number:06d}"
    (file,) = json.loads(answer.stdout)
    record = next(r for r in load_study(study).records() if r.number == number)
    assert file["val"] == pytest.approx(record.val, abs=0.002)
    assert (folder / "student.pt2").is_file()
    assert (folder / "predict.py").is_file()
    assert (study / "best" / "metrics.json").read_bytes() == before


def test_a_config_gives_the_candidate_that_was_exported(study: Path) -> None:
    from kdsearch.spec import Candidate

    number = load_study(study).facts.shipped
    record = next(r for r in load_study(study).records() if r.number == number)

    reported = candidate_of((study / "best" / "config.yaml").read_text())

    shipped = Candidate.from_params(record.params)
    assert reported.student == shipped.student
    assert reported.train == shipped.train
    assert dict(reported.distill.knobs) == dict(shipped.distill.knobs)
    assert reported.digest() == shipped.digest()


def test_accuracy_of_the_file_alone_is_what_was_noted(study: Path, shell: Shell) -> None:
    import torch

    from kdsearch.models.model import Preprocess, batches
    from kdsearch.study.config import read_config
    from kdsearch.trials.context import load_data

    shell.type("export", "plain", "--out", str(shell.out), "--format", "onnx-int8")
    data, _ = load_data(read_config(study), shell.out)
    file = study / "best" / "student-int8.onnx"
    expected = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    preprocess = Preprocess(
        mean=tuple(json.loads(expected["mean"])),
        std=tuple(json.loads(expected["std"])),
        resolution=int(expected["resolution"]),
        channels=int(expected["channels"]),
    )

    shown = ((preprocess(x), y) for x, y in batches(data.val, torch.device("cpu")))

    noted = files_of(study / "best")[file.name]["val"]
    assert evaluate(file, shown, tasks.of(data))[0] == pytest.approx(noted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plain", "--format", "onnx-int9"],
            "unknown format 'onnx-int9' (did you mean 'onnx-int8'",
        ),
        (["plain", "--format", "onnx,,"], "a name is missing next to a comma"),
        (["plain", "--max-drop", "2"], "expected a fraction from 0 to 1"),
        (["plain", "--trial", "999"], "the study 'plain' has no such trial; give --trial "),
        (["plain", "--fold-preprocess", "--format", "torch-export"], "for the ONNX formats"),
        (["nothing-here"], "there is nothing to export at"),
        (["../x"], "a study's name starts with"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    study: Path, shell: Shell, arguments: list[str], message: str
) -> None:
    assert message in shell.refused("export", *arguments)


def test_a_format_without_its_package_costs_only_its_own_file(
    study: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = RUNTIMES.get("openvino")
    monkeypatch.setattr(missing, "is_installed", classmethod(lambda cls: False))
    line = ("export", "plain", "--out", str(shell.out), "--json", "--format")

    answer = shell.type(*line, "openvino,onnx")

    assert answer.code == 1
    assert [file["name"] for file in json.loads(answer.stdout)] == ["student.onnx"]
    assert set(files_of(study / "best")) == {"student.onnx"}
    assert "openvino was not written: openvino is not installed: `" in answer.stderr
    assert "openvino is not installed" in shell.refused(*line, "openvino")


def test_a_trial_without_weights_leads_to_numbers_that_can_be_typed(
    study: Path, shell: Shell
) -> None:
    there = {int(file.parent.name) for file in study.glob("trials/*/student.safetensors")}
    records = load_study(study).records()
    number = next(r.number for r in records if r.number not in there and r.reused_from is None)

    reported = shell.refused("export", "plain", "--trial", str(number))

    assert f"--trial {number}: its weights were not kept" in reported
    named = reported.rpartition("give --trial ")[2].strip()
    assert {int(word) for word in named.split(" or ")} == there
    assert str(study) not in reported


def test_a_study_without_an_export_names_the_command_to_resume(study: Path, shell: Shell) -> None:
    (study / "best").rename(study / "set-aside")

    reported = shell.refused("export", "plain")

    assert "the study 'plain' has no best student yet" in reported
    assert f"`kdsearch run --name plain --out {shell.out}` resumes it" in reported
    assert "or export a trial whose weights are kept: --trial " in reported


def test_an_unknown_format_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys\nfrom kdsearch.__main__ import main\n"
        "try: main(['export', 'any', '--format', 'onnx,tflite'])\n"
        "except SystemExit as left: print(left.code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "2 False"
    assert "unknown format 'tflite'" in found.stderr


def test_the_formats_of_the_help_are_all_there_are() -> None:
    assert sorted(FORMATS) == sorted(name.replace("_", "-") for name in KNOWN.names())


def test_a_trial_without_weights_is_refused_before_images_are_read(
    copied: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = copied("plain")
    monkeypatch.setattr(export_workflow, "load_data", lambda *_: pytest.fail("images were read"))
    message = shell.refused("export", "plain", "--trial", "77")
    assert "--trial 77: the study 'plain' has no such trial; give --trial " in message
