"""One thread: the suite's networks are tiny, and threads only wait for one another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
import torch
from postgres import NoServerError, served

import kdsearch.engines  # noqa: F401  sets what Ray reads at its import, before a test imports it
from kdsearch.deploy.targets import _local
from kdsearch.deploy.targets.base import Target
from kdsearch.deploy.timing import RoundLimits

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", deadline=None)  # a shared machine stalls at times
hypothesis.settings.load_profile("suite")
# Nothing here is held to a few per cent.
_local.ALONE_PROCESSES, _local.ALONE_SECONDS = 1, 0.2
Target.round_limits = RoundLimits(min_rounds=3, max_rounds=4)
TESTS = Path(__file__).parent
# Scripts that tests start import this tree, and the modules beside this file.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)
_MEMORY = Path("/dev/shm")
# Files that run in one process, by parts of their paths: they share a server, studies or the clock.
GROUPS = {
    "ray": ("test_ray_", "test_cli_ray"),
    "postgresql": ("test_store", "test_lease", "test_storage_url", "test_killed"),
    "timing": ("test_latency", "test_timing", "test_targets", "test_device_lock"),
    "command line": ("tests/cli/",),
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed-offset", type=int, default=0, help="added to torch's seeds")


def pytest_configure(config: pytest.Config) -> None:
    """Give networks other weights where an offset is given: no law depends on a seed."""
    offset = config.getoption("--seed-offset")
    if offset:
        seed = torch.manual_seed
        torch.manual_seed = lambda value: seed(value + offset)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give a test the same random numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture
def no_seed_offset(request: pytest.FixtureRequest) -> None:
    """Skip a test that compares with another process, which has no offset."""
    if request.config.getoption("--seed-offset"):
        pytest.skip("the other process has seeds of its own")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file, or of a group of files, in one process.

    The groups of `--dist loadgroup` do nothing here: pytest-xdist 3.8 adds them to a node's id by
    an attribute that pytest 9.2 no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            groups = (name for name, parts in GROUPS.items() if any(p in file for p in parts))
            return next(groups, file)

    return ByGroup(config, log)


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


@pytest.fixture
def browser_context(tmp_path: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS.split(),
            color_scheme="light",
        )
        yield context
        context.close()
