"""One thread: the suite's networks are tiny, and threads only wait for one another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
import torch
from postgres import NoServerError, served

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", deadline=None)  # a shared machine stalls at times
hypothesis.settings.load_profile("suite")
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def fast_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder in memory where there is one: a trial is 5 commits, 9 ms each on a disk."""
    if os.access(_MEMORY, os.W_OK):
        with TemporaryDirectory(dir=_MEMORY) as name:
            yield Path(name)
    else:
        yield tmp_path_factory.mktemp("fast")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Return the URL of a PostgreSQL server that was started for these tests."""
    try:
        with served() as url:
            yield url
    except NoServerError as why:
        pytest.skip(str(why))
