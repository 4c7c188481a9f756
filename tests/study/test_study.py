"""A study is its store: killed and resumed it is the same one, and nobody else drives it."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml
from table_study import (
    MAX_DEPTH,
    REQUEST,
    SMALL_SPACE,
    look_up,
    opened,
    run_search,
    run_to,
    tell_next,
)

from kdsearch.errors import DataError, SpecError, StudyError
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import StudyConfig, config_of, free_name, read_config, study_path
from kdsearch.study.facts import StudyFacts
from kdsearch.study.importances import rankings
from kdsearch.study.open import load_study, open_study
from kdsearch.study.options import RunOptions
from kdsearch.study.ranking import COST, shares
from kdsearch.study.storage_url import inside
from kdsearch.study.study import searched
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.workflows.resolve import with_earlier
from kdsearch.workflows.run import run_study

N = 14  # the sampler leaves its random start at ten


@pytest.fixture(scope="module")
def whole(fast_path: Path) -> list[TrialRecord]:
    """Run N trials without a break; `fast_path/K/table` is the study as it was after K."""
    with opened(fast_path / "whole" / "table") as study:
        for number in range(N):
            shutil.copytree(study.path, fast_path / str(number) / "table")
            tell_next(study)
        return study.records()


@pytest.fixture
def copy_at(
    whole: list[TrialRecord], fast_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Return a function that gives an own copy of the study as it was after so many trials."""

    def copy(number: int) -> Path:
        source = fast_path / ("whole" if number == N else str(number)) / "table"
        target = fast_path / f"copy-{tmp_path_factory.mktemp('name').name}" / "table"
        return Path(shutil.copytree(source, target))

    return copy


CopyAt = Callable[[int], Path]


def states(records: list[TrialRecord]) -> set[str]:
    return {record.state for record in records}


def test_the_rooms_below_training_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, kdsearch.study.study, kdsearch.report.artifacts, kdsearch.report\n"
        "import kdsearch.space, kdsearch.spec, kdsearch.hpo.pareto, kdsearch.engines.local\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_table_shows_every_state(whole: list[TrialRecord]) -> None:
    """The laws below would be empty if it did not."""
    assert {"complete", "rejected"} <= states(whole)
    assert len({record.digest for record in whole}) == N


