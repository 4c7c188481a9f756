"""The store is a normal Optuna study at any moment, and the mirror is the same study.

On SQLite and on a PostgreSQL server that the tests start.
"""

from __future__ import annotations

import uuid
import weakref
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from kdsearch.errors import StudyError
from kdsearch.study.storage_url import Storage, inside, read_url
from kdsearch.study.store import NOTE, Store

FIELDS = ("number", "state", "params", "distributions", "user_attrs", "system_attrs", "values")


def opened(kept: Storage) -> Store:
    store = Store(kept, metrics=("accuracy", "flops"))
    store.load()
    return store


def begun(store: Store, note: str = "{}") -> int:
    trial = store.propose(optuna.samplers.RandomSampler(seed=0))
    trial.suggest_float("train.lr", 0.01, 1.0, log=True)
    trial.suggest_categorical("student.family", ("resnet", "vit"))
    store.begin(trial, note)
    return int(trial.number)


def on_disk(kept: Storage) -> optuna.Study:
    """Return what another program finds, optuna-dashboard say."""
    storage = optuna.storages.RDBStorage(kept.full_url())
    weakref.finalize(storage, storage.engine.dispose)
    return optuna.load_study(study_name=kept.study, storage=storage)


def shown(trials: list[FrozenTrial]) -> list[list[object]]:
    return [[getattr(trial, field) for field in FIELDS] for trial in trials]


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "sqlite":
        return inside(tmp_path)
    url = read_url(request.getfixturevalue("postgres_url"))
    return Storage(url=url, study=f"table-{uuid.uuid4().hex}")


def test_after_every_step_the_file_holds_what_the_mirror_holds(kept: Storage) -> None:
    store = opened(kept)
    assert on_disk(kept).metric_names == ["accuracy", "flops"]
    ends = (
        (TrialState.COMPLETE, [0.5, 2.0], {"flops": -0.5}),
        (TrialState.PRUNED, None, {"flops": 0.5, "params": 1.5}),
        (TrialState.FAIL, None, {}),
    )
    numbers = [begun(store, f'{{"n": {n}}}') for n in range(3)]
    assert shown(store.trials()) == shown(on_disk(kept).trials)
    for number, (state, values, constraints) in zip(reversed(numbers), ends, strict=True):
        message = store.end(number, state, values, note="ended", constraints=constraints)
        assert shown([message]) == shown(store.trials())[number : number + 1]
        assert shown(store.trials()) == shown(on_disk(kept).trials)
        assert (message.state, message.values, message.constraints) == (
            state,
            values,
            constraints | {str(i): v for i, v in enumerate(constraints.values())},
        )
    assert shown(opened(kept).trials()) == shown(store.trials())


def test_a_trial_is_written_whole_or_not_at_all(
    kept: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(kept)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "_set_trial_attr_without_commit", killed)
        with pytest.raises(KeyboardInterrupt):
            begun(store)
    assert on_disk(kept).trials == []


def test_what_was_left_running_or_waiting_is_failed_on_disk_and_in_the_mirror(
    kept: Storage,
) -> None:
    store = opened(kept)
    store.end(begun(store), TrialState.COMPLETE, [0.5, 2.0], note="ended", constraints={})
    begun(store)
    on_disk(kept).enqueue_trial({"train.lr": 0.1})
    again = opened(kept)
    again.fail_unfinished()
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert [trial.state for trial in again.trials()] == states
    assert shown(again.trials()) == shown(on_disk(kept).trials)
    assert begun(again) == 3


def test_a_trial_that_another_program_adds_raises(kept: Storage) -> None:
    store = opened(kept)
    on_disk(kept).add_trial(optuna.trial.create_trial(values=[0.5, 2.0]))
    with pytest.raises(StudyError, match="another program has added trials"):
        begun(store)


def test_the_note_of_the_study_is_one_attribute_of_it(kept: Storage) -> None:
    store = opened(kept)
    assert store.note() is None
    store.set_note("one")
    store.set_note("two")
    assert opened(kept).note() == "two"
    assert on_disk(kept).user_attrs == {NOTE: "two"}
