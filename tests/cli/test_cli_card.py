"""Every command of a shipped README.md is typed word for word, in its own folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from shell import Copies, Shell, Studies

TYPED = {
    "python predict.py IMAGE ...",
    "python predict.py IMAGE --model FILE",
    "kdsearch distill --config config.yaml",
    "kdsearch measure student.onnx",
}


INVENTORY = """\
Data digits: 10 classes; train 1,079, val 359, test 359
Taken from train: val and test
Images of a class in train: 104 (8) to 110 (1)
"""


@pytest.fixture
def shipped(copied: Copies, monkeypatch: pytest.MonkeyPatch) -> tuple[Shell, Path]:
    """Return a shell in the shipped folder of a study, which has an image.png."""
    shell = copied("plain")
    best = shell.out / "plain/best"
    Image.new("L", (20, 12), 200).save(best / "image.png")
    monkeypatch.chdir(best)
    return shell, best


def python(*arguments: str) -> str:
    line = [sys.executable, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_of_a_card_work_word_for_word(shipped: tuple[Shell, Path]) -> None:
    shell, best = shipped
    card = (best / "README.md").read_text(encoding="utf-8")
    found = set(re.findall(r"`((?:python|kdsearch) [^`\n]+)`", card))
    assert found == TYPED

    for command in sorted(found):
        line = command.replace("IMAGE ...", "image.png image.png").replace("IMAGE", "image.png")
        program, *arguments = shlex.split(line.replace("FILE", "student.onnx"))
        if program == "python":
            assert python(*arguments).startswith("image.png: ")
            continue
        if arguments[0] == "distill":  # where the study keeps its teacher
            shutil.copytree(shell.out / ".cache", best / "results/.cache")
        answer = shell.type(*arguments)
        assert answer.code == 0, answer.stderr
        if arguments[0] == "distill":
            assert INVENTORY in answer.stdout
        else:
            assert answer.stdout.startswith("Measuring student.onnx\nstudent.onnx at 1x8x8\n")


def test_the_code_of_a_card_runs_as_it_stands(shipped: tuple[Shell, Path]) -> None:
    _, best = shipped
    (code,) = re.findall(r"```python\n(.*?)```", (best / "README.md").read_text(), re.DOTALL)
    name, shape = python("-c", f"{code}\nprint(answer.shape)").splitlines()
    assert name in set("0123456789")  # the class
    assert shape == "(1, 10)"


def test_a_file_is_not_measured_at_another_size(shipped: tuple[Shell, Path]) -> None:
    shell, _ = shipped
    answer = shell.type("measure", "student.onnx", "--input", "3x224x224")
    assert answer.code == 2
    assert answer.stderr == (
        "kdsearch: --input 3x224x224: student.onnx takes 1x8x8; leave --input out\n"
    )


def test_run_and_export_state_the_images(finished: Studies, copied: Copies) -> None:
    assert INVENTORY in finished("plain").stdout
    shell = copied("plain")
    line = ("export", "plain", "--format", "onnx", "--out", str(shell.out))
    answer = shell.type(*line)
    assert answer.code == 0, answer.stderr
    assert answer.stdout.startswith(f"Reading the images\n{INVENTORY}")


def test_the_check_of_predict_py_is_recorded(shipped: tuple[Shell, Path]) -> None:
    _, best = shipped
    card = (best / "README.md").read_text(encoding="utf-8")
    assert "predict.py answers 16 of 16 validation files as in training." in card
