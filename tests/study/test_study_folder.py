"""A study is its folder: it may be renamed, copied or read-only; readers write nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from table_study import REQUEST, opened, run_to, tell_next

from kdsearch.errors import StudyError
from kdsearch.report.status import status
from kdsearch.spec import TrialRecord
from kdsearch.study import storage_url
from kdsearch.study.callbacks import Callback
from kdsearch.study.lease import LEASE, Holder
from kdsearch.study.open import load_study
from kdsearch.study.preparation import FILE, Preparation
from kdsearch.study.storage_url import inside

N = 3


@pytest.fixture
def study(fast_path: Path, tmp_path: Path) -> Iterator[Path]:
    path = fast_path / tmp_path.name / "first"
    with opened(path) as study:
        run_to(study, N)
    yield path
    shutil.rmtree(path.parent)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def said(path: Path) -> dict[str, str]:
    """Return what each file says but the lock and SQLite's working files: a database as SQL."""
    found = {}
    for file in sorted(path.iterdir()):
        if file.suffix in (".db", ".yaml"):
            found[file.name] = repr(file.read_bytes())
            with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(file)) as database:
                found[file.name] = "".join(database.iterdump())
    return found


def trials(path: Path) -> list[TrialRecord]:
    return load_study(path).records()


def renamed(path: Path) -> Path:
    return path.rename(path.with_name("second"))


def copied(path: Path) -> Path:
    return Path(shutil.copytree(path, path.with_name("copy of it")))


def moved(path: Path) -> Path:
    path.with_name("else?where#1%20").mkdir()
    return path.rename(path.with_name("else?where#1%20") / "third")


@pytest.mark.parametrize("change", [renamed, copied, moved])
def test_a_study_elsewhere_has_its_trials_and_goes_on(
    change: Callable[[Path], Path], study: Path
) -> None:
    before = trials(study)
    path = change(study)
    assert trials(path) == before
    with opened(path) as again:
        assert again.records() == before
        tell_next(again)
    assert trials(path)[:N] == before
    assert len(trials(path)) == N + 1


def test_readers_write_nothing(study: Path) -> None:
    before = files(study)
    assert len(trials(study)) == N
    assert files(study) == before


def killed_copy(study: Path) -> Path:
    """Return a copy with the log of a driver that was killed: SQLite has not merged it."""
    with opened(study) as running:
        tell_next(running)
        path = copied(study)
    (path / "study.db-shm").unlink()
    assert (path / "study.db-wal").stat().st_size > 0
    return path


def test_a_killed_study_is_read_and_its_log_left_as_it_is(study: Path) -> None:
    path = killed_copy(study)
    before = files(path)
    assert len(trials(path)) == N + 1
    after = files(path)
    after.pop("study.db-shm", None)  # SQLite's index of the log
    assert after == before


def test_a_killed_study_in_a_read_only_folder_is_read_from_a_copy(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = killed_copy(study)
    before = files(path)
    may = os.access
    monkeypatch.setattr(  # root may write anywhere
        storage_url.os, "access", lambda where, mode: where != path and may(where, mode)
    )
    assert len(trials(path)) == N + 1
    assert files(path) == before


def test_a_finished_study_is_read_where_nothing_may_be_written(study: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    for file in (study.parent.parent, study.parent, study, *study.iterdir()):
        file.chmod(0o555)
    code = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from pathlib import Path; from kdsearch.study.open import load_study\n"
        f"print(len(load_study(Path({str(study)!r})).records()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    for file in (study.parent.parent, study.parent, study):
        file.chmod(0o755)
    if "StudyError" not in found.stderr and found.returncode:
        pytest.skip("that user cannot read the interpreter")
    assert found.stdout.strip() == str(N), found.stderr


def without(path: Path) -> None:
    (path / "study.db").unlink()


def emptied(path: Path) -> None:
    (path / "study.db").write_bytes(b"")


def of_something_else(path: Path) -> None:
    (path / "study.db").unlink()
    with closing(sqlite3.connect(path / "study.db")) as database, database:
        database.execute("CREATE TABLE other (x)")


def without_trials(path: Path) -> None:
    with closing(sqlite3.connect(path / "study.db")) as database, database:
        database.execute("DROP TABLE trials")


def with_two(path: Path) -> None:
    optuna.create_study(study_name="mine", storage=inside(path).full_url())


def deleted_in_the_dashboard(path: Path) -> None:
    optuna.delete_study(study_name="first", storage=inside(path).full_url())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, r"a study\.yaml and no study\.db, which holds its trials; restore it"),
        (emptied, "cannot open .*no such table.*restore it from a copy"),
        (of_something_else, "cannot open .*no such table.*restore it from a copy"),
        (without_trials, "cannot open .*no such table.*restore it from a copy"),
        (with_two, r"holds 2 studies \(first, mine\); expected one"),
        (deleted_in_the_dashboard, "holds no study; expected one. Restore it from a copy"),
    ],
)
def test_lost_trials_are_said_and_no_study_is_made_over_them(
    damage: Callable[[Path], None], message: str, study: Path
) -> None:
    damage(study)
    before = said(study)
    for open_it in (lambda: load_study(study), lambda: opened(study).__enter__()):
        with pytest.raises(StudyError, match=message):
            open_it()
    assert said(study) == before


