"""Callbacks of a study: one that raises is logged and dropped; any may stop the search."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from table_study import look_up, opened, run_search

from kdsearch.errors import SpecError, StopStudy
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.loggers import Loggers, names
from kdsearch.study.stop_conditions import StopConditions
from kdsearch.training.trainer import Epoch

EPOCH = Epoch(number=1, losses={"loss": 1.0}, val=0.5, lr=0.1, seconds=1.0)


class Notebook(Callback):
    """Keeps its messages and epochs, and how many threads called it at a time."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.epochs: list[int] = []
        self.inside = self.most_inside = 0

    def on_message(self, text: str) -> None:
        self.notes.append(text)

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.002)
        self.epochs.append(number)
        self.inside -= 1


class Broken(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        self.calls += 1
        raise ZeroDivisionError("no disk")


def test_a_callback_that_raises_is_dropped_and_the_others_are_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, notebook = Broken(), Notebook()
    callbacks = Callbacks([broken, notebook])
    with caplog.at_level(logging.ERROR, logger="kdsearch"):
        for number in range(3):
            callbacks.on_epoch(number, EPOCH, 2)
    assert broken.calls == 1
    assert notebook.epochs == [0, 1, 2]
    (note,) = notebook.notes
    assert "Broken failed" in note
    assert "ZeroDivisionError: no disk" in note
    assert "Traceback" in caplog.text


def test_an_interrupt_is_no_failure_of_a_callback() -> None:
    class Interrupted(Callback):
        def on_message(self, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Interrupted()]).on_message("")


def test_callbacks_run_in_one_thread_at_a_time() -> None:
    notebook = Notebook()
    callbacks = Callbacks([notebook])
    threads = [
        threading.Thread(target=callbacks.on_epoch, args=(number, EPOCH, 2)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(notebook.epochs) == list(range(8))
    assert notebook.most_inside == 1


CALLBACK = """
from kdsearch import StopStudy
LIMIT = 3
def after(study, record):
    with open(study.path / "events.txt", "a") as file:
        file.write(f"{record.number} {record.state} {len(study.records())}\\n")
    if record.number == 2:
        raise StopStudy("three are enough")
"""


def test_a_function_gets_each_trial_and_may_stop_the_study(fast_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACK)
    loggers = Loggers(callback=f"{tmp_path / 'mine.py'}:after")
    notebook = Notebook()
    with opened(fast_path / "called") as study:
        callbacks = Callbacks([notebook, *loggers.open(study)])

        def on_trial(record: TrialRecord) -> None:
            callbacks.on_trial_end(record, None)

        ending = StopConditions(study, callbacks)
        run_search(study, [look_up], n_trials=9, on_trial=on_trial, is_enough=ending)
        records = study.records()
    assert len(records) == 3
    message = (fast_path / "called" / "events.txt").read_text().splitlines()
    assert message == [f"{r.number} {r.state} {r.number + 1}" for r in records]
    assert notebook.notes == ["No further trial: three are enough"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine.py:aftr", "defines no 'aftr' (did you mean 'after'?); it defines after"),
        ("mine.py:LIMIT", "expected a function (study, record), found a int"),
        ("none.py:after", "there is no file"),
    ],
)
def test_a_callback_that_is_no_function_is_refused_at_once(
    tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / "mine.py").write_text(CALLBACK)
    with pytest.raises(SpecError) as caught:
        Loggers(callback=str(tmp_path / name))
    assert expected in str(caught.value)
    assert "--callback" in str(caught.value)


MINE = """
from kdsearch.study.loggers import Logger

class Mine(Logger):
    def on_trial_end(self, record, best):
        raise ZeroDivisionError

def after(study, record):
    raise ZeroDivisionError
"""


def test_a_dropped_callback_is_named_by_its_option(fast_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    names = (f"{tmp_path / 'mine.py'}:Mine", f"{tmp_path / 'mine.py'}:after")
    loggers = Loggers(["tensorboard", names[0], names[0]], callback=names[1])
    notebook = Notebook()
    with opened(fast_path / "dropped") as study:
        callbacks = Callbacks([notebook, *loggers.open(study)])
        run_search(study, [look_up], n_trials=2, on_trial=lambda r: callbacks.on_trial_end(r, None))
        callbacks.close()
    assert [note.split(" failed and")[0] for note in notebook.notes] == [
        f"--log {names[0]}",
        f"--callback {names[1]}",
    ]


def test_loggers_are_known_by_the_names_of_their_files() -> None:
    assert names() == ("mlflow", "tensorboard", "wandb")
    with pytest.raises(SpecError, match="did you mean 'tensorboard'"):
        Loggers(["tensorbord"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.delitem(__import__("sys").modules, "kdsearch.study.loggers.wandb", raising=False)
    with pytest.raises(SpecError, match=r"pip install \"wandb>="):
        Loggers(["wandb"])


def test_a_flat_search_ends_with_a_message(fast_path: Path) -> None:
    notebook = Notebook()
    with opened(fast_path / "flat") as study:
        ending = StopConditions(study, Callbacks([notebook]), flat_after=5)
        run_search(study, [look_up], n_trials=100, is_enough=ending)
        assert len(study.records()) < 100
        assert not StopConditions(study, Callbacks([]), flat_after=0)()
    (note,) = notebook.notes
    assert "the last 5 complete trials" in note
    assert "--flat-after 0 never stops" in note


def test_the_time_limit_ends_a_search_with_a_message(fast_path: Path) -> None:
    notebook = Notebook()
    with opened(fast_path / "late") as study:
        ending = StopConditions(study, Callbacks([notebook]), time_limit=1e-9)
        run_search(study, [look_up], n_trials=5, is_enough=ending)
        assert study.records() == []
    assert notebook.notes[0].startswith("No further trial: the time limit of")


def test_stop_study_needs_no_words() -> None:
    class Stops(Callback):
        def on_message(self, text: str) -> None:
            raise StopStudy

    callbacks = Callbacks([Stops()])
    callbacks.on_message("")
    assert callbacks.stopped == "a callback stopped the study"
