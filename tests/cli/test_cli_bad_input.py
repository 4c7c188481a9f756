"""Every mistake a user can type gets one message and exit code 2, and no step of training."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from shell import SPACE, Copies, Shell, contents

from kdsearch.__main__ import main

COUNTS = ("--trials", "--epochs", "--teacher-epochs", "--flat-after", "--batch-size")
RUN_MISTAKES = [
    (("--data", "digts"), "did you mean 'digits'"),
    (("--data", "./nowhere"), "there is no 'nowhere'"),
    (("--data", "x" * 5000), "cannot be read"),
    (("--data", "a\0b"), "unknown data"),
    (("--teacher", "auot"), "did you mean 'auto'"),
    (("--teacher", "cifar_resnet21"), "cifar_resnet comes in 20, 32"),
    (("--teacher", "timm:nope"), "timm has no model 'nope'"),
    (("--teacher", "torchvision:nope"), "no classification model 'nope'"),
    (("--teacher", "x.py:factory"), "there is no file 'x.py'"),
    (("--teacher", "onnx:x.onnx"), "--teacher onnx:x.onnx: there is no file 'x.onnx'"),
    (("--teacher", "timm:resnet18", "--teacher-weights", "x.pt"), "there is no file 'x.pt'"),
    (("--teacher-weights", "x.pt"), "--teacher-weights needs the network they belong to"),
    (("--teacher-epochs", "0"), "--teacher-epochs 0: expected 1 to 1000000"),
    (("--budget-ms", "0"), "--budget-ms 0: expected a number above 0"),
    (("--budget-ms", "-1"), "--budget-ms -1"),
    (("--budget-mflops", "nan"), "--budget-mflops nan"),
    (("--target", "gpu"), "unknown --target 'gpu'"),
    (("--target", "cmd:no-such-program"), "there is no program 'no-such-program'"),
    (("--threads", "0"), "--threads 0: expected 1 to"),
    (("--batch", "-1"), "--batch -1: expected 1 to"),
    (("--budget-mparams", "inf"), "--budget-mparams inf"),
    (("--budget-ms", "abc"), "--budget-ms 'abc': expected a number above 0, or a share of the"),
    (("--budget-ms", "0x"), "--budget-ms '0x': expected a number above 0, or a share of the"),
    (("--budget-mflops", "nanx"), "teacher's own as 0.5x"),
    (("--budget", "3"), "No such option: --budget"),
    (("--trials", "0"), "--trials 0"),
    (("--trials", "-3"), "--trials -3"),
    *(((flag, "9" * 23), f"{flag} 999") for flag in COUNTS),
    (("--refit", "9" * 23), "expected at most 1000000"),
    (("--device", "cpu:0"), "--device 'cpu:0': expected auto, cpu, cuda or cuda:N"),
    (("--out", ""), "--out '': expected a value"),
    (("--ray-address=",), "--ray-address '': expected a value"),
    (("--trials", "abc"), "'--trials': Input should be a valid integer"),
    (("--workers", "0"), "--workers '0': expected a number above 0, or auto"),
    (("--workers", "many"), "--workers 'many'"),
    (("--trial-timeout", "soon"), "--trial-timeout 'soon': expected seconds above 0, or a time"),
    (("--trial-timeout", "0"), "--trial-timeout '0'"),
    (("--storage", "nothing"), "--storage: expected an SQLAlchemy URL"),
    (("--time-limit", "nan"), "--time-limit 'nan'"),
    (("--name", "../x"), "--name '../x'"),
    (("--name", "/abs"), "--name '/abs'"),
    (("--name", "a/b"), "--name 'a/b'"),
    (("--name", ""), "--name ''"),
    (("--name", "x" * 300), "100 at most"),
    (("--name", "a\0b"), "--name 'a\\x00b'"),
    (("--name", ".cache"), "starts with a letter or a digit"),
    (("--subset", "-1"), "--subset -1: expected a number of images, or 0 for all"),
    (("--subset", "5"), "choose 10 to"),
    (("--subset", "100000"), "choose 10 to"),
    (("--image-size", "0"), "--image-size 0: expected 8 to 4096"),
    (("--image-size", "-1"), "--image-size -1"),
    (("--image-size", "3"), "--image-size 3"),
    (("--image-size", "1000000"), "--image-size 1000000"),
    (("--epochs", "0"), "--epochs 0"),
    (("--seed", "abc"), "'--seed': Input should be a valid integer"),
    (("--seed", "-1"), "--seed -1: expected 0 to 4294967295"),
    (("--seed", "9" * 30), "--seed 999"),
    (("--sampler", "tpee"), "did you mean 'tpe'"),
    (
        ("--sampler", "gp"),
        "the options of student.family, method.name own at random",
    ),
    (("--sampler", "nsga2", "--stopping", "safe"), "trials that --stopping safe ends"),
    (("--min-accuracy", "90"), "--min-accuracy 90: expected a fraction"),
    (("--from-study", "nope"), "--from-study nope: there is no such study"),
    (("--device", "gpu"), "--device 'gpu': expected auto, cpu, cuda or cuda:N"),
    (("--device", "cuda:99"), "--device cuda:99: this machine has"),
    (("--space", "digts"), "did you mean 'digits'"),
    (("--space", ""), "--space ''"),
]


@pytest.mark.parametrize(("arguments", "shown"), RUN_MISTAKES)
def test_run_refuses(shell: Shell, arguments: tuple[str, ...], shown: str) -> None:
    before = _studies(shell.out)
    assert shown in shell.refused_run(*arguments)
    assert _studies(shell.out) == before


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (("run", "--refit", "x"), "kdsearch run"),
        (("measure",), "kdsearch measure"),
        (("runn",), "kdsearch"),
    ],
)
def test_a_mistake_in_the_options_leads_to_the_help_of_their_command(
    shell: Shell, line: tuple[str, ...], command: str
) -> None:
    answer = shell.type(*line)
    assert answer.code == 2
    assert answer.stderr.endswith(f"(see `{command} --help`)\n")


@pytest.mark.parametrize("line", [("run",), ("distill",), ("measure", "timm:resnet18")])
def test_a_command_that_cannot_measure_is_refused_before_anything_is_made(
    shell: Shell, tmp_path: Path, line: tuple[str, ...]
) -> None:
    out = () if line[0] == "measure" else ("--out", str(tmp_path / "new"))
    answer = shell.type(*line, *out, "--target", "cmd:sh -c 'echo no board >&2; exit 3'")
    assert answer.code == 2
    assert "ended with 3\n  no board\n" in answer.stderr
    assert "eacher" not in answer.stdout
    assert not (tmp_path / "new" / ".cache" / "teachers").exists()


@pytest.mark.parametrize("teacher", ["auot", "x.py:factory", "onnx:x.onnx", "study:nowhere"])
def test_a_teacher_that_is_not_there_is_refused_before_images_are_read(
    shell: Shell, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdsearch.data.load", lambda *_, **__: pytest.fail("read"))
    shell.refused_run("--name", "absent", "--teacher", teacher)


@pytest.mark.parametrize("below", ["", "results/more"])
def test_an_out_that_is_a_file_is_named_before_images_are_read(
    shell: Shell, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdsearch.data.load", lambda *_, **__: pytest.fail("read"))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / below
    answer = shell.type("run", "--out", str(out))
    assert answer.stderr == f"kdsearch: --out {out}: {tmp_path / 'file'} is a file; give a folder\n"


DISTILL_MISTAKES = [
    (("--set", "foo"), "--set 'foo': expected student.KNOB=VALUE"),
    (("--set", "student.widht=1"), "did you mean 'width'"),
    (("--set", "student.width=big"), "width 'big' is not a number"),
    (("--set", "student.width=" + "[" * 100_000), "is not"),
    (("--set", "student.width=[1]"), "is not a number, a truth value or a word"),
    (("--set", "student.width=1" + "0" * 4999), "is not a number"),
    (("--set", "train.lr=-1"), "train.lr: -1.0"),
    (("--set", "train.foo=1"), "unknown 'foo'"),
    (("--set", "train.batch_size=0"), "train.batch_size: 0"),
    (("--set", "train.batch_size=100000000000"), "batch_size from 1 to 1000000"),
    (("--mapping", ""), "--mapping '': expected a value"),
    (("--set", "method.beta=2"), "unknown knob 'beta'"),
    (("--method", "kdd"), "did you mean 'kd'"),
    (("--student", "resnett"), "did you mean 'resnet'"),
    (("--method", "at", "--mapping", "nonsense"), "is not one of last, even, stride"),
    (("--method", "at", "--mapping", "9:9"), "the student has no stage 9"),
    (("--alpha", "2"), "method.alpha: 2.0 is not in [0, 1]"),
    (("--temperature", "0"), "method kd.temperature: 0.0"),
    (("--temperature", "nan"), "method kd.temperature: nan"),
    (("--method", "at", "--temperature", "4"), "method 'at' has no temperature; at+kd adds"),
    (("--resolution", "0"), "--resolution 0"),
    (("--resolution", "4"), "resolution 4 is not a whole number in [8, 4096]"),
    (("--epochs", "0"), "train.epochs: 0"),
    (("--name", "../a"), "--name '../a'"),
]


@pytest.mark.parametrize(("arguments", "shown"), DISTILL_MISTAKES)
def test_distill_refuses(shell: Shell, arguments: tuple[str, ...], shown: str) -> None:
    before = _studies(shell.out)
    assert shown in shell.refused("distill", "--teacher-epochs", "1", *arguments)
    assert _studies(shell.out) == before


MEASURE_MISTAKES = [
    (("resnet", "--input", "3"), "--input '3': expected channels x height x width"),
    (("resnet", "--input", "3x0x3"), "--input '3x0x3'"),
    (("resnet", "--input", "²x8x8"), "--input '²x8x8'"),
    (("resnet", "--input", "3x64x32"), "takes square images, as 3x64x64"),
    (("resnet", "--set", "student.head.kind=fpn", "--input", "3x180x256"), "32, as 3x192x256"),
    (("resnet", "--input", "3x1x1"), "resolution 1 is not"),
    (("resnet", "--classes", "0"), "num_classes 0 is not"),
    (("nope",), "unknown student family 'nope'"),
    (("timm:nope",), "timm has no model 'nope'"),
    (("nope.onnx",), "nope.onnx"),
]


@pytest.mark.parametrize(("arguments", "shown"), MEASURE_MISTAKES)
def test_measure_refuses(shell: Shell, arguments: tuple[str, ...], shown: str) -> None:
    answer = shell.type("measure", *arguments)
    assert answer.code == 2
    assert shown in answer.stderr


def test_enqueue_refuses_what_is_no_setting(shell: Shell) -> None:
    assert "--set 'x': expected NAME=VALUE" in shell.refused("enqueue", "nope", "--set", "x")
    assert "there is no study at" in shell.refused("enqueue", "nope", "--set", "train.lr=1")


@pytest.mark.parametrize("command", ["report", "dashboard"])
def test_a_study_that_is_not_there_is_named(shell: Shell, command: str) -> None:
    assert "there is no study at" in shell.refused(command, "nope")
    assert "--name '../x'" in shell.refused(command, "../x")


SPACES = [
    (("lr: {float: [0.04, 0.3], log: true}", "lr: 1e-3"), "space.yaml:17: .* write 0.001"),
    (("[0.04, 0.3]", "[1e-3, 0.3]"), "space.yaml:17: .* write 0.001"),
    (("      at:", "      att:"), "space.yaml:13: unknown method 'att'"),
    (("      resnet:", "      resnett:"), "space.yaml:4: unknown student family 'resnett'"),
    (("student:", "- a"), "space.yaml"),
    ((SPACE, ""), "expected a mapping"),
    ((SPACE, "!!python/object/apply:os.system ['touch pwned']"), "is not supported"),
    ((SPACE, "#" * 2_000_000), "limit of 1000000"),
]


@pytest.mark.parametrize(("change", "shown"), SPACES)
def test_space_is_refused(shell: Shell, change: tuple[str, str], shown: str) -> None:
    assert re.search(shown, shell.refused_run(space=SPACE.replace(*change)))
    assert not Path("pwned").exists()


def test_three_mistakes_of_a_space_are_reported_with_their_lines(shell: Shell) -> None:
    wrong = SPACE.replace("width:", "widht:").replace("[8]", "[]").replace("epochs:", "epoch:")
    lines = shell.refused_run(space=wrong).splitlines()
    shown = zip((5, 7, 16), ("'widht'", "at least one option", "'epoch'"), strict=True)
    assert len(lines) == 3
    for line, (number, what) in zip(lines, shown, strict=True):
        assert f"space.yaml:{number}: " in line
        assert what in line


CONFIGS = [
    ("a: [\n", "not plain YAML"),
    ("- a\n", "expected a mapping"),
    ("", "expected a mapping"),
    ("!!python/object/apply:os.system ['touch pwned']\n", "not plain YAML"),
    ("trails: 3\n", "unknown 'trails' (did you mean 'trials'?)"),
    ("trials: abc\n", "'--trials': Input should be a valid integer"),
    ("budget_ms: {a: 1}\n", "--budget-ms"),
    ("#" * 2_000_000, "larger than the limit of 1000000 bytes"),
    ("data: &a [x]\nname: *a\n", "config.yaml:2: not plain YAML: '*a': references"),
    (f"data: {'[' * 5000}", "more than 20 levels deep"),
    ("seed: -1\nseed: 0\n", "config.yaml:2: not plain YAML: 'seed' is defined twice"),
    ("trials: true\n", "trials is a truth value"),
    ("name: no\n", "name is a truth value; write a text in quotes"),
    ("out: ''\n", "out is empty"),
    ("seed: 0x10\n", "'--seed': Input should be a valid integer"),
]


@pytest.mark.parametrize(("text", "shown"), CONFIGS)
def test_config_is_refused(shell: Shell, text: str, shown: str) -> None:
    file = shell.folder / "config.yaml"
    file.write_text(text)
    assert shown in shell.refused("run", "--config", str(file))
    assert not Path("pwned").exists()


def test_config_that_is_no_file_is_refused(shell: Shell) -> None:
    assert "No such file" in shell.refused("run", "--config", str(shell.folder / "no.yaml"))
    assert "Is a directory" in shell.refused("run", "--config", str(shell.folder))
    assert "larger than" in shell.refused("run", "--config", "/dev/zero")


class _Evil:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def test_weights_are_refused_and_never_executed(shell: Shell) -> None:
    mark, folder = shell.folder / "pwned", shell.folder
    torch.save({"a": _Evil(mark)}, folder / "evil.pt")
    (folder / "bare.pt").write_bytes(pickle.dumps(_Evil(mark)))
    (folder / "text.pt").write_text("hello\n")
    (folder / "empty.pt").touch()
    safetensors.torch.save_file({"a": torch.zeros(2)}, folder / "other.safetensors")
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[:-3])
    shown = {
        "evil.pt": "never executed",
        "bare.pt": "never executed",
        "text.pt": "not a readable weights file",
        "empty.pt": "not a readable weights file",
        "other.safetensors": "do not fit the network",
        "half.safetensors": "not a readable weights file",
        "nope.pt": "there is no file",
        ".": "there is no file",
    }
    for name, words in shown.items():
        weights = ("--teacher", "cifar_resnet20", "--teacher-weights", str(folder / name))
        assert words in shell.refused_run(*weights)
    assert not mark.exists()


def _images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def _bomb(file: Path) -> None:
    """Write a PNG of 100 bytes that claims 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_folders_that_are_no_data_set_are_refused(shell: Shell) -> None:
    folder = shell.folder
    (folder / "empty").mkdir()
    _images(folder / "one" / "train" / "cat", 12)
    _images(folder / "few" / "train" / "cat", 1)
    for name in ("broken", "bomb"):
        _images(folder / name / "train" / "cat", 20)
    for name in ("few", "broken", "bomb"):
        _images(folder / name / "train" / "dog", 20)
    (folder / "broken" / "train" / "cat" / "x.png").write_bytes(b"junk")
    _bomb(folder / "bomb" / "train" / "cat" / "x.png")
    shown = {
        "empty": "the folder is empty",
        "one": "at least two classes",
        "few": "'cat' (1)",
        "broken": "1 of 41 images cannot be read, more than 1%: train/cat/x.png",
        "bomb": "30000 x 30000 pixels, more than --max-megapixels 64",
    }
    for name, words in shown.items():
        assert words in shell.refused_run("--data", str(folder / name))


