"""The training loop. It knows no method's name and no study: losses come from the Distiller.

What is evaluated and kept is an exponential moving average of the weights: at early epochs it
ranks students as they will finish far better than the raw weights do. A student with inherited
weights has an epoch 0, before its first step, and keeps its best epoch: the first ones mostly dip.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from kdsearch.data.feed import Feed
from kdsearch.errors import TrainingError
from kdsearch.hpo.stopping import is_rung
from kdsearch.models.features import Outputs
from kdsearch.models.inherit.head import MAX_IMAGES, fit_head, has_fresh_head
from kdsearch.models.model import Model, batches
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.cuda_graph import own_stream
from kdsearch.training.distiller import Distiller
from kdsearch.training.step import Session, Step
from kdsearch.training.validation import Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch's record: mean losses by name, validation metric of the averaged weights, seconds.

    number: from 1; 0 is an inherited student before its first step. val: of the weights that the
    training returns if it ends here; own: of this epoch's, None where these are they.
    mode: how its steps ran: `bf16 channels_last graph`, or `fp32 eager: REASON`.
    stopped: why the training ended with it, though more epochs were planned. scales: of the first
    epoch alone, the task's loss and each term times its weight. is_taught: False where the labels
    alone taught, as the student had reached its teacher.
    """

    number: int
    losses: dict[str, float]
    val: float
    lr: float
    seconds: float
    mode: str = ""
    stopped: str = ""
    own: float | None = None
    scales: dict[str, float] = field(default_factory=dict)
    is_taught: bool = True

    @property
    def measured(self) -> float:
        """Return the validation metric of this epoch's own weights."""
        return self.val if self.own is None else self.own


_log = logging.getLogger(__name__)
_FEW_PIXELS = 2**15
OnEpoch = Callable[[Epoch, int], None]
ShouldStop = Callable[[tuple[float, ...], int], str | None]


def train(
    model: Model,
    distiller: Distiller,
    session: Session,
    *,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
    checkpoint: Checkpoint | None = None,
    pause_at: int | None = None,
    taught_to: float = math.inf,
) -> list[Epoch]:
    """Train `model` in place and return its epochs; it ends up with averaged weights.

    Where the model inherited weights, its fresh head is fitted before, and epoch 0 comes first.
    Those of the best epoch are kept as `TrainSpec.keep` says.

    on_epoch: called with each epoch and the planned number of epochs. should_stop: called at each
    rung with the values so far and that number; returns why to stop, or None. checkpoint: saves
    the training after each epoch and resumes it; the rungs before that stay passed. pause_at: the
    epoch after which to pause: the checkpoint is kept, and a later call resumes it. taught_to: the
    validation metric from which on the labels alone teach.

    Raises TrainingError when the loss is no longer finite.
    """
    with _threads_for(model, session), own_stream(session.device):
        step = Step(model, distiller, session)
        validation = Validation(
            step.average.model,
            session.val or Feed(session.data.val, session.device),
            session.task.meter(session.device),
            captures=session.captures,
        )
        try:
            records = [] if checkpoint is None else checkpoint.resume(step)
            epochs = [Epoch(**record) for record in records]
            if model.inherited and not epochs:
                epochs = [_epoch_0(model, session, step, validation)]
            if on_epoch is not None:
                for epoch in epochs:
                    on_epoch(epoch, session.spec.epochs)
            _train_on(
                epochs,
                step,
                validation,
                session=session,
                on_epoch=on_epoch,
                should_stop=should_stop,
                checkpoint=checkpoint,
                pause_at=pause_at,
                taught_to=taught_to,
            )
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "BatchNorm cannot train on one image at a time; raise train.batch_size, or lower "
                "train.accumulate"
            ) from error
        finally:
            step.close()
            validation.close()
        model.load_state_dict(step.kept.weights())
        model.to(memory_format=torch.contiguous_format)  # as weights are written
    if checkpoint is not None and (epochs[-1].stopped or epochs[-1].number == session.spec.epochs):
        checkpoint.remove()
    model.eval()
    return epochs


