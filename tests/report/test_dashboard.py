"""The study as optuna-dashboard serves it: figure, notes, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna_dashboard import save_note, wsgi
from table_study import look_up, opened, run_to

from kdsearch.report.dashboard import OURS, artifact_store, refresh, write_dashboard
from kdsearch.study.open import load_study
from kdsearch.study.storage_url import inside
from kdsearch.study.study import OpenStudy

TEACHER = dict.fromkeys(("val", "test", "flops", "params", "latency_ms")) | {
    "name": "auto",
    "val": 0.9,
    "params": 1000,
}
CURVE = "epoch,val_accuracy\n1,0.5\n"


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Dashboard:
    """A running optuna-dashboard on one study."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        with urlopen(f"{self._address}{path}", timeout=30) as answer:
            content: str = answer.read().decode()
            return content


@pytest.fixture(scope="module")
def path(fast_path: Path) -> Path:
    with opened(fast_path / "board") as study:
        study.update_facts(teacher=TEACHER, notes=["A <b>note</b>"])
        run_to(study, 8)
        keep_curve(study, 0)
        proposal = study.ask()
        study.tell(proposal, replace(look_up(proposal), state="failed", val=None, reason="a | b"))
        write_dashboard(study)
    return fast_path / "board"


def keep_curve(study: OpenStudy, number: int) -> None:
    folder = study.directory(number)
    folder.mkdir(parents=True)
    (folder / "curve.csv").write_text(CURVE)


@pytest.fixture(scope="module")
def dashboard(path: Path) -> Iterator[Dashboard]:
    app = wsgi(inside(path).full_url(), artifact_store=artifact_store(path))
    with make_server("127.0.0.1", 0, app, handler_class=_Silent) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Dashboard(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_the_dashboard_has_values_constraints_figure_notes_and_curves(
    dashboard: Dashboard, path: Path
) -> None:
    (listed,) = dashboard.get("/api/studies")["study_summaries"]
    study = dashboard.get(f"/api/studies/{listed['study_id']}")
    with opened(path) as reopened:
        records = reopened.records()
    assert study["objective_names"] == ["accuracy", "flops"]
    assert len(study["trials"]) == len(records) == 9
    for trial, record in zip(study["trials"], records, strict=True):
        if record.state == "complete":
            assert trial["values"][0] == record.val
        if record.state != "failed":
            assert trial["constraints"] == pytest.approx(list(record.violations.values()))
        assert str(record.params["student.family"]) in trial["note"]["body"]
    assert "a \\| b" in study["trials"][8]["note"]["body"]
    assert "A \\<b\\>note" in study["note"]["body"]
    (figure,) = study["plotly_graph_objects"]
    assert figure["id"] == "front"
    drawn = json.loads(figure["graph_object"])
    front = next(trace for trace in drawn["data"] if trace.get("name") == "front")
    assert front["x"]
    (artifact,) = study["trials"][0]["artifacts"]
    assert artifact["filename"] == "curve.csv"
    trial_id = study["trials"][0]["trial_id"]
    place = f"/artifacts/{listed['study_id']}/{trial_id}/{artifact['artifact_id']}"
    assert dashboard.text(place) == CURVE


def test_a_second_refresh_changes_nothing(path: Path) -> None:
    before = attrs_of(path)
    assert refresh(path)
    assert attrs_of(path) == before


def attrs_of(path: Path) -> dict[str, object]:
    store = load_study(path).store
    found: dict[str, object] = store.disk.get_study_system_attrs(store.study_id)
    return found


def test_a_note_of_a_user_is_kept(fast_path: Path) -> None:
    path = fast_path / "own words"
    with opened(path) as study:
        study.update_facts(teacher=TEACHER)
        run_to(study, 2)
    disk = load_study(path).store.disk
    save_note(optuna.load_study(study_name=path.name, storage=disk), "my own words")
    assert refresh(path)
    attrs = attrs_of(path)
    assert attrs["dashboard:note_str:0"] == "my own words"
    assert OURS in str(attrs["dashboard:1:note_str:0"])


def test_a_running_study_is_not_refreshed(fast_path: Path) -> None:
    path = fast_path / "held"
    with opened(path) as study:
        study.update_facts(teacher=TEACHER)
        run_to(study, 2)
        assert not refresh(path)
    assert not any(key.startswith("dashboard:") for key in attrs_of(path))
