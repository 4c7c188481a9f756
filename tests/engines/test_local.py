"""The engine carries trials between a study and any function; it needs no torch for that."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from table_study import SMALL_SPACE, look_up, opened, run_asked, run_search, run_to

from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue
from kdsearch.errors import TrialsFailedError
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.study import searched
from kdsearch.study.trial_notes import Proposal, TrialOutcome

TIMEOUT = 20.0


def test_n_trials_counts_what_the_study_holds_already(fast_path: Path) -> None:
    seen: list[TrialRecord] = []
    for n_trials in (2, 5, 3):
        with opened(fast_path / "counted") as study:
            run_search(study, [look_up], n_trials=n_trials, on_trial=seen.append)
            records = study.records()
    assert len(records) == 5
    assert seen == records


def test_a_control_does_not_count_as_a_trial_of_the_search(fast_path: Path) -> None:
    with opened(fast_path / "controlled") as study:
        run_search(study, [look_up], n_trials=1)
        run_asked(study, study.ask_control({"student.family": "resnet"}, 0), look_up)
        run_search(study, [look_up], n_trials=2)
        assert [record.control_of for record in study.records()] == [None, 0, None]


def test_the_time_limit_is_looked_at_between_trials(fast_path: Path) -> None:
    ended: list[float] = []

    def slow(proposal: Proposal) -> TrialOutcome:
        time.sleep(0.2)
        ended.append(time.perf_counter())
        return look_up(proposal)

    started = time.perf_counter()
    with opened(fast_path / "limited") as study:
        run_search(study, [slow], n_trials=100, time_limit=0.3)
        assert [record.state for record in study.records()].count("running") == 0
    assert 1 <= len(ended) <= 2
    assert all(end - started >= 0.2 for end in ended)


def test_a_time_limit_of_zero_runs_nothing(fast_path: Path) -> None:
    with opened(fast_path / "no time") as study:
        run_search(study, [look_up], n_trials=1, time_limit=0)
        assert study.records() == []


def test_an_error_of_the_objective_leaves_the_study_to_go_on(fast_path: Path) -> None:
    """An evaluator turns its failures into outcomes; what it raises ends the run."""

    def breaks(_: Proposal) -> TrialOutcome:
        raise ZeroDivisionError

    path = fast_path / "broken"
    with opened(path) as study, pytest.raises(ZeroDivisionError):
        run_search(study, [breaks], n_trials=1)
    with opened(path) as study:
        run_search(study, [look_up], n_trials=1)
        lost, again = study.records()
    assert (lost.state, lost.params) == ("interrupted", again.params)


def test_one_evaluator_is_called_in_the_drivers_thread(fast_path: Path) -> None:
    seen: list[threading.Thread] = []

    def evaluate(proposal: Proposal) -> TrialOutcome:
        seen.append(threading.current_thread())
        return look_up(proposal)

    with opened(fast_path / "alone") as study:
        run_search(study, [evaluate], n_trials=2)
    assert seen == [threading.current_thread()] * 2


def test_several_evaluators_run_at_the_same_time_each_one_trial(fast_path: Path) -> None:
    both = threading.Barrier(2)
    busy: set[int] = set()

    def slot(number: int) -> local.Evaluate:
        def evaluate(proposal: Proposal) -> TrialOutcome:
            assert number not in busy
            busy.add(number)
            both.wait(TIMEOUT)
            busy.remove(number)
            return look_up(proposal)

        return evaluate

    with opened(fast_path / "two") as study:
        run_search(study, [slot(0), slot(1)], n_trials=14)
        assert [record.draw for record in study.records()] == list(range(14))
        assert len(searched(study.records())) == 14


def test_outcomes_are_stored_in_the_order_in_which_trials_end(fast_path: Path) -> None:
    ended: list[int] = []
    second_ended = threading.Event()

    def evaluate(proposal: Proposal) -> TrialOutcome:
        if proposal.number == 0:
            assert second_ended.wait(TIMEOUT)
        return look_up(proposal)

    def on_trial(record: TrialRecord) -> None:
        ended.append(record.number)
        second_ended.set()

    with opened(fast_path / "order") as study:
        run_search(study, [evaluate] * 2, n_trials=2, on_trial=on_trial)
    assert ended == [1, 0]


def test_equal_candidates_are_never_trained_at_the_same_time(fast_path: Path) -> None:
    """Six candidates on four slots, so that a running one is soon drawn again."""
    running: list[str] = []
    overlaps: list[str] = []
    trained: list[str] = []

    def evaluate(proposal: Proposal) -> TrialOutcome:
        overlaps.extend(digest for digest in running if digest == proposal.digest)
        running.append(proposal.digest)
        trained.append(proposal.digest)
        time.sleep(0.02)
        running.remove(proposal.digest)
        return look_up(proposal)

    with opened(fast_path / "equal", StudyConfig(space=SMALL_SPACE)) as study:
        run_search(study, [evaluate] * 4, n_trials=20)
        records = study.records()
    assert overlaps == []
    assert len(records) == 20
    assert len(trained) == len(set(trained)) == len({r.digest for r in records}) <= 6
    assert {record.state for record in records} == {"complete"}


def test_a_duplicate_of_a_running_trial_idles_no_other_worker(fast_path: Path) -> None:
    """Six candidates: some of the first proposals are equal, and yet four run at a time."""
    four = threading.Barrier(4)
    begun: list[int] = []

    def evaluate(proposal: Proposal) -> TrialOutcome:
        begun.append(proposal.number)
        if len(begun) <= 4:
            four.wait(TIMEOUT)
        return look_up(proposal)

    six = StudyConfig(space="student: {family: {choice: {resnet: {depth: {int: [1, 6]}}}}}")
    with opened(fast_path / "parked", six) as study:
        run_search(study, [evaluate] * 4, n_trials=20)
        digests = [record.digest for record in study.records()]
    assert max(begun[:4]) > 3, "the first four proposals differ, so that nothing was parked"
    assert len(digests) == 20
    assert sorted(digests[number] for number in begun) == sorted(set(digests))


def test_one_that_waited_for_an_equal_one_that_failed_is_trained(fast_path: Path) -> None:
    failed: set[str] = set()

    def evaluate(proposal: Proposal) -> TrialOutcome:
        time.sleep(0.02)
        if proposal.digest not in failed:
            failed.add(proposal.digest)
            reason = "at first " + "x" * len(failed)  # not of one cause, which ends the study
            return TrialOutcome(state="failed", reason=reason)
        return look_up(proposal)

    with opened(fast_path / "again", StudyConfig(space=SMALL_SPACE)) as study:
        run_search(study, [evaluate] * 4, n_trials=20)
        records = study.records()
    assert [record.state for record in records].count("failed") == len(failed)
    assert {record.state for record in records} == {"failed", "complete"}


def test_two_workers_finish_their_trials_at_the_time_limit(fast_path: Path) -> None:
    def slow(proposal: Proposal) -> TrialOutcome:
        time.sleep(0.2)
        return look_up(proposal)

    with opened(fast_path / "limited beside") as study:
        run_search(study, [slow] * 2, n_trials=100, time_limit=0.1)
        records = study.records()
        assert 1 <= len(records) <= 2
        assert all(record.state != "running" for record in records)


@pytest.mark.parametrize("stop", ["error", "interrupt"])
def test_a_run_that_stops_abandons_its_trials_and_resumes_later(fast_path: Path, stop: str) -> None:
    path = fast_path / f"stopped by {stop}"
    with opened(fast_path / f"whole beside {stop}") as study:
        wanted = [record.params for record in run_to(study, 4)]
    forever = threading.Event()

    def evaluate(proposal: Proposal) -> TrialOutcome:
        if proposal.number == 0 and stop == "error":
            raise ZeroDivisionError
        if proposal.number == 1:
            _thread.interrupt_main()
        forever.wait(TIMEOUT)
        return look_up(proposal)

    started = time.perf_counter()
    with opened(path) as study, pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
        run_search(study, [evaluate] * 3, n_trials=8)
    assert time.perf_counter() - started < TIMEOUT / 2
    forever.set()
    with opened(path) as study:
        lost = len(study.records())
        records = run_to(study, 4)
    assert {record.state for record in records[:lost]} == {"interrupted"}
    assert [record.params for record in records[lost:]] == wanted


SCRIPT = """
import sys
from pathlib import Path
from table_study import opened, run_to
with opened(Path(sys.argv[1])) as study:
    print(len(run_to(study, 2)), sorted({"torch", "ray", "sklearn"} & set(sys.modules)))
