"""TensorBoard: one run a trial, curves per epoch, knobs with final numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from kdsearch.spec import TrialRecord
from kdsearch.study.loggers._numbers import final_numbers
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal
from kdsearch.tasks.base import Metric

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

FOLDER = "tensorboard"


class TensorBoard(Logger):
    """Writes `tensorboard/000042/` in the study's folder."""

    def __init__(self, study: OpenStudy) -> None:
        self._path = study.path / FOLDER
        self._metric = study.metric
        self._writers: dict[int, SummaryWriter] = {}

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Write the parameters as text."""
        self._writer(proposal.number).add_text(
            "trial", "\n".join(f"- {name}: {value}" for name, value in proposal.params.items())
        )

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Write the curves of one epoch."""
        write_epoch(self._writer(number), epoch, self._metric)

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write knobs and final numbers, if there are any, and end the run."""
        writer = self._writer(record.number)
        if record.val is not None:
            # Without a name they would be a second run.
            writer.add_hparams(
                dict(record.params), final_numbers(record, self._metric), run_name="."
            )
        else:
            writer.add_text("ended", f"{record.state}: {record.reason}")
        writer.close()
        del self._writers[record.number]

    def close(self) -> None:
        """End the runs of trials that were interrupted."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, number: int) -> SummaryWriter:
        if number not in self._writers:
            self._writers[number] = SummaryWriter(str(self._path / f"{number:06d}"))
        return self._writers[number]


def write_epoch(board: SummaryWriter, epoch: Epoch, metric: Metric) -> None:
    """Write an epoch's metric, losses and learning rate."""
    board.add_scalar(f"{metric.key}/student", epoch.val, epoch.number)
    for name, value in epoch.losses.items():
        board.add_scalar(f"loss/{name}", value, epoch.number)
    board.add_scalar("lr", epoch.lr, epoch.number)
