"""Killed with -9 again and again, a study loses nothing, doubles nothing and ends as if untouched.

Trials are looked up, so that nearly every kill falls on the store. On SQLite and on a
PostgreSQL server.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, opened, run_to

from kdsearch.spec import TrialRecord
from kdsearch.study.open import load_study, open_study
from kdsearch.study.storage_url import read_url, shown

N = 14
KILLS = 4
DRIVER = """
import json, sys, time
from pathlib import Path
from table_study import REQUEST, look_up, run_search
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import open_study
path, n, url, config = json.loads(sys.argv[1])
def slow(proposal):
    time.sleep(0.02)
    return look_up(proposal)
with open_study(Path(path), StudyConfig(**config), versions={"k": "0"}, storage=url) as study:
    print("open", flush=True)
    run_search(study, [slow], n_trials=n)
"""


def plain(records: list[TrialRecord]) -> list[TrialRecord]:
    """Return what ended, whatever number it had."""
    return [replace(r, number=0) for r in records if r.state not in ("interrupted", "running")]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_study_killed_at_random_moments_ends_as_an_untouched_one(
    database: str, fast_path: Path, request: pytest.FixtureRequest
) -> None:
    with opened(fast_path / f"whole-{database}") as study:
        whole, front = plain(run_to(study, N)), plain(study.front())
    path, requested, url = fast_path / f"killed-{database}", REQUEST, None
    if database == "postgresql":
        url = request.getfixturevalue("postgres_url")
        requested = replace(requested, storage=shown(read_url(url)), storage_study="killed")
    given = {name: getattr(requested, name) for name in ("space", "budget_mflops", "seed")}
    given |= {"storage": requested.storage, "storage_study": requested.storage_study}
    command = [sys.executable, "-c", DRIVER, json.dumps([str(path), N, url, given])]
    chance, before, kills = random.Random(0), [], 0
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"open\n"
            time.sleep(chance.uniform(0, 0.3))
            driver.kill()
        kills += driver.returncode == -signal.SIGKILL
        after = plain(load_study(path, url).records())
        assert after[: len(before)] == before
        before = after
    assert kills >= 2
    with open_study(path, requested, versions={"kdsearch": "0"}, storage=url) as study:
        assert plain(run_to(study, N)) == whole
        assert plain(study.front()) == front
