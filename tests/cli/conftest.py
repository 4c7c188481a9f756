"""Finished studies that tests here share, and the shells that type commands at them."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from quick import quick
from shell import SHAPES, SPACE, SPACES, Finished, Shell, run_line

from kdsearch.__main__ import main

MEMORY = Path("/dev/shm")
IN_MEMORY = MEMORY if os.access(MEMORY, os.W_OK) else None


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """Give SIGTERM back: `main` takes it over."""
    with _signals_kept():
        yield


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make studies quick, except where a test checks what a user gets."""
    if request.node.get_closest_marker("as_shipped"):
        yield
    else:
        with quick():
            yield


@pytest.fixture(scope="session")
def out() -> Iterator[Path]:
    """Return a results folder that all tests here share: the teacher is trained once."""
    with TemporaryDirectory(dir=IN_MEMORY) as name:
        yield Path(name) / "results"


@pytest.fixture
def shell(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Return a shell in the shared results folder; each study there needs a name of its own."""
    return Shell(out, tmp_path, capsys)


@pytest.fixture(scope="session")
def finished(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Return a function from a shape to its finished study, run once; change only copies of it."""

    @cache
    def run(shape: str) -> Finished:
        folder, space = tmp_path_factory.mktemp(shape), SPACES.get(shape, SPACE)
        line = run_line(out, folder, "--name", shape, *SHAPES[shape], space=space)
        with (
            quick(),
            _signals_kept(),
            redirect_stdout(io.StringIO()) as printed,
            pytest.raises(SystemExit) as ended,
        ):
            main(line)
        assert ended.value.code == 0, printed.getvalue()
        return Finished(out / shape, printed.getvalue())

    return run


@pytest.fixture
def copied(
    finished: Callable[[str], Finished], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], Shell]]:
    """Return a function from a shape to a shell whose results folder has a copy of that study."""
    with TemporaryDirectory(dir=IN_MEMORY) as name:

        def copy(shape: str) -> Shell:
            path = finished(shape).path
            shutil.copytree(path, Path(name) / shape)
            if not (Path(name) / ".cache").exists():
                (Path(name) / ".cache").symlink_to(path.parent / ".cache")
            return Shell(Path(name), tmp_path, capsys)

        yield copy


@contextmanager
def _signals_kept() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
