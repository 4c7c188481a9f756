"""A storage is any database; its password is in no message, no file and no log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from postgres import PASSWORD, QUOTED
from table_study import REQUEST, run_to, tell_next

from kdsearch.errors import SpecError, StudyError
from kdsearch.study.config import StudyConfig, read_config
from kdsearch.study.facts import StudyFacts
from kdsearch.study.open import load_each, load_study, open_study, reach
from kdsearch.study.storage_url import inside, kept_url, read_url, shown, storage_of
from kdsearch.study.study import OpenStudy

WHERE = "postgresql://me:s3cret@db.example:5432/studies"
KEPT = "postgresql+psycopg://me:***@db.example:5432/studies"


def in_database(url: str, name: str) -> StudyConfig:
    return replace(REQUEST, storage=shown(read_url(url)), storage_study=name)


@contextmanager
def opened(path: Path, config: StudyConfig, url: str | None) -> Iterator[OpenStudy]:
    with open_study(path, config, versions={"kdsearch": "0"}, storage=url) as study:
        yield study


def test_a_study_in_a_database_resumes_as_one_in_its_folder(
    postgres_url: str, tmp_path: Path
) -> None:
    """The law of SQLite: killed after any trial, or within one, it proposes the same."""
    with opened(tmp_path / "whole", REQUEST, None) as study:
        whole = run_to(study, 12)
    path, config = tmp_path / "table", in_database(postgres_url, "goes-on")
    for number in (3, 7):
        with opened(path, config, postgres_url) as study:
            run_to(study, number)
            study.ask()  # and the driver dies
    with opened(path, config, postgres_url) as study:
        assert [r.state for r in study.records()].count("interrupted") == 2
        records = [r for r in run_to(study, 12) if r.state != "interrupted"]
        assert study.facts == StudyFacts()
    assert [replace(r, number=0) for r in records] == [replace(r, number=0) for r in whole]
    assert not (path / "study.db").exists()
    assert load_study(path, postgres_url).records() == study.records()


def test_a_second_driver_is_refused_from_another_folder_too(
    postgres_url: str, tmp_path: Path
) -> None:
    config = in_database(postgres_url, "twice")
    with opened(tmp_path / "one", config, postgres_url) as study:
        tell_next(study)
        with (
            pytest.raises(StudyError, match="is being run by process"),
            opened(tmp_path / "copy", config, postgres_url),
        ):
            pass
    with opened(tmp_path / "copy", config, postgres_url) as study:
        assert len(study.records()) == 1


def test_the_password_is_written_nowhere(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path, config = tmp_path / "table", in_database(postgres_url, "secret")
    with opened(path, config, postgres_url) as study:
        tell_next(study)
    wrong = postgres_url.replace(QUOTED, "wr0ng%25")
    with pytest.raises(StudyError, match="cannot open") as refused, opened(path, config, wrong):
        pass
    gone = postgres_url.replace("host=/tmp", "host=/nowhere")
    with pytest.raises(StudyError, match="cannot open") as missing, opened(path, config, gone):
        pass
    message = "".join(
        "".join(traceback.format_exception(caught.value)) for caught in (refused, missing)
    )
    kept = (path / "study.yaml").read_text(encoding="utf-8")
    for text in (message, kept, caplog.text, repr(read_config(path)), repr(study.config)):
        for secret in (PASSWORD, QUOTED, "wr0ng%", "wr0ng%25"):
            assert secret not in text
    assert "PGPASSWORD" in message
    assert ":***@" in kept


def test_libpqs_own_password_opens_a_study_without_the_flag(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "table", in_database(postgres_url, "pgpassword")
    with opened(path, config, postgres_url) as study:
        tell_next(study)
    with pytest.raises(StudyError, match=r"no password supplied.*PGPASSWORD"):
        load_study(path)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert len(load_study(path).records()) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:s3cret@no-such-host.invalid/db", "failed to resolve host"),
        ("postgresql://me:s3cret@127.0.0.1:1/db", "Connection refused"),
    ],
)
def test_an_unreachable_storage_raises_without_the_password(
    url: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(
        StudyError, match=f"{message}.*are its host, port and database right"
    ) as error:
        reach(tmp_path / "far", in_database(url, "far"), url)
    assert "password" not in str(error.value).lower()


def test_a_server_that_refuses_raises_with_its_reason(postgres_url: str, tmp_path: Path) -> None:
    wrong = postgres_url.replace(QUOTED, "wr0ng")
    with pytest.raises(StudyError, match=r"authentication failed.*the right password"):
        reach(tmp_path / "wrong", in_database(wrong, "wrong"), wrong)
    none = postgres_url.replace("/postgres?", "/nodb?")
    with pytest.raises(StudyError, match=r"\"nodb\" does not exist; are its host, port and data"):
        reach(tmp_path / "none", in_database(none, "none"), none)


def test_studies_of_one_name_are_kept_apart() -> None:
    from kdsearch.workflows.resolve import with_storage

    names = {
        with_storage(StudyConfig(), WHERE, "phones", is_new=True).storage_study for _ in range(2)
    }
    assert len(names) == 2
    assert all(str(name).startswith("phones-") for name in names)


@pytest.mark.parametrize(
    ("given", "is_same"),
    [
        ("postgresql://me:other@db.example:5432/studies", True),
        ("postgresql+psycopg://you@db.example:5432/studies", True),
        ("postgresql://me:s3cret@other.example:5432/studies", False),
        ("postgresql://me:s3cret@db.example:5433/studies", False),
        ("postgresql://me:s3cret@db.example:5432/others", False),
        ("sqlite:///studies", False),
    ],
)
def test_another_password_is_the_same_place_and_another_host_is_not(
    given: str, is_same: bool
) -> None:
    if is_same:
        assert kept_url(given, KEPT, is_new=False) == KEPT
        return
    with pytest.raises(StudyError, match="the study's trials are in ") as caught:
        kept_url(given, KEPT, is_new=False)
    assert "s3cret" not in str(caught.value)


def test_what_is_kept_has_no_password_and_what_is_used_has() -> None:
    assert kept_url(WHERE, None, is_new=True) == KEPT
    with pytest.raises(StudyError, match=r"are in its own study\.db"):
        kept_url(WHERE, None, is_new=False)
    assert kept_url(None, None, is_new=True) is None
    path = Path("results/phones")
    assert storage_of(path, StudyConfig(), None) == inside(path)
    config = StudyConfig(storage=KEPT, storage_study="phones-1")
    used = storage_of(path, config, WHERE)
    assert "s3cret" in used.full_url()
    assert "s3cret" not in f"{used} {used!r}"
    assert storage_of(path, config, None).url.password is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3cret", "expected an SQLAlchemy URL"),
        ("postgresql://me:s3cret@host:port/db", "expected an SQLAlchemy URL"),
        ("postgresql://me@host/db?password=s3cret", "'password' after the '\\?' would be kept"),
        ("postgres_://me:s3cret@host/db", r"'postgres_' \(did you mean 'postgresql'\?\)"),
        ("postgresql://me:s3cret@host", "names no database"),
        ("sqlite://", "names no database"),
        ("mysql+pymysql://me:s3cret@host/db", "mysql needs pymysql: pip install pymysql"),
    ],
)
def test_an_impossible_url_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"--storage.*{message}") as caught:
        read_url(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_studies_are_read_side_by_side_wherever_they_are(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    for name, config, given in (
        ("there", in_database(url, "there"), url),
        ("also", in_database(url, "also"), None),
        ("here", REQUEST, None),
        ("elsewhere", in_database(f"sqlite:///{tmp_path}/other.db", "elsewhere"), None),
    ):
        with opened(tmp_path / name, config, given) as study:
            run_to(study, 1)
    paths = {name: tmp_path / name for name in ("there", "also", "here", "elsewhere")}
    for names in (("there", "here"), ("elsewhere", "also"), ("there", "also")):
        studies = load_each([paths[name] for name in names], url)
        assert [(study.name, len(study.records())) for study in studies] == [(n, 1) for n in names]
    with pytest.raises(StudyError, match=r"trials are in its own study\.db, not in sqlite"):
        load_each([paths["here"], paths["elsewhere"]], url)


@pytest.mark.slow
def test_a_study_through_the_command_line(postgres_url: str, tmp_path: Path) -> None:
    """Run, reported, refused elsewhere: the password only in the environment."""
    without = postgres_url.replace(f":{QUOTED}@", "@")
    environment = {**os.environ, "PGPASSWORD": PASSWORD}

    def kdsearch(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdsearch", *arguments, "--out", str(tmp_path)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    small = ("--name", "pg", "--epochs", "1", "--teacher-epochs", "1", "--budget-mflops", "1000")
    first = kdsearch("run", *small, "--trials", "1", "--storage", without)
    assert first.returncode == 0, first.stderr
    assert kdsearch("report", "pg").returncode == 0
    number = str(json.loads(kdsearch("report", "pg", "--json").stdout)["best"])
    for reading in (("compare", "pg", "pg"), ("export", "pg", "--trial", number)):
        message = kdsearch(*reading, "--storage", without)
        assert message.returncode == 0, message.stderr
        message = kdsearch(*reading, "--storage", "sqlite:///elsewhere.db")
        assert (message.returncode, "the study's trials are in" in message.stderr) == (2, True)
    moved = kdsearch("run", "--name", "pg", "--storage", "sqlite:///elsewhere.db")
    assert (moved.returncode, "the study's trials are in postgresql" in moved.stderr) == (2, True)
    for file in tmp_path.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            assert PASSWORD.encode() not in file.read_bytes(), file
