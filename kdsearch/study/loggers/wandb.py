"""Weights & Biases: one run a trial, grouped by study; offline, unless WANDB_MODE is online."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent unasked

import wandb

from kdsearch.spec import TrialRecord
from kdsearch.study.loggers._numbers import epoch_numbers, final_numbers
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch


class WandB(Logger):
    """Writes `wandb/` in the study's folder; `wandb sync` sends it later."""

    def __init__(self, study: OpenStudy) -> None:
        self._study = study
        self._runs: dict[int, wandb.Run] = {}

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Begin a trial's run with its knobs."""
        self._runs[proposal.number] = wandb.init(
            project="kdsearch",
            group=self._study.name,
            name=f"{self._study.name}-{proposal.number}",
            dir=str(self._study.path),
            config=dict(proposal.params),
            mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
            reinit="create_new",  # trials run side by side
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Write the metric, losses and learning rate."""
        self._runs[number].log(epoch_numbers(epoch, self._study.metric), step=epoch.number)

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write the outcome and end the run; a reused trial has none."""
        run = self._runs.pop(record.number, None)
        if run is not None:
            numbers = final_numbers(record, self._study.metric)
            run.summary.update({**numbers, "state": record.state, "reason": record.reason})
            run.finish(exit_code=int(record.state == "failed"))

    def close(self) -> None:
        """End the runs of trials that were interrupted."""
        for run in self._runs.values():
            run.finish(exit_code=1)
