"""Ray runs the trials that the local engine would, wherever its actors are, also when they die."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from table_study import SMALL_SPACE, look_up, opened, run_to

from kdsearch.engines.dispatch import OnTrial, TrialQueue, search
from kdsearch.errors import SpecError, StudyError
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.storage_url import inside
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal, TrialOutcome

ray_cluster = pytest.importorskip("kdsearch.engines.ray_cluster")
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from kdsearch.engines import ray_tune  # noqa: E402

connected, room = ray_cluster.connected, ray_cluster.room

TIMEOUT = 20.0
DOOMED = 15  # from this trial on, one on the node that is killed waits for that


@pytest.fixture(scope="module")
def _path() -> Iterator[None]:
    """Let actors import what is here; they are started with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture(scope="class")
def _ray(_path: None) -> Iterator[None]:
    with connected(cpus=2):
        yield


def table(proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    return look_up(proposal)


def run_search(
    study: OpenStudy,
    evaluate: ray_tune.Evaluate,
    *,
    n_trials: int,
    workers: int = 1,
    is_enough: Callable[[], bool] = lambda: False,
    timeout: float | None = None,
    on_trial: OnTrial | None = None,
    on_end: OnTrial | None = None,
    on_progress: ray_tune.OnProgress | None = None,
    start: ray_tune.Start | None = None,
) -> list[TrialRecord]:
    source = search(study, n_trials=n_trials, is_enough=is_enough)
    ray_tune.run(
        TrialQueue(study, source, on_trial=on_trial),
        start or partial(partial, evaluate),
        workers=workers,
        timeout=timeout,
        on_end=on_end,
        on_progress=on_progress,
    )
    return study.records()


def without_times(records: list[TrialRecord]) -> list[TrialRecord]:
    return [replace(record, seconds=0.0) for record in records]


def left(folder: Path, name: str) -> int:
    """Leave a line in a file, and return how many it has."""
    with (folder / name).open("a+") as file:
        file.write(f"{os.getpid()}\n")
        file.seek(0)
        return len(file.readlines())


@pytest.mark.slow
def test_a_missing_cluster_raises() -> None:
    reported = r"--ray-address 127.0.0.1:1: .*Connection refused.*`ray start --head`"
    with pytest.raises(StudyError, match=reported), connected("127.0.0.1:1"):
        pass


ENDED = "Ray has ended on this machine: "


@pytest.mark.parametrize("is_alive", [True, False])
def test_the_end_of_the_own_node_ends_the_run_and_that_of_another_does_not(
    is_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"NodeID": "here", "Alive": is_alive}, {"NodeID": "far", "Alive": not is_alive}]
    here = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    search = SimpleNamespace(error=None)
    stopper = ray_tune._StopOnError(search)
    if is_alive:
        assert not stopper.stop_all()
        assert search.error is None
        return
    with pytest.raises(StudyError, match=f"^{ENDED}.*the same command resumes the study$"):
        stopper.stop_all()
    assert isinstance(search.error, StudyError)


@pytest.mark.parametrize(
    ("end", "code", "is_explained"),
    [("os._exit(1)", 1, True), ("sys.exit(3)", 3, False), ("print('done')", 0, False)],
)
def test_only_an_exit_past_python_is_explained(end: str, code: int, is_explained: bool) -> None:
    text = (
        "import os, sys\nfrom kdsearch.engines.ray_cluster import explained_exit\n"
        f"with explained_exit():\n    {end}"
    )
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert found.returncode == code
    assert found.stderr.startswith(f"kdsearch: {ENDED}") == is_explained
    assert found.stderr.count("\n") == is_explained


AGENT_KILLED = """
import os, signal, sys, time
from pathlib import Path
from table_study import look_up, opened
from test_ray_tune import connected, processes, run_search, slow
def on_trial(record):
    if record.number == 1:
        for pid, name in processes(os.getpid()):
            if name.startswith("ray::DashboardAgent"):
                os.kill(pid, signal.SIGKILL)
if __name__ == "__main__":
    with connected(cpus=1), opened(Path(sys.argv[1])) as study:
        run_search(study, slow, n_trials=40, on_trial=on_trial)
"""


def processes(parent: int) -> Iterator[tuple[int, str]]:
    """Yield the processes below a process, with their command lines."""
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, file.read_text().split()):
            yield pid, Path(f"/proc/{pid}/cmdline").read_text()
            yield from processes(pid)