def test_a_study_renamed_in_the_dashboard_goes_on(study: Path) -> None:
    before = trials(study)
    optuna.copy_study(
        from_study_name="first",
        to_study_name="renamed",
        from_storage=inside(study).full_url(),
        to_storage=inside(study).full_url(),
    )
    deleted_in_the_dashboard(study)
    assert trials(study) == before


def test_a_new_study_writes_over_no_remains_of_another(study: Path) -> None:
    (study / "study.yaml").unlink()
    with pytest.raises(StudyError, match=r"holds study\.db and no study\.yaml"), opened(study):
        pass
    (study / "study.db").unlink()
    (study / "best").mkdir()
    with pytest.raises(StudyError, match=r"holds best and no study\.yaml"), opened(study):
        pass


def test_a_crash_before_the_first_trial_leaves_a_study_that_starts(study: Path) -> None:
    path = study.with_name("crashed")
    with opened(path):
        pass
    (path / "study.yaml").unlink()
    with opened(path) as again:
        tell_next(again)
    assert len(trials(path)) == 1


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(study: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me")
    (study / ".lock").unlink()
    (study / ".lock").symlink_to(target)
    with pytest.raises(StudyError, match="cannot write to"), opened(study):
        pass
    assert target.read_text() == "keep me"


def test_a_driver_whose_lock_was_deleted_keeps_its_study(study: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from table_study import opened\n"
        f"with opened(Path({str(study)!r})):\n    print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        (study / ".lock").unlink()
        with (
            pytest.raises(StudyError, match=f"is being run by process {other.pid} "),
            opened(study),
        ):
            pass
        other.kill()
    with opened(study) as again:
        assert len(again.records()) == N


def test_a_run_is_known_before_its_study_is_there(tmp_path: Path) -> None:
    path = tmp_path / "results" / "new"
    with pytest.raises(StudyError, match="there is no study"):
        status(path)
    with Preparation(Callback(), started=time.perf_counter()) as preparation:
        preparation.begin(path)
        assert status(path).lines()[0] == "new: running, reading the images"
        assert status(path).counts.complete == 0
    assert not path.exists()


def test_a_study_that_is_prepared_again_shows_its_trials_and_the_stage(study: Path) -> None:
    with Preparation(Callback(), started=time.perf_counter()) as preparation:
        preparation.begin(study)
        found = status(study)
        assert (found.state, found.stage) == ("running", "reading the images")
        assert found.counts.complete + found.counts.rejected + found.counts.failed == N
    assert not (study / FILE).exists()
    assert status(study).stage == ""


def test_the_stage_of_a_killed_run_is_ignored(study: Path) -> None:
    with Preparation(Callback(), started=time.perf_counter()) as preparation:
        preparation.begin(study)
        text = (study / FILE).read_text()
    me, dead = Holder.here(), 2**22 + 1
    (study / FILE).write_text(text.replace(f'"pid": {me.pid}', f'"pid": {dead}'))
    assert status(study).state == "new"


def test_configurations_of_one_folder_still_differ(study: Path) -> None:
    with (
        pytest.raises(StudyError, match="was started with another configuration"),
        opened(renamed(study), replace(REQUEST, seed=4)),
    ):
        pass


@pytest.mark.parametrize(
    "note", ['{"zzz": 5, "params": {}, "digest": ""}', "{bad", "5", "[1]", '{"cost": {"watts": 1}}']
)
def test_the_note_of_a_trial_that_cannot_be_read_is_named(note: str, study: Path) -> None:
    with closing(sqlite3.connect(study / "study.db")) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = ?", [json.dumps(note)])
    with pytest.raises(StudyError, match="the note of trial 0 is damaged, or a newer kdsearch"):
        trials(study)


@pytest.mark.parametrize("lease", ['"text"', "{bad", '{"holder": {"pid": 1}, "time": 0}'])
def test_a_lease_that_cannot_be_read_is_named(lease: str, study: Path) -> None:
    with closing(sqlite3.connect(study / "study.db")) as database, database:
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = ?", [lease, LEASE]
        )
    message = "the lease of the study is damaged|cannot open .*restore it from a copy"
    with pytest.raises(StudyError, match=message), opened(study):
        pass
