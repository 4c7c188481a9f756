"""Successive halving: how a study divides its epochs among trials.

Jamieson & Talwalkar, AISTATS 2016, arXiv:1502.07943, with trainings that are resumed: each rung
continues the best trainings of the rung before from their checkpoints, along one learning-rate
schedule. So a training in full is the same whether it was paused or not. No torch, no optuna.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

TRIALS = 20  # of a study that is given no number
KEPT = 1 / 4  # of a rung's trainings are resumed for the next rung, with twice the epochs
# Steps of a first look. At fewer, students of 1,500 images are near chance.
LOOK_STEPS = 60
LOOK_SHARE = 1 / 8  # of a training in full, where its length is given
WINNER = 0.75  # of `spend`, at least, for the trainings in full, where it decides their length
CONTROLS = 2  # trainings that the leader is compared with before it is trained in full


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """`count` trainings reach `epochs` epochs."""

    epochs: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """The rungs of a study, from the first look of every trial to the training in full.

    A single rung trains every trial in full.
    """

    rungs: tuple[Rung, ...]

    @property
    def look(self) -> int:
        """Return the epochs of a first look."""
        return self.rungs[0].epochs

    @property
    def trials(self) -> int:
        """Return the number of first looks."""
        return self.rungs[0].count

    @property
    def epochs(self) -> int:
        """Return the epochs of a training in full."""
        return self.rungs[-1].epochs

    @property
    def winners(self) -> int:
        """Return the number of trainings in full."""
        return self.rungs[-1].count

    @property
    def is_staged(self) -> bool:
        """Return whether some trials are trained less than others."""
        return len(self.rungs) > 1

    @property
    def final(self) -> int:
        """Return the epochs after which the finalists are chosen."""
        return self.rungs[-2].epochs if self.is_staged else self.epochs

    @property
    def controls(self) -> int:
        """Return the epochs of the controls."""
        return CONTROLS * self.final if self.is_staged else 0

    @property
    def total(self) -> int:
        """Return the epochs of all trainings, the controls included."""
        before = (0, *(rung.epochs for rung in self.rungs))
        stages = zip(self.rungs, before, strict=False)
        return self.controls + sum(rung.count * (rung.epochs - ago) for rung, ago in stages)


def divide(
    *,
    steps: int,
    trials: int | None = None,
    epochs: int | None = None,
    spend: int | None = None,
    look: int | None = None,
) -> Halving:
    """Divide a spend into rungs.

    steps: of an epoch. trials: first looks. epochs: of a training in full; one of `epochs` and
    `spend` is given. spend: epochs of all trainings, which `total` never exceeds. look: epochs of a
    first look; None: a share of a training in full, of LOOK_STEPS steps at least.

    Without `spend`, as many winners are trained in full as cost what the search costs. Without
    `epochs`, one winner gets at least WINNER of the spend. Raises ValueError where `spend` is too
    small for one training of `epochs`.
    """
    shortest = ceil(LOOK_STEPS / max(1, steps))
    looks = [_look(shortest, epochs or 0), shortest] if look is None else [look]
    if spend is None:
        assert epochs is not None
        return _of_length(epochs, trials or TRIALS, looks[0], is_begun=look is not None)
    counts = [trials] if trials else range(min(TRIALS, spend), 1, -1)
    if epochs is not None:
        return _within(spend, epochs, counts, looks, is_begun=look is not None)
    for count in counts:
        found = _single_winner(spend, count, shortest)
        if found is not None and (trials or found.epochs >= WINNER * spend):
            return found
    return _ladder(1, 1, spend, spend)


def _look(shortest: int, epochs: int) -> int:
    """Return the epochs of a first look; those of a whole training where it is not much longer."""
    look = max(shortest, int(epochs * LOOK_SHARE))
    return epochs if 2 * look > epochs else look


def _of_length(epochs: int, trials: int, look: int, *, is_begun: bool) -> Halving:
    for winners in range(1, trials):
        found = _ladder(trials, winners, look, epochs, is_begun)
        if 2 * winners * epochs >= found.total:
            return found
    return _ladder(trials, trials, look, epochs, is_begun)


def _within(
    spend: int, epochs: int, counts: Sequence[int], looks: Sequence[int], *, is_begun: bool
) -> Halving:
    """Return the most winners, at first of the most trials, within a spend."""
    if spend < epochs:
        raise ValueError(f"a spend of {spend} epochs is less than one training of {epochs}")
    for look in looks:
        for count in counts:
            for winners in range(count, 0, -1):
                found = _ladder(count, winners, look, epochs, is_begun)
                if found.total <= spend:
                    return found
    if isinstance(counts, list):
        raise ValueError(f"a spend of {spend} epochs is too small for {counts[0]} trials")
    if is_begun:
        raise ValueError(f"a spend of {spend} epochs is too small for first looks of {looks[0]}")
    return _ladder(1, 1, epochs, epochs)


def _single_winner(spend: int, trials: int, look: int) -> Halving | None:
    """Return first looks and one winner that use up a spend; the looks take their share of it."""
    search = _ladder(trials, 1, 1, spend**2).total - spend**2  # for looks of one epoch
    if search > 0:
        look = max(look, int((1 - WINNER) * spend / search))
    rest = spend - search * look
    return _ladder(trials, 1, look, rest) if rest >= 2 * look else None


def _ladder(trials: int, winners: int, look: int, epochs: int, is_begun: bool = False) -> Halving:
    """Return the rungs. is_begun: trials are paused at the first look, even if all are resumed."""
    if look >= epochs:
        return Halving(rungs=(Rung(epochs=epochs, count=trials),))
    return Halving(rungs=tuple(_rungs(trials, winners, look, epochs, is_begun)))


def _rungs(trials: int, winners: int, look: int, epochs: int, is_begun: bool) -> Iterator[Rung]:
    count = trials
    while count > winners or is_begun:
        is_begun = False
        yield Rung(epochs=look, count=count)
        count = max(winners, ceil(KEPT * count))
        look *= 2
        if 2 * look > epochs:
            break
    yield Rung(epochs=epochs, count=winners)