"""


def test_a_table_needs_no_torch(fast_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(fast_path / "plain")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "2 []"


def _failing(reasons: Iterator[str]) -> local.Evaluate:
    """Return what fails for each reason in turn; an empty one is a trial that ends well."""

    def evaluate(proposal: Proposal) -> TrialOutcome:
        reason = next(reasons)
        if reason == "rejected":
            return TrialOutcome(state="rejected", violations={"flops": 1.0})
        if reason:
            return TrialOutcome(state="failed", reason=reason)
        return TrialOutcome(state="complete", val=0.5, cost=Cost(flops=1, params=1, latency_ms=1.0))

    return evaluate


ALIKE = ["no end after 3 s", "no end after 3.5 s", "no end after 1e+03 s"]


@pytest.mark.parametrize(
    ("reasons", "ran"),
    [
        (ALIKE, 3),
        ([*ALIKE[:2], "rejected", "rejected", ALIKE[2]], 5),
        ([*ALIKE[:2], "", *ALIKE[:2], "", *ALIKE[:2], "another", *ALIKE], 12),
    ],
    ids=["in a row", "over the budget between", "row broken"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_three_failures_of_one_cause_in_a_row_end_the_study(
    reasons: list[str], ran: int, workers: int, fast_path: Path
) -> None:
    path = fast_path / f"alike-{ran}-{workers}"
    message = iter([*reasons, *["", ""] * 9])
    one = threading.Lock()

    def evaluate(proposal: Proposal) -> TrialOutcome:
        with one:
            return _failing(message)(proposal)

    with opened(path) as study:
        with pytest.raises(TrialsFailedError, match=r"(?s)3 trials .+\n  no end .+kdsearch\.log"):
            run_search(study, [evaluate] * workers, n_trials=30)
        ended = searched(study.records())
        if workers == 1:
            assert len(ended) == ran
    with opened(path) as study:  # it goes on
        run_search(study, [look_up], n_trials=len(ended) + 1)
        assert len(searched(study.records())) == len(ended) + 1


def test_failing_controls_do_not_end_a_study_whose_search_is_over(fast_path: Path) -> None:
    with opened(fast_path / "failing controls") as study:
        run_search(study, [look_up], n_trials=1)
        controls = (
            study.ask_control({"student.family": "resnet", "train.epochs": i}, 0)
            for i in range(1, 5)
        )
        local.run(TrialQueue(study, controls), [_failing(iter(["no"] * 4))])
        assert [record.state for record in study.records()[1:]] == ["failed"] * 4
