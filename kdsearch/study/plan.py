"""The plan of a study: batch size, epochs and rungs, from its images and its spend. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kdsearch.errors import SpecError
from kdsearch.hpo.halving import LOOK_STEPS, TRIALS, Halving, Rung, divide
from kdsearch.space import Constant, Dim, Value, options_in
from kdsearch.spec import INITS, TrainSpec, TrialRecord
from kdsearch.study.config import HALVING, StudyConfig
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.summary import EpochsSpent

# On 1,500 CIFAR-10 images and 48 epochs a resnet taught by vitkd reached 64.4 % on test with
# batches of 32, 63.4 % with 50 (one seed each).
BATCHES = (128, 64, 32)
MANY = 2000
# Epochs, at least, of a first look where students start from scratch and from weights.
MIXED_LOOK = 2


def with_plan(
    config: StudyConfig, images: int, *, trials: int | None, spend: int | None
) -> StudyConfig:
    """Return a new study's configuration with batch size, epochs and first looks.

    images: of the training split. Raises SpecError where `spend` does not fit.
    """
    dims = dict(config.search_space().all_dims())
    epochs = _fixed(dims.get("train.epochs"), TrainSpec().epochs)
    if not any(name.endswith("batch_size") for name in dims):
        config = replace(config, batch_size=batch_for(images, spend or epochs or 1))
    if config.stopping != HALVING or epochs is None:
        if spend is not None:
            raise SpecError(
                f"--spend {spend} needs --stopping {HALVING} and one number of epochs for all "
                "trials: leave --stopping out, and give --epochs or a space that does not search "
                "train.epochs"
            )
        return config
    length = epochs if spend is None else config.epochs
    halving = _divided(config, images, length, trials=trials, spend=spend)
    if spend is not None:
        config = replace(config, epochs=halving.epochs)
    return replace(config, look_epochs=halving.look if halving.is_staged else None)


def halving_of(
    config: StudyConfig, images: int, *, trials: int | None, spend: int | None
) -> Halving:
    """Return the rungs of a study that has begun; a single one where each trial trains in full.

    Raises SpecError where `spend` does not fit.
    """
    default, count = TrainSpec().epochs, trials or TRIALS
    epochs = _fixed(config.search_space().dims.get("train.epochs"), default) or default
    if config.look_epochs is not None:
        return _divided(config, images, epochs, trials=trials, spend=spend)
    if spend is not None:
        count = max(1, min(count, spend // epochs))
    return Halving(rungs=(Rung(epochs=epochs, count=count),))


def batch_for(images: int, epochs: int) -> int:
    """Return the batch size of a training: the largest that leaves MANY steps, else the least."""
    return next((size for size in BATCHES if epochs * (images // size) >= MANY), BATCHES[-1])


def about_plan(halving: Halving) -> Iterator[str]:
    """Yield the plan in words, where some trials are trained less than others."""
    if not halving.is_staged:
        return
    first, *rest = halving.rungs
    later = ", ".join(
        f"{counted(rung.count, 'training')} resumed until epoch {rung.epochs}" for rung in rest
    )
    share = halving.winners * halving.epochs / halving.total
    text = (
        f"Plan: {counted(first.count, 'trial')} of {counted(first.epochs, 'epoch')}, {later}; with "
        f"controls {counted(halving.total, 'epoch')}, {share:.0%} of them for what is trained in "
        "full"
    )
    yield text.replace(SPACE, " ")


def spent_epochs(
    records: Sequence[TrialRecord], look: int | None, shipped: int | None
) -> EpochsSpent:
    """Return where the epochs of a study went. look: of a first look, None without these.

    shipped: the number of the training that ships.
    """
    own = [record for record in records if record.reused_from is None]
    searched = [len(record.curve) for record in own if not record.kind]
    first = sum(min(epochs, look or epochs) for epochs in searched)
    controls = sum(len(record.curve) for record in own if record.control_of is not None)
    return EpochsSpent(
        looks=first,
        controls=controls,
        further=sum(len(record.curve) for record in own) - first - controls,
        shipped=next((len(r.curve) for r in own if r.number == shipped), 0),
    )


def about_epochs(spent: EpochsSpent) -> str:
    """Return where the epochs went, in words."""
    parts = [
        f"{spent.looks:,} in first looks",
        f"{spent.controls:,} in controls" if spent.controls else "",
        f"{spent.further:,} in resumed trainings" if spent.further else "",
    ]
    text = (
        f"{counted(spent.total, 'epoch')} were trained: {', '.join(filter(None, parts))}. The "
        f"student that ships was trained for {spent.shipped:,}."
    )
    return text.replace(SPACE, " ")


def _divided(
    config: StudyConfig, images: int, epochs: int | None, *, trials: int | None, spend: int | None
) -> Halving:
    """Return the rungs of a study. epochs: of a training in full, None where `spend` decides."""
    space = dict(config.search_space().all_dims())
    batch = _fixed(space.get("train.batch_size"), TrainSpec().batch_size) or BATCHES[-1]
    steps = max(1, images // batch)
    if _starts_differ(space):
        steps = min(steps, LOOK_STEPS // MIXED_LOOK)
    try:
        return divide(
            steps=steps, trials=trials, epochs=epochs, spend=spend, look=config.look_epochs
        )
    except ValueError as error:
        raise SpecError(f"--spend {spend}: {error}; raise it, or lower the others") from error


def _starts_differ(space: Mapping[str, Dim]) -> bool:
    """Return whether some students inherit weights and others start from scratch."""
    starts: set[Value] = set()
    for family in options_in(space.get("student.family")):
        own = space.get(f"student.{family}.init", space.get("student.init"))
        starts |= {INITS[0]} if own is None else set(options_in(own))
    return len(starts) > 1


def _fixed(dim: Dim | None, default: int) -> int | None:
    """Return the whole number of a dimension, None where it is searched."""
    if dim is None:
        return default
    return int(dim.value) if isinstance(dim, Constant) else None
