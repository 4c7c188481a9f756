"""The end of a run answers at a glance, and `ship` puts another trial in best/ on purpose."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from shell import Copies, Studies

from kdsearch.cli.result import result
from kdsearch.cli.tables import show
from kdsearch.report.advice import located
from kdsearch.report.artifacts import summarise
from kdsearch.report.tiles import tiles
from kdsearch.study.open import load_study
from kdsearch.version import VERSION


def numbers_agree(path: Path) -> None:
    """Check that front.json, best/metrics.json, card, page and terminal state one file."""
    front = json.loads((path / "front.json").read_text())
    metrics = json.loads((path / "best" / "metrics.json").read_text())
    shipped, onnx = front["shipped"], metrics["onnx"]
    names = ("latency_ms", "latency_low_ms", "latency_high_ms")
    assert [shipped[name] for name in names] == [onnx[name] for name in names]
    assert metrics["accuracy"] == {"validation": shipped["val"], "test": shipped["test"]}
    beside = {name: metrics[name] for name in ("layers", "ends")}
    stated = {**onnx, **beside}
    assert front["file"] == {name: stated[name] for name in front["file"]}
    assert sum(layer["flops"] for layer in beside["layers"]) == metrics["flops"]
    entry = next(entry for entry in front["front"] if entry["trial"] == front["best"])
    assert entry["latency_ms"] == onnx["latency_ms"]
    page = (path / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    card = (path / "best" / "README.md").read_text(encoding="utf-8")
    terminal = printed(path, 200)
    value = f"{onnx['latency_ms']:.3g}".rstrip("0")
    for text in (page, card, terminal):
        assert value in text
        assert f"{100 * shipped['test']:.2f}" in text
    size = f"{float(format(onnx['bytes'] / 1e6, '.3g')):g} MB"
    assert size in page
    assert size in terminal
    for tile in tiles(summarise(load_study(path))):
        assert tile.value.replace("\u00a0", " ") in page, tile


def printed(path: Path, width: int) -> str:
    """Return the result of a study as a terminal of that width shows it."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, no_color=True)
    show(*result(summarise(load_study(path)), path), console=console)
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


@pytest.mark.parametrize("shape", ["plain", "refitted"])
def test_a_shipped_file_has_one_latency_one_metric_and_one_size(
    finished: Studies, shape: str
) -> None:
    numbers_agree(finished(shape).path)


def test_text_breaks_between_words_at_80_columns(finished: Studies) -> None:
    path = finished("refitted").path
    shown = printed(path, 80)
    words = {
        word for line in located(summarise(load_study(path)).advice, path) for word in line.split()
    }
    assert words <= set(shown.split())
    long = [line for line in shown.splitlines() if len(line) > 80]
    assert all(len(line.split()) == 1 for line in long), long  # a path alone may be longer


def test_ship_puts_another_trial_of_the_front_in_best(copied: Copies) -> None:
    shell = copied("refitted")
    path = shell.out / "refitted"
    before = json.loads((path / "front.json").read_text())
    numbers = {entry["trial"] for entry in before["front"]}
    numbers |= {n for each in before["candidates"] for n in each["trained"]["trials"]}
    number = next(n for n in sorted(numbers) if n != before["shipped"]["trial"])
    answer = shell.type("ship", "refitted", "--trial", str(number), "--out", str(shell.out))
    assert answer.code == 0, answer
    after = json.loads((path / "front.json").read_text())
    assert after["shipped"]["trial"] == number
    assert (path / "exported" / f"{before['shipped']['trial']:06d}" / "student.onnx").is_file()
    weights = path / "trials" / f"{number:06d}" / "student.safetensors"
    assert (path / "best" / "student.safetensors").read_bytes() == weights.read_bytes()
    assert "by `kdsearch ship`" in " ".join(load_study(path).facts.notes)
    numbers_agree(path)
    again = shell.type("ship", "refitted", "--trial", str(number), "--out", str(shell.out))
    assert "in best/ already" in again.stdout


def test_licence_and_author_stay_when_another_trial_ships(copied: Copies) -> None:
    shell = copied("refitted")
    line = ("export", "refitted", "--format", "onnx", "--license", "mit", "--author", "A. Author")
    answer = shell.type(*line, "--out", str(shell.out))
    assert answer.code == 0, answer
    path = shell.out / "refitted"
    others = [e["trial"] for e in json.loads((path / "front.json").read_text())["front"]]
    answer = shell.type("ship", "refitted", "--trial", str(others[0]), "--out", str(shell.out))
    assert answer.code == 0, answer
    card = (path / "best" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "Licence: mit, by A. Author." in card


@pytest.mark.parametrize(("pick", "place"), [("accurate", -1), ("fastest", 0)])
def test_ship_picks_a_place_of_the_front(copied: Copies, pick: str, place: int) -> None:
    shell = copied("plain")
    answer = shell.type("ship", "plain", "--pick", pick, "--out", str(shell.out), "--json")
    assert answer.code == 0, answer
    front = json.loads(answer.stdout)
    assert front["shipped"]["trial"] == front["front"][place]["trial"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "give --trial NUMBER or --pick"),
        (("--trial", "0", "--pick", "knee"), "one of the two"),
        (("--pick", "fast"), "did you mean 'fastest'"),
        (("--trial", "99"), "no such trial"),
    ],
)
def test_what_cannot_ship_is_refused(copied: Copies, flags: tuple[str, ...], says: str) -> None:
    assert says in copied("plain").refused("ship", "plain", *flags)


def test_the_version_is_printed(copied: Copies) -> None:
    assert copied("plain").type("--version").stdout == f"kdsearch {VERSION}\n"
