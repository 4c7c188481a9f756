"""What a user may type wrong: one message that says what to do, the exit code, no traceback."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdsearch.__main__ import main
from kdsearch.cli import app

SPACE = """
student:
  family: {choice: [resnett, vit]}
train:
  lr: 1e-3
  epocs: 4
"""
HUNGRY = """
student:
  family: {choice: {resnet: {width: 1.0, depth: {int: [9, 12]}}}}
method: {name: none}
train: {epochs: 1}
"""


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything that a request may wrongly name."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "empty").mkdir()
    (root / "file").write_text("in the way")
    (root / "one" / "train" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "one" / "train" / "a" / "0.png")
    (root / "space.yaml").write_text(SPACE)
    (root / "hungry.yaml").write_text(HUNGRY)
    (root / "tag.yaml").write_text("data: !!python/object/apply:os.system ['true']\n")
    (root / "list.yaml").write_text("- data\n")
    (root / "unknown.yaml").write_text("dota: digits\n")
    (root / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (root / "evil.pt").write_bytes(pickle.dumps({"a": Evil(root / "ran")}))
    return root


def fails(arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and the message of `kdsearch`, `@` standing for the folder."""
    words = [word.replace("@", f"{folder}/") for word in arguments.split()]
    with pytest.raises(SystemExit) as caught:
        main(words)
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("kdsearch: ")
    assert isinstance(caught.value.code, int)
    return caught.value.code, message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rnu", "Did you mean 'run'"),
        ("run --budgetms 3", "--budget-ms"),
        ("run --trials abc", "--trials"),
        ("run --trials 0", "--trials 0"),
        ("run --time-limit -1", "--time-limit -1"),
        ("run --budget-ms 0", "--budget-ms 0: expected a number above 0"),
        ("run --budget-ms -1", "--budget-ms -1"),
        ("run --budget-mflops nan", "--budget-mflops nan"),
        ("run --epochs 0", "--epochs 0"),
        ("run --name ../x", "'../x'"),
        ("run --name a/b", "'a/b'"),
        ("run --data @nowhere", "nowhere"),
        ("run --data @empty", "empty"),
        ("run --data @one", "two classes"),
        ("run --data digts", "did you mean 'digits'"),
        ("run --subset 1 --out @out", "1"),
        ("run --device tpu", "'tpu'"),
        ("run --teacher resnet999 --out @out", "unknown teacher 'resnet999'"),
        ("run --teacher cifar_resnet56 --out @out", "--teacher-weights"),
        ("run --teacher-weights @damaged.safetensors --out @out", "--teacher"),
        (
            "run --teacher cifar_resnet56 --teacher-weights @damaged.safetensors --out @out",
            "damaged.safetensors",
        ),
        ("run --teacher cifar_resnet56 --teacher-weights @evil.pt --out @out", "evil.pt"),
        ("run --teacher cifar_resnet56 --teacher-weights @no.pt --out @out", "no.pt"),
        ("run --space nowhere", "'nowhere'"),
        ("run --config @tag.yaml", "tag.yaml"),
        ("run --config @list.yaml", "list.yaml"),
        ("run --config @unknown.yaml", "did you mean 'data'"),
        ("run --config @none.yaml", "none.yaml"),
        ("distill --method kdd --out @out", "did you mean 'kd'"),
        ("distill --student resnett --out @out", "did you mean 'resnet'"),
        ("distill --set student.wdth=1 --out @out", "did you mean 'width'"),
        ("distill --set width=1 --out @out", "--set 'width=1'"),
        ("distill --set train.lr=fast --out @out", "train.lr"),
        ("distill --alpha 2 --out @out", "alpha"),
        ("distill --temperature 0 --out @out", "temperature"),
        ("distill --method at --mapping sideways --out @out", "sideways"),
        ("measure resnet --input 3x32", "--input '3x32'"),
        ("measure nothing", "nothing"),
        ("list everything", "methods, students, teachers, data, spaces"),
        ("report nowhere --out @out", "no study"),
        ("dashboard nowhere --out @out", "no study"),
    ],
)
def test_a_wrong_request_ends_with_two_and_says_what_to_type(
    arguments: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = fails(arguments, folder, capsys)
    assert code == 2
    assert said in message
    assert len(message.splitlines()) <= 4
    assert not (folder / "ran").exists()


def test_every_mistake_of_a_space_is_told_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = fails("run --space @space.yaml", folder, capsys)
    assert code == 2
    lines = message.splitlines()
    assert [line.split("space.yaml:")[1][0] for line in lines] == ["3", "5", "6"]
    for word, line in zip(("resnett", "1e-3", "epocs"), lines, strict=True):
        assert word in line


def test_a_file_in_the_way_of_the_results_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = fails("run --out @file", folder, capsys)
    assert code == 2
    assert str(folder / "file") in message
    assert (folder / "file").read_text() == "in the way"


def test_nothing_fits_ends_with_three_and_names_the_cheapest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No candidate is trained: there are no curves."""
    code, message = fails(
        "run --out @hungry --name h --quiet --teacher-epochs 1 --trials 3 --budget-mflops 0.001"
        " --space @hungry.yaml",
        folder,
        capsys,
    )
    assert code == 3
    assert "MFLOPs over 0.001" in message
    assert not (folder / "hungry" / "h" / "trials").exists()
    assert (folder / "hungry" / "h" / "report.html").is_file()


def test_every_command_has_help_and_stands_in_the_readme(
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert len(names) == 6
    for name in names:
        assert f"kdsearch {name}" in readme
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert "Example: kdsearch" in " ".join(capsys.readouterr().out.split())