@pytest.mark.slow
@pytest.mark.usefixtures("_path")
def test_the_death_of_rays_agent_is_one_message_and_loses_no_trial(tmp_path: Path) -> None:
    """Ray then ends this process by itself, or leaves it to wait for ever."""
    line = [sys.executable, "-c", AGENT_KILLED, str(tmp_path / "killed")]
    found = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1
    assert ENDED in found.stderr.splitlines()[-1]
    with opened(tmp_path / "killed") as study:
        states = [record.state for record in run_to(study, 4)]
    assert set(states[:2]) <= {"complete", "rejected", "failed"}
    assert len(states) >= 4


@pytest.mark.usefixtures("_ray")
class TestOnThisMachine:
    def test_one_worker_runs_the_trials_of_the_local_engine(self, fast_path: Path) -> None:
        seen: list[TrialRecord] = []
        with opened(fast_path / "here") as study:
            wanted = run_to(study, 30)
        with opened(fast_path / "there") as study:
            found = run_search(study, table, n_trials=30, on_trial=seen.append)
        assert without_times(found) == without_times(wanted)
        assert seen == found
        assert {record.state for record in found} == {"complete", "rejected", "failed"}

    @pytest.mark.slow
    def test_equal_candidates_are_trained_once(self, fast_path: Path) -> None:
        with opened(fast_path / "equal", StudyConfig(space=SMALL_SPACE)) as study:
            found = run_search(study, partial(counted, fast_path), n_trials=12, workers=2)
        trained = Counter((fast_path / "trained").read_text().split())
        assert trained == dict.fromkeys((record.digest for record in found), 1)
        assert [record.state for record in found] == ["complete"] * 12

    @pytest.mark.slow
    def test_a_stop_condition_is_checked_between_trials(self, fast_path: Path) -> None:
        ended: list[TrialRecord] = []
        with opened(fast_path / "limited") as study:
            found = run_search(
                study,
                slow,
                n_trials=100,
                workers=2,
                on_trial=ended.append,
                is_enough=lambda: bool(ended),
            )
            assert {record.state for record in found} <= {"complete", "rejected", "failed"}
        assert 1 <= len(found) <= 4  # the first to end, and what the two workers ran by then

    @pytest.mark.slow
    def test_a_hung_trial_fails_alone_and_the_next_ones_run_elsewhere(
        self, fast_path: Path
    ) -> None:
        with opened(fast_path / "hung") as study:
            found = run_search(study, hangs_at_the_second, n_trials=4, timeout=1.5)
        assert [record.state for record in found].count("failed") == 1
        assert found[1].reason == "no end after 1.5 s (--trial-timeout)"
        assert 1.5 < found[1].seconds < TIMEOUT

    @pytest.mark.slow
    def test_progress_and_logs_reach_the_driver(
        self, fast_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected: list[tuple[object, ...]] = []
        with opened(fast_path / "talking") as study, caplog.at_level(logging.INFO, "kdsearch"):
            run_search(study, talking, n_trials=2, on_progress=lambda *what: expected.append(what))
        assert [
            (proposal.number, *what)
            for proposal, *what in expected
            if isinstance(proposal, Proposal)
        ] == [(number, epoch, "of 3") for number in (0, 1) for epoch in (1, 2, 3)]
        assert [r.message for r in caplog.records if r.name == "kdsearch.trials_seen"] == ["0", "1"]

    @pytest.mark.slow
    def test_an_actor_starts_once_for_many_trials(self, fast_path: Path) -> None:
        start = partial(starting, fast_path)
        with opened(fast_path / "once") as study:
            run_search(study, table, n_trials=12, start=start)
        assert len((fast_path / "starts").read_text().split()) == 1

    @pytest.mark.slow
    def test_a_second_actor_starts_though_trials_end_before_it_has(self, fast_path: Path) -> None:
        pids: set[int] = set()

        def on_trial(_: TrialRecord) -> None:
            if len(pids) == 2:
                raise ZeroDivisionError

        with opened(fast_path / "second") as study, pytest.raises(ZeroDivisionError):
            run_search(
                study,
                with_pid,
                n_trials=10_000,
                workers=2,
                on_trial=on_trial,
                on_progress=lambda _, pid: pids.add(pid),
            )

    def test_a_trial_whose_actor_dies_is_run_again_and_stored_once(self, fast_path: Path) -> None:
        seen: list[TrialRecord] = []
        with opened(fast_path / "lost") as study:
            evaluate = partial(dying, fast_path, 2)
            found = run_search(study, evaluate, n_trials=3, workers=2, on_trial=seen.append)
        assert [record.state for record in found] == ["complete"] * 3
        assert Counter(record.number for record in seen) == {0: 1, 1: 1, 2: 1}
        assert found[1].curve == (0.1, 0.2, 0.3, 0.4)
        pids = (fast_path / "epochs-1").read_text().split()
        assert len(pids) == 4  # none was trained again
        assert len(set(pids)) == 3

    @pytest.mark.slow
    def test_one_whose_actor_always_dies_fails_alone_and_nothing_is_printed(
        self, fast_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with opened(fast_path / "hopeless") as study:
            evaluate = partial(dying, fast_path / "hopeless", 9)
            found = run_search(study, evaluate, n_trials=3)
        assert [record.state for record in found] == ["complete", "failed", "complete"]
        assert found[1].reason == "its Ray actor died 3 times: its worker process has died"
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_an_actor_that_dies_between_trials_costs_none(self, fast_path: Path) -> None:
        pids: list[int] = []

        def on_trial(record: TrialRecord) -> None:
            if record.number in (1, 4):
                os.kill(pids[-1], signal.SIGKILL)

        with opened(fast_path / "between") as study:
            found = run_search(
                study,
                with_pid,
                n_trials=6,
                on_trial=on_trial,
                on_progress=lambda _, pid: pids.append(pid),
            )
        assert [record.state for record in found] == ["complete"] * 6
        assert len(pids) == 6

    @pytest.mark.parametrize("error", [SpecError("no"), ZeroDivisionError("no")])
    def test_what_an_evaluator_raises_ends_the_run(self, fast_path: Path, error: Exception) -> None:
        path = fast_path / f"broken {type(error).__name__}"
        with opened(path) as study, pytest.raises(type(error), match=r"^no$"):
            run_search(study, partial(raising, error), n_trials=3)
        with opened(path) as study:
            lost, again = run_search(study, table, n_trials=1)
        assert (lost.state, lost.params) == ("interrupted", again.params)

    @pytest.mark.slow
    def test_what_cannot_be_sent_is_reported_by_its_text(self, fast_path: Path) -> None:
        with (
            opened(fast_path / "unsendable") as study,
            pytest.raises(RuntimeError, match=r"^UnsendableError: a thread$"),
        ):
            run_search(study, raising_unsendable, n_trials=1)

    @pytest.mark.slow
    def test_an_actor_that_cannot_start_ends_the_run(self, fast_path: Path) -> None:
        with (
            opened(fast_path / "no start") as study,
            pytest.raises(StudyError, match=r"^no bench$"),
        ):
            run_search(study, table, n_trials=3, start=no_start)

    @pytest.mark.slow
    @pytest.mark.parametrize("where", ["on_trial", "on_end", "on_progress"])
    def test_what_the_driver_raises_ends_the_run(self, fast_path: Path, where: str) -> None:
        def breaks(*_: object) -> None:
            raise ZeroDivisionError(where)

        with opened(fast_path / where) as study:
            with pytest.raises(ZeroDivisionError, match=where):
                run_search(study, climbing, n_trials=3, **{where: breaks})  # type: ignore[arg-type]
            assert len(study.records()) == 1

    @pytest.mark.slow
    def test_an_interrupted_run_abandons_its_trials_and_resumes_later(
        self, fast_path: Path
    ) -> None:
        started = time.perf_counter()
        with opened(fast_path / "interrupted") as study:
            with pytest.raises(KeyboardInterrupt):
                run_search(
                    study,
                    slow,
                    n_trials=8,
                    workers=2,
                    on_progress=lambda *_: _thread.interrupt_main(),
                )
            lost = len(study.records())
        assert time.perf_counter() - started < TIMEOUT
        with opened(fast_path / "whole") as study:
            wanted = [record.params for record in run_to(study, 2)]
        with opened(fast_path / "interrupted") as study:
            found = run_search(study, table, n_trials=2)
        assert {record.state for record in found[:lost]} == {"interrupted"}
        assert [record.params for record in found[lost:]] == wanted


@pytest.fixture(scope="module")
def cluster(_path: None) -> Iterator[Cluster]:
    """Return two nodes of one CPU each; the second is to be killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        yield cluster
        cluster.shutdown()


@pytest.mark.slow
def test_forty_trials_end_once_each_though_a_node_dies(cluster: Cluster, fast_path: Path) -> None:
    seen: list[TrialRecord] = []
    lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    killed: list[int] = []

    def on_trial(record: TrialRecord) -> None:
        """Kill the second node, where a trial waits for that."""
        seen.append(record)
        there = [n for n, node in begun(fast_path) if n >= DOOMED and node == lost.node_id]
        if there and not killed:
            killed.extend(there)
            cluster.remove_node(lost, allow_graceful=False)

    with connected(cluster.address), opened(fast_path / "cluster") as study:
        assert room(0) == 2
        evaluate = partial(somewhere, fast_path, lost.node_id)
        found = run_search(study, evaluate, n_trials=40, workers=2, on_trial=on_trial)
    again = Counter(number for number, _ in begun(fast_path))
    assert {number: count for number, count in again.items() if count > 1} == {killed[0]: 2}
    assert [record.number for record in found] == list(range(40))
    assert sorted(record.number for record in seen) == list(range(40))
    states = [look_up_again(record).state for record in found]
    assert [record.state for record in found] == states
    shown = optuna.load_study(
        study_name="cluster", storage=inside(fast_path / "cluster").full_url()
    )
    assert [trial.state.name for trial in shown.trials] == [TOLD[state] for state in states]


TOLD = {"complete": "COMPLETE", "rejected": "PRUNED", "failed": "FAIL"}


def look_up_again(record: TrialRecord) -> TrialOutcome:
    return look_up(Proposal(number=record.number, params=record.params, digest=record.digest))


def somewhere(folder: Path, doomed: str, proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    node = ray.get_runtime_context().get_node_id()
    with (folder / "begun").open("a") as file:
        file.write(f"{proposal.number} {node}\n")
    if proposal.number >= DOOMED:
        if node == doomed:
            time.sleep(10 * TIMEOUT)
        until = time.monotonic() + 2 * TIMEOUT  # the other node may be slow to begin
        while not any(n >= DOOMED and where == doomed for n, where in begun(folder)):
            assert time.monotonic() < until
            time.sleep(0.05)
    return look_up(proposal)


def begun(folder: Path) -> list[tuple[int, str]]:
    """Return which trial began on which node, as often as it did."""
    lines = (folder / "begun").read_text().splitlines()
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def counted(folder: Path, proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    with (folder / "trained").open("a") as file:
        file.write(f"{proposal.digest}\n")
    time.sleep(0.05)
    return look_up(proposal)


def hangs_at_the_second(proposal: Proposal, report: ray_tune.Report) -> TrialOutcome:
    if proposal.number == 1:
        time.sleep(10 * TIMEOUT)
    return look_up(proposal)


def slow(proposal: Proposal, report: ray_tune.Report) -> TrialOutcome:
    report()
    time.sleep(1)
    return look_up(proposal)


def climbing(proposal: Proposal, report: ray_tune.Report) -> TrialOutcome:
    cost = Cost(flops=1_000_000, params=1)
    curve: tuple[float, ...] = ()
    for epoch in (1, 2, 3, 4):
        curve = (*curve, epoch / 10)
        report(epoch)
    return TrialOutcome(state="complete", cost=cost, curve=curve, val=curve[-1])


def talking(proposal: Proposal, report: ray_tune.Report) -> TrialOutcome:
    for epoch in (1, 2, 3):
        report(epoch, "of 3")
    logging.getLogger("kdsearch.trials_seen").info("%d", proposal.number)
    return look_up(proposal)


def starting(folder: Path) -> ray_tune.Evaluate:
    left(folder, "starts")
    return table


def no_start() -> ray_tune.Evaluate:
    raise StudyError("no bench")


def dying(folder: Path, times: int, proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    """Train four epochs that are kept; number 1 dies after each, so many times."""
    kept = folder / f"epochs-{proposal.number}"
    done = len(kept.read_text().split()) if kept.exists() else 0
    for _ in range(done, 4):
        done = left(folder, kept.name)
        if proposal.number == 1 and done <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    curve = tuple(epoch / 10 for epoch in range(1, done + 1))
    cost = Cost(flops=1_000_000, params=1)
    return TrialOutcome(state="complete", cost=cost, curve=curve, val=curve[-1])


def with_pid(proposal: Proposal, report: ray_tune.Report) -> TrialOutcome:
    report(os.getpid())
    cost = Cost(flops=1_000_000, params=1)
    return TrialOutcome(state="complete", cost=cost, curve=(0.5,), val=0.5)


def raising(error: Exception, proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    raise error


class UnsendableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.thread = threading.Lock()


def raising_unsendable(proposal: Proposal, _: ray_tune.Report) -> TrialOutcome:
    raise UnsendableError("a thread")
