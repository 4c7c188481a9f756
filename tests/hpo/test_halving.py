"""The division of a spend: its laws for any numbers, and the rungs of some."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.hpo.halving import WINNER, Halving, divide

STEPS = st.integers(1, 2000)
EPOCHS = st.integers(1, 300)
TRIALS = st.one_of(st.none(), st.integers(1, 60))


def rungs(halving: Halving) -> list[tuple[int, int]]:
    """Return (trainings, epochs) of each rung."""
    return [(rung.count, rung.epochs) for rung in halving.rungs]


def check(halving: Halving) -> None:
    """Rungs get fewer and longer; the total is the sum of what each adds, and of the controls."""
    counts, epochs = zip(*rungs(halving), strict=True)
    assert list(counts) == sorted(counts, reverse=True)
    assert list(epochs) == sorted(set(epochs))
    assert min(counts) >= 1
    assert min(epochs) >= 1
    reached = [
        max(rung.epochs for rung in halving.rungs if rung.count > i) for i in range(counts[0])
    ]
    assert halving.total == sum(reached) + halving.controls


@given(STEPS, EPOCHS, TRIALS)
def test_epochs_alone_keep_their_length(steps: int, epochs: int, trials: int | None) -> None:
    found = divide(steps=steps, epochs=epochs, trials=trials)
    check(found)
    assert found.epochs == epochs
    assert found.trials == (trials or 20)
    assert 2 * found.winners * epochs >= found.total
    assert found.total <= found.trials * epochs + found.controls


@given(STEPS, EPOCHS)
def test_a_spend_is_used_up_and_its_winner_gets_most_of_it(steps: int, spend: int) -> None:
    found = divide(steps=steps, spend=spend)
    check(found)
    assert found.total == spend
    assert found.epochs >= WINNER * spend
    if found.is_staged:  # a study that is resumed divides as it did
        begun = {"steps": steps, "spend": spend, "epochs": found.epochs, "look": found.look}
        assert divide(**begun) == found
        assert divide(**begun, trials=found.trials) == found


@given(STEPS, EPOCHS, st.integers(1, 400), TRIALS, st.integers(1, 50))
def test_a_study_that_began_with_first_looks_resumes_some(
    steps: int, epochs: int, more: int, trials: int | None, look: int
) -> None:
    if look >= epochs:
        return
    for spend in (None, epochs + more):
        try:
            found = divide(steps=steps, epochs=epochs, spend=spend, trials=trials, look=look)
        except ValueError:
            continue
        assert found.is_staged
        assert found.look == look
        check(found)


@given(STEPS, EPOCHS, st.integers(1, 400), TRIALS)
def test_a_spend_is_never_exceeded(steps: int, epochs: int, more: int, trials: int | None) -> None:
    try:
        found = divide(steps=steps, epochs=epochs, spend=epochs + more, trials=trials)
    except ValueError:
        assert trials is not None
        assert trials > 1
        return
    check(found)
    assert found.total <= epochs + more
    assert found.epochs == epochs


def test_a_spend_below_one_training_is_refused() -> None:
    with pytest.raises(ValueError, match="a spend of 3 epochs is less than one training of 4"):
        divide(steps=100, epochs=4, spend=3)


def test_some_divisions() -> None:
    assert rungs(divide(steps=30, spend=48)) == [(4, 2), (1, 38)]
    assert rungs(divide(steps=30, spend=600)) == [(20, 4), (5, 8), (2, 16), (1, 468)]
    assert rungs(divide(steps=390, epochs=30)) == [(20, 3), (5, 6), (3, 30)]
    assert rungs(divide(steps=390, epochs=30, spend=300)) == [(20, 3), (8, 30)]
    assert rungs(divide(steps=30, epochs=48, spend=60)) == [(4, 2), (1, 48)]
    assert rungs(divide(steps=10, epochs=1, trials=3)) == [(3, 1)]
    assert rungs(divide(steps=10, epochs=9, spend=9)) == [(1, 9)]