def _fit(model: Model, session: Session) -> None:
    """Fit the fresh head of an inherited model, where the recipe says so."""
    if session.spec.head != "fitted" or not has_fresh_head(model):
        return
    task, images = session.task, session.data.labelled
    every = -(-len(images) // MAX_IMAGES)
    few = images.take(torch.arange(0, len(images), every)) if every > 1 else images

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return task.loss(Outputs(logits, logits), labels)

    fit_head(model, batches(few, session.device), loss)


def _epoch_0(model: Model, session: Session, step: Step, validation: Validation) -> Epoch:
    """Return the record of an inherited model before its first step, its head fitted."""
    started = time.perf_counter()
    with session.step_lock:
        _fit(model, session)
        step.average.restart()
        val = step.kept.offer(validation())
    seconds = time.perf_counter() - started
    return Epoch(number=0, losses={}, val=val, lr=0.0, seconds=seconds, mode=step.mode)


def _train_on(
    epochs: list[Epoch],
    step: Step,
    validation: Validation,
    *,
    session: Session,
    on_epoch: OnEpoch | None,
    should_stop: ShouldStop | None,
    checkpoint: Checkpoint | None,
    pause_at: int | None,
    taught_to: float,
) -> None:
    """Train until the last epoch, a pause or a stop, and append each epoch."""
    count = session.spec.epochs
    last = count if pause_at is None else min(pause_at, count)
    done = epochs[-1].number if epochs else 0
    for number in range(done + 1, last + 1):
        started = time.perf_counter()
        is_taught = all(epoch.measured < taught_to for epoch in epochs)
        if not is_taught and (number == 1 or epochs[-1].is_taught):
            _log.info("From epoch %d on the labels alone teach: the teacher is reached", number)
        step.epoch(number, is_taught=is_taught)
        means = step.means()
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the loss became {means['loss']} in epoch {number}")
        with step.step_lock:
            own = validation()
        val = step.kept.offer(own)
        epoch = Epoch(
            number=number,
            losses=means,
            val=val,
            lr=step.rate_of(number),
            seconds=time.perf_counter() - started,
            mode=step.mode,
            own=None if val == own else own,
            scales=step.scales(means) if number == 1 and is_taught else {},
            is_taught=is_taught,
        )
        if len(epoch.scales) > 1:
            listed = ", ".join(f"{name} {value:.3g}" for name, value in epoch.scales.items())
            _log.info("Loss scales in epoch 1: %s", listed)
        epochs.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch, count)
        if should_stop is not None and is_rung(number, count):
            reason = should_stop(curve_of(epochs), count)
            if reason is not None:
                epochs[-1] = replace(epoch, stopped=reason)
                break
        if checkpoint is not None and number < count:
            checkpoint.keep(step, [asdict(done) for done in epochs], at_once=number == last)


def curve_of(epochs: Sequence[Epoch]) -> tuple[float, ...]:
    """Return the metric after each epoch from 1, of the weights that are kept by then."""
    return tuple(epoch.val for epoch in epochs if epoch.number)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with at most so many CPU threads."""
    usual = torch.get_num_threads()
    torch.set_num_threads(min(count, usual))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _threads_for(model: Model, session: Session) -> AbstractContextManager[None]:
    """Use one CPU thread for steps on few pixels, where a second one only costs.

    A step on 64 images, one thread against two: 6.2 and 7.6 ms at 8 px; on 128 images of 32 px:
    132 and 77 ms. The number depends on the sizes alone, so results repeat bit for bit.
    """
    pixels = math.prod(model.preprocess.size) * session.spec.batch_size
    if session.device.type == "cpu" and pixels <= _FEW_PIXELS:
        return threads(1)
    return nullcontext()