def test_a_file_in_the_way_of_the_results_is_named(shell: Shell) -> None:
    file = shell.folder / "file"
    file.touch()
    assert str(file) in shell.refused_run("--out", str(file))


def test_nothing_within_the_budget_trains_no_student(shell: Shell) -> None:
    answer = shell.run("--name", "tight", "--budget-mflops", "0.001")
    assert answer.code == 3
    assert "Traceback" not in answer.stderr
    assert re.search(r"cheapest, trial \d+ \(resnet\): 0\.0\d+ MFLOPs over 0.001", answer.stderr)
    assert not (shell.out / "tight" / "trials").exists()
    assert (shell.out / "tight" / "report.html").is_file()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_message_is_cut_between_words_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    class Errors(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    monkeypatch.setattr("sys.stderr", shown := Errors())
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--data", "digits", "--teacher", "no-such-teacher"])
    rows = shown.getvalue().splitlines()
    words = " ".join(rows).split()
    assert "cifar_resnet{20,32,44,56,110}," in words
    assert len(rows) > 3 if is_terminal else len(rows) == 1
    assert all(len(row) <= 40 or " " not in row for row in rows if is_terminal)


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:150])


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: (path / "study.db").write_bytes(b"garbage" * 100) and None, "not a database"),
    (lambda path: _half(path / "study.db"), "study.db"),
    (lambda path: _half(path / "study.yaml"), "study.yaml is damaged"),
    (lambda path: (path / "study.yaml").write_bytes(b"\xff\0") and None, "study.yaml is damaged"),
    (lambda path: (path / "study.yaml").unlink(), "no study"),
]


