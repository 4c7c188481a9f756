"""A tiny study, run once: what the command line is asked about."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from shell import Shell

MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """Give SIGTERM back: `main` takes it over."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def out() -> Iterator[Path]:
    """Return a results folder that all tests here share: the teacher is trained once."""
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        yield Path(name) / "results"


@pytest.fixture
def shell(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Return what types a command line in this process."""
    return Shell(out, tmp_path, capsys)