def test_a_study_resumed_after_any_trial_continues_as_if_never_stopped(
    whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    for number in range(N):
        with opened(copy_at(number)) as study:
            tell_next(study)
            assert study.records() == whole[: number + 1]


@pytest.mark.parametrize("number", [0, 4, N - 1])
def test_a_trial_of_a_dead_driver_is_interrupted_and_repeated(
    number: int, whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    path = copy_at(number)
    with opened(path) as study:
        study.ask()
        assert study.records()[-1].state == "running"

    with opened(path) as study:
        lost = study.records()[-1]
        assert lost.state == "interrupted"
        assert lost.val is None
        again = tell_next(study)

    assert lost.params == again.params == whole[number].params
    assert replace(again, number=number) == whole[number]
    assert searched([lost, again]) == [again]


def test_a_driver_killed_before_storing_an_outcome_has_stored_none(
    copy_at: CopyAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_at(2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with opened(path) as study, monkeypatch.context() as patch:
        proposal = study.ask()
        patch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", killed)
        with pytest.raises(KeyboardInterrupt):
            study.tell(proposal, look_up(proposal))

    with opened(path) as study:
        assert study.records()[-1].state == "interrupted"
        assert tell_next(study).params == proposal.params


def test_rejected_trials_are_pruned_and_carry_their_violations(
    whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    path = copy_at(N)
    store = optuna.load_study(study_name="table", storage=inside(path).full_url())
    rejected = [record for record in whole if record.state == "rejected"]
    for record in rejected:
        assert record.cost is not None
        violation = record.cost.flops / (MAX_DEPTH * 1e6) - 1
        trial = store.trials[record.number]
        assert violation > 0
        assert trial.state is optuna.trial.TrialState.PRUNED
        assert trial.constraints["flops"] == pytest.approx(violation)
        assert trial.system_attrs["constraints"] == pytest.approx([violation])
        assert (record.val, record.curve) == (None, ())
        assert record.reason == f"{record.cost.flops / 1e6:.4g} MFLOPs over {MAX_DEPTH}"


def test_complete_trials_tell_optuna_accuracy_and_cost(
    whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    store = optuna.load_study(study_name="table", storage=inside(copy_at(N)).full_url())
    assert store.metric_names == ["accuracy", "flops"]
    assert [direction.name for direction in store.directions] == ["MAXIMIZE", "MINIMIZE"]
    for record in whole:
        if record.state == "complete":
            assert record.cost is not None
            assert store.trials[record.number].values == [record.val, record.cost.flops]


def test_a_seed_decides_the_trials(whole: list[TrialRecord], fast_path: Path) -> None:
    for seed, is_same in ((REQUEST.seed, True), (REQUEST.seed + 1, False)):
        with opened(fast_path / f"seed-{seed}", replace(REQUEST, seed=seed)) as study:
            params = [record.params for record in run_to(study, 4)]
        assert params[:2] == [record.params for record in whole[:2]]  # first trials of common sense
        assert (params == [record.params for record in whole[:4]]) is is_same


def test_trials_that_run_at_the_same_time_have_draws_of_their_own(fast_path: Path) -> None:
    path = fast_path / "beside"
    with opened(path) as study:
        proposal = [study.ask() for _ in range(4)]
        assert [trial.draw for trial in proposal] == [0, 1, 2, 3]
        assert len({trial.digest for trial in proposal}) == 4
        for trial in (proposal[3], proposal[1]):
            study.tell(trial, look_up(trial))
    with opened(path) as study:
        assert [record.state for record in study.records()].count("interrupted") == 2
        again = [study.ask() for _ in range(3)]
    assert [trial.draw for trial in again] == [0, 2, 4]
    assert [trial.params for trial in again[:2]] == [proposal[0].params, proposal[2].params]


def test_equal_candidates_are_trained_once_and_counted_as_reused(fast_path: Path) -> None:
    trained: list[str] = []

    def train(proposal: Proposal) -> TrialOutcome:
        trained.append(proposal.digest)
        return look_up(proposal)

    with opened(fast_path / "small", StudyConfig(space=SMALL_SPACE)) as study:
        run_search(study, [train], n_trials=12)
        records = study.records()

    assert len(trained) == len(set(trained)) == len({r.digest for r in records}) < 12
    for record in records:
        first = next(other for other in records if other.digest == record.digest)
        assert record.reused_from == (None if record == first else first.number)
        assert (record.val, record.cost, record.state) == (first.val, first.cost, "complete")


def test_an_accuracy_that_is_not_a_number_is_a_failure(copy_at: CopyAt) -> None:
    path = copy_at(1)
    with opened(path) as study:
        proposal = study.ask()
        record = study.tell(proposal, replace(look_up(proposal), state="complete", val=math.nan))
        assert (record.state, record.val) == ("failed", None)
        assert record.reason == "the accuracy is nan"
        assert len(searched(study.records())) == 2
    with opened(path) as study:
        assert study.records()[-1] == record


def test_a_second_driver_is_kept_out(copy_at: CopyAt) -> None:
    path = copy_at(0)
    with opened(path):
        with (
            pytest.raises(StudyError, match=f"is being run by process {os.getpid()} on "),
            opened(path),
        ):
            pass
        assert load_study(path).records() == []
    with opened(path) as study:
        tell_next(study)


def test_a_study_that_is_driven_is_refused_before_its_data_is_loaded(tmp_path: Path) -> None:
    """By its lock, and by its lease from another folder: its data is not even there."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    path = tmp_path / "here" / "driven"
    config = replace(REQUEST, data="no/such/folder", storage=url, storage_study="driven-1")

    def refused(out: Path, message: str) -> None:
        with pytest.raises(StudyError, match=message):
            run_study({}, Callback(), out=out, name="driven")

    with opened(path, config):
        refused(path.parent, f"is being run by process {os.getpid()} on .+; wait for it, end it")
        away = tmp_path / "there" / "driven"
        away.mkdir(parents=True)
        shutil.copy(path / "study.yaml", away)
        refused(away.parent, "is being run by process .* end that one")
        assert [file.name for file in away.iterdir()] == ["study.yaml"]
    with pytest.raises(DataError):
        run_study({}, Callback(), out=path.parent, name="driven")


def test_a_run_without_trials_or_flat_after_takes_those_of_the_last_run(copy_at: CopyAt) -> None:
    with opened(copy_at(0)) as study:
        assert with_earlier(RunOptions(), study) == RunOptions()
        study.update_facts(trials=7, flat_after=5)
        assert with_earlier(RunOptions(), study) == RunOptions(trials=7, flat_after=5)
        chosen = RunOptions(trials=9, flat_after=0)
        assert with_earlier(chosen, study) == chosen


def test_a_changed_request_is_refused_and_the_differences_shown(copy_at: CopyAt) -> None:
    path = copy_at(1)
    changed = replace(REQUEST, budget_mflops=9.0, teacher="timm:resnet18", space="a: 1")
    with pytest.raises(StudyError) as caught, opened(path, changed):
        pass
    lines = str(caught.value).splitlines()
    assert lines[0] == "the study 'table' was started with another configuration:"
    assert lines[1:3] == [
        "  --teacher: 'auto' -> 'timm:resnet18'",
        "  --budget-mflops: 15.0 -> 9.0",
    ]
    assert lines[3].startswith("  --space: '\\nstudent:")
    assert lines[3].endswith("-> 'a: 1'")
    assert len(lines) == 5


def test_a_request_is_read_back_as_it_was_written(fast_path: Path) -> None:
    config = StudyConfig(
        data="folder/ü: 'x'",
        image_size=32,
        flip=False,
        teacher_epochs=3,
        budget_ms=0.1,
        budget_mparams=2,
        epochs=4,
        seed=7,
        space=REQUEST.space,
    )
    with opened(fast_path / "request", config):
        pass
    assert read_config(fast_path / "request") == config
    kept = yaml.safe_load((fast_path / "request" / "study.yaml").read_text(encoding="utf-8"))
    assert kept["versions"] == {"kdsearch": "0"}
    assert read_config(fast_path / "nothing") is None


@pytest.mark.parametrize(("line", "found"), [("", 1), ("format: 3\n", 3)])
def test_a_study_of_another_format_is_refused(fast_path: Path, line: str, found: int) -> None:
    path = fast_path / f"format-{found}"
    with opened(path, REQUEST):
        pass
    file = path / "study.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("format: 2\n")
    file.write_text(text.replace("format: 2\n", line), encoding="utf-8")
    expected = f"has format {found}, and this kdsearch reads format 2; open it with the kdsearch"
    for use in (read_config, load_study):
        with pytest.raises(StudyError, match=expected):
            use(path)


def test_a_request_gives_the_budget_in_the_units_of_cost() -> None:
    budget = StudyConfig(budget_ms=2.5, budget_mflops=20, budget_mparams=0.5).budget
    assert (budget.latency_ms, budget.flops, budget.params) == (2.5, 20e6, 0.5e6)


def test_a_request_may_fix_the_epochs() -> None:
    assert "train.epochs" not in dict(REQUEST.search_space().all_dims())
    fixed = replace(REQUEST, epochs=3).search_space()
    assert fixed.walk(lambda _, dim: getattr(dim, "low", "vit"))["train.epochs"] == 3


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 0},
        {"budget_ms": 0.0},
        {"budget_ms": -1.0},
        {"budget_mflops": math.inf},
        {"budget_mparams": math.nan},
    ],
)
def test_a_request_that_cannot_be_met_names_its_flag(given: dict[str, object]) -> None:
    (name,) = given
    with pytest.raises(SpecError, match=f"--{name.replace('_', '-')} "):
        config_of(given)


BAD_NAMES = ["", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", "x" * 300, "a\0b", "a b", "a\n", "-x"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:10]))
def test_a_name_that_is_not_one_path_segment_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--name"):
        study_path(tmp_path, name)


def test_a_plain_name_is_a_folder_of_its_own(tmp_path: Path) -> None:
    assert study_path(tmp_path, "phones-2.v_1") == tmp_path / "phones-2.v_1"
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(StudyError, match="symbolic link"):
        study_path(tmp_path, "link")


def test_a_free_name_is_valid_and_unused(tmp_path: Path) -> None:
    assert free_name(tmp_path / "none", "digits") == "digits-1"
    (tmp_path / "digits-1").mkdir()
    assert free_name(tmp_path, "digits") == "digits-2"
    for stem in ("../my images", "ü", "/", "x" * 300):
        study_path(tmp_path, free_name(tmp_path, stem))


DAMAGED_YAML = {
    "empty": "",
    "a list": "- 1",
    "no YAML": "a: [1",
    "no versions": "data: digits\n",
    "unknown key": "format: 2\ncolour: red\nversions: {}\n",
    "wrong type": "format: 2\nepochs: many\nversions: {}\n",
    "binary": "\x00",
}


@pytest.mark.parametrize("kind", DAMAGED_YAML)
def test_a_damaged_request_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(DAMAGED_YAML[kind], encoding="utf-8")
    with pytest.raises(StudyError, match=r"study\.yaml is damaged \(.+\); restore it"):
        read_config(tmp_path)


def test_a_request_cut_short_is_damaged(copy_at: CopyAt) -> None:
    path = copy_at(0)
    text = (path / "study.yaml").read_bytes()
    for length in range(0, text.index(b"versions:"), 5):
        (path / "study.yaml").write_bytes(text[:length])
        with pytest.raises(StudyError, match=r"study\.yaml is damaged"), opened(path):
            pass


def not_a_database(file: Path) -> None:
    file.write_bytes(b"not a database" * 1000)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwritten(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8192:] = bytes(len(content) - 8192)
    file.write_bytes(content)


def of_another_optuna(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
    database.close()


@pytest.mark.parametrize("damage", [not_a_database, cut_in_half, overwritten, of_another_optuna])
def test_a_damaged_store_is_named(damage: Callable[[Path], None], copy_at: CopyAt) -> None:
    path = copy_at(N)
    damage(path / "study.db")
    for open_it in (lambda: opened(path).__enter__(), lambda: load_study(path)):
        with pytest.raises(StudyError, match=r"cannot open .*study\.db: .+; restore it"):
            open_it()


def test_a_missing_study_raises_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="`kdsearch run --name phones` makes one"):
        load_study(tmp_path / "phones")


def test_a_study_whose_place_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "phones").touch()
    with pytest.raises(StudyError, match="cannot write to"), opened(tmp_path / "phones"):
        pass


def test_the_front_is_of_the_complete_trials_cheapest_first(
    whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    front = load_study(copy_at(N)).front()
    assert [record for record in whole if record in front] == sorted(front, key=lambda r: r.number)
    points = [(r.cost.flops, r.val) for r in front if r.cost is not None and r.val is not None]
    assert len(points) == len(front) > 1
    assert points == sorted(points)
    assert [val for _, val in points] == sorted(val for _, val in points)


def test_a_control_is_no_part_of_the_search(whole: list[TrialRecord], copy_at: CopyAt) -> None:
    path = copy_at(N - 1)
    with opened(path) as study:
        before, best = study.front(), study.front()[-1]
        proposal = study.ask_control({**best.params, "method.name": "none"}, best.number)
        record = study.tell(proposal, replace(look_up(proposal), val=1.0))

        assert record.control_of == best.number
        assert study.front() == before
        assert record not in searched(study.records())
        assert tell_next(study).params == whole[N - 1].params


def test_a_control_equal_to_a_trial_is_not_trained_again(
    whole: list[TrialRecord], copy_at: CopyAt
) -> None:
    done = next(record for record in whole if record.state == "complete")
    with opened(copy_at(N)) as study:
        assert study.earlier(study.ask_control(done.params, 0)) == done


def test_importances_are_shares_and_empty_when_too_few(
    copy_at: CopyAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rankings(load_study(copy_at(N))) == ()
    monkeypatch.setattr("kdsearch.study.importances.FEWEST_TRIALS", 8)
    assert rankings(load_study(copy_at(3))) == ()
    study = load_study(copy_at(N))
    assert len([r for r in study.records() if r.state == "complete"]) >= 8
    ranked = rankings(study)
    found = shares(ranked)
    assert {"student.family", "train.lr"} <= found.keys()
    assert sum(found.values()) == pytest.approx(1)
    of_cost = {item.name for each in ranked if each.of == COST for item in each.values}
    assert all(name.startswith("student.") for name in of_cost)  # a rate has no cost


def test_facts_stay_and_add_up(copy_at: CopyAt) -> None:
    path = copy_at(0)
    with opened(path) as study:
        assert study.facts == StudyFacts()
        study.update_facts(best=3, notes=["ü"])
        study.update_facts(best=4)
        with pytest.raises(StudyError, match=r"test\.x"):
            study.update_facts(test={"x": 0.5})
    assert load_study(path).facts == StudyFacts(best=4, notes=("ü",))


@pytest.mark.parametrize("note", ['{"guesses": {}}', '{"trials": "many"}'])
def test_facts_of_another_format_are_refused(copy_at: CopyAt, note: str) -> None:
    study = load_study(copy_at(0), access="write")
    study.store.set_note(note)
    with pytest.raises(StudyError, match="an older kdsearch stored the study's facts"):
        _ = study.facts


def test_open_study_leaves_no_lock_behind_when_it_refuses(copy_at: CopyAt) -> None:
    path = copy_at(0)
    with pytest.raises(StudyError), open_study(path, StudyConfig(), versions={}):
        pass
    with opened(path) as study:
        assert study.records() == []