@pytest.mark.parametrize(("damage", "shown"), DAMAGES)
def test_damaged_study_is_refused_and_left_as_it_is(
    copied: Copies, damage: Callable[[Path], None], shown: str
) -> None:
    shell = copied("plain")
    path = shell.out / "plain"
    for log in path.glob("study.db-*"):
        log.unlink()  # SQLite would mend the file from its log
    damage(path)
    before = contents(path)
    assert shown in shell.refused("report", "plain")
    assert "plain" in shell.refused_run("--name", "plain")
    assert contents(path) == before


def test_another_configuration_is_refused_with_the_difference(copied: Copies) -> None:
    shell = copied("plain")
    path = shell.out / "plain"
    before = contents(path)
    message = shell.refused_run("--name", "plain", "--budget-ms", "5")
    assert "--budget-ms: 10.0 -> 5.0" in message
    message = shell.refused_run("--name", "plain", space=SPACE.replace("0.25", "0.2"))
    assert "--space: " in message
    assert contents(path) == before


def test_a_distillation_that_did_not_end_gives_its_name_back(shell: Shell) -> None:
    diverging = ("distill", "--name", "again", "--epochs", "1", "--out", str(shell.out))
    small = ("--set", "student.width=0.25", "--set", "student.depth=3", "--teacher-epochs", "1")
    for _ in range(2):
        message = shell.refused(*diverging, *small, "--set", "train.lr=1e30")
        assert "the loss became nan" in message
    assert (shell.out / "again").is_dir()
    (shell.out / "again" / "mine.txt").write_text("kept")
    assert "is not empty" in shell.refused(*diverging, *small)
    assert (shell.out / "again" / "mine.txt").read_text() == "kept"


def _studies(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("[!.]*"))
