"""The study as optuna-dashboard serves it: figure, notes, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna_dashboard import save_note
from table_study import look_up, opened, run_to

from kdsearch.report.dashboard import OURS, refresh, web_app, write_dashboard
from kdsearch.study.importances import rankings
from kdsearch.study.open import load_study
from kdsearch.study.ranking import COST, METRIC
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

    def status_of(self, method: str, path: str, body: object = None, **headers: str) -> int:
        """Return the HTTP status of a request with a JSON body."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        request = Request(f"{self._address}{path}", method=method, data=data, headers=headers)
        try:
            with urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def path(fast_path: Path) -> Path:
    with opened(fast_path / "board") as study:
        study.update_facts(teacher=TEACHER, notes=["A <b>note</b>"])
        run_to(study, 8)
        keep_curve(study, 0)
        proposal = study.ask()
        study.tell(proposal, replace(look_up(proposal), state="failed", val=None, reason="a | b"))
        best = study.front()[-1]
        control = study.ask_control({**best.params, "method.name": "none"}, best.number)
        study.tell(control, replace(look_up(control), state="complete", val=0.999))
        study.update_facts(best=best.number, shipped=best.number, test={str(best.number): 0.75})
        write_dashboard(study)
    return fast_path / "board"


def keep_curve(study: OpenStudy, number: int) -> None:
    folder = study.directory(number)
    folder.mkdir(parents=True)
    (folder / "curve.csv").write_text(CURVE)


@pytest.fixture(scope="module")
def dashboard(path: Path) -> Iterator[Dashboard]:
    with served(path) as board:
        yield board


@contextmanager
def served(path: Path) -> Iterator[Dashboard]:
    with (
        web_app(path, inside(path)) as app,
        make_server("127.0.0.1", 0, app, handler_class=_Silent) as server,
    ):
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
    assert len(study["trials"]) == len(records) == 10
    for trial, record in zip(study["trials"], records, strict=True):
        if record.state == "complete" and not record.kind:
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


def test_a_trial_has_plain_attributes(dashboard: Dashboard, path: Path) -> None:
    with opened(path) as reopened:
        records = reopened.records()
    trials = details(dashboard)["trials"]
    for trial, record in zip(trials, records, strict=True):
        found = {item["key"]: item["value"] for item in trial["user_attrs"]}
        assert found["kind"] == (record.kind or "search")
        assert found["outcome"] == record.state
        if record.cost is not None and record.cost.flops is not None:
            assert float(found["mflops"]) == pytest.approx(record.cost.flops / 1e6, rel=1e-3)


def test_a_control_is_not_on_the_front_of_the_dashboard(dashboard: Dashboard, path: Path) -> None:
    """It has the best metric of all; the record keeps its state and its metric."""
    with opened(path) as reopened:
        record = reopened.records()[-1]
        front = {entry.number for entry in reopened.front()}
    assert (record.kind, record.state, record.val) == ("control", "complete", 0.999)
    shown = details(dashboard)
    best = {trial["number"] for trial in shown["best_trials"]}
    assert front <= best  # and others that equal one of them
    assert record.number not in best
    assert not shown["trials"][-1].get("values")


def test_what_ships_is_in_its_note_and_in_the_attributes_of_the_study(
    dashboard: Dashboard, path: Path
) -> None:
    with opened(path) as reopened:
        shipped = reopened.facts.shipped
    shown = details(dashboard)
    ships = [t["number"] for t in shown["trials"] if "This trial ships" in t["note"]["body"]]
    assert ships == [shipped]
    assert "test accuracy 75.00" in shown["trials"][shipped]["note"]["body"]
    found = {item["key"]: item["value"] for item in shown["user_attrs"]}
    assert (found["shipped"], found["test accuracy"]) == (str(shipped), "0.75")


def test_the_dashboard_and_the_report_rank_parameters_alike(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the cost the report leaves out what has none: the rate of a training."""
    monkeypatch.setattr("optuna_dashboard._importance.param_importance_cache", {})
    path = fast_path / "ranked"
    with opened(path) as study:
        run_to(study, 60)
        ours = {each.of: each.values for each in rankings(study) if not each.option}
    with served(path) as board:
        metric, cost = board.get("/api/studies/1/param_importances")["param_importances"]

    theirs = {each["name"]: each["importance"] for each in metric}
    assert {"student.family", "student.resnet.depth", "train.lr"} <= theirs.keys()
    assert [item.name for item in ours[METRIC]] == list(theirs)
    assert {item.name: item.share for item in ours[METRIC]} == pytest.approx(theirs)
    kept = {each["name"]: each["importance"] for each in cost if "student." in each["name"]}
    assert [item.name for item in ours[COST]] == list(kept)
    assert len(kept) == len(cost) - 1
    total = sum(kept.values())
    assert {item.name: total * item.share for item in ours[COST]} == pytest.approx(kept)


def details(dashboard: Dashboard) -> Any:
    (listed,) = dashboard.get("/api/studies")["study_summaries"]
    return dashboard.get(f"/api/studies/{listed['study_id']}")


@pytest.mark.parametrize(
    ("method", "where", "headers"),
    [
        ("GET", "/api/studies", {"Host": "evil.example"}),  # DNS rebinding
        ("GET", "/api/studies", {"Host": "127.0.0.1.evil.example:80"}),
        ("PUT", "/api/studies/1/note", {"Origin": "http://evil.example"}),
        ("DELETE", "/api/studies/1", {}),
        ("POST", "/api/studies/1/rename", {}),
        ("POST", "/api/studies", {}),
        ("POST", "/api/artifacts/1", {}),
        ("PUT", "/api/studies/1/preference_feedback_component", {}),
    ],
)
def test_the_web_app_serves_this_machine_and_deletes_nothing(
    method: str, where: str, headers: dict[str, str], dashboard: Dashboard
) -> None:
    assert dashboard.status_of(method, where, **headers) == 403
    assert len(dashboard.get("/api/studies")["study_summaries"]) == 1


def test_the_web_app_lets_notes_be_written(dashboard: Dashboard) -> None:
    assert dashboard.status_of("PUT", "/api/studies/1/note", {"body": "mine", "version": 2}) == 204


def test_a_second_refresh_changes_nothing(path: Path) -> None:
    before = attrs_of(path)
    assert refresh(path) == ""
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
    disk = load_study(path, access="write").store.disk
    save_note(optuna.load_study(study_name=path.name, storage=disk), "my own words")
    assert refresh(path) == ""
    attrs = attrs_of(path)
    assert attrs["dashboard:note_str:0"] == "my own words"
    assert OURS in str(attrs["dashboard:1:note_str:0"])


def test_a_running_study_is_not_refreshed(fast_path: Path) -> None:
    path = fast_path / "held"
    with opened(path) as study:
        study.update_facts(teacher=TEACHER)
        run_to(study, 2)
        assert "running" in refresh(path)
    assert not any(key.startswith("dashboard:") for key in attrs_of(path))
