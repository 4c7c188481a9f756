"""A download has a line before it, and cached weights have none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import torchvision
from rich.console import Console

from kdsearch import downloads
from kdsearch.cli.live import StudyConsole
from kdsearch.errors import SpecError
from kdsearch.models.inherit import source
from kdsearch.teachers import networks

LINE = "Downloading the pretrained weights of {} from {}\n"


def printed(console: io.StringIO) -> StudyConsole:
    return StudyConsole(console=Console(file=console, width=200))


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give an empty cache, and a server that answers and sends nothing."""

    def download(*_: object, **__: object) -> None:
        raise OSError("the line broke")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(source, "unreachable", lambda _: "")


@pytest.mark.usefixtures("no_cache")
def test_weights_of_students_and_teachers_have_a_line_before_their_download() -> None:
    shown, name = io.StringIO(), "torchvision:resnet18"
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    line = LINE.format(name, url.partition("/models/")[0])
    with printed(shown), pytest.raises(SpecError, match="the line broke"):
        source.locate([name], {})
    assert shown.getvalue() == line
    with printed(shown), pytest.raises(SpecError, match="cannot be downloaded"):
        networks._torchvision("resnet18", None)
    assert shown.getvalue() == 2 * line


@pytest.mark.usefixtures("no_cache")
def test_cached_weights_have_no_line(tmp_path: Path) -> None:
    shown = io.StringIO()
    url = "https://weights.example/models/resnet18-1.pth"
    with printed(shown):
        source.announce_download("mine", url)
    assert shown.getvalue() == LINE.format("mine", "https://weights.example")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-1.pth").touch()
    with printed(shown):
        source.announce_download("mine", url)
    assert shown.getvalue().count("\n") == 1


def test_a_quiet_or_closed_console_shows_no_line() -> None:
    shown = io.StringIO()
    with StudyConsole(quiet=True, console=Console(file=shown)):
        downloads.announce("x")
    with printed(shown):
        pass
    downloads.announce("x")
    assert shown.getvalue() == ""
