"""Trials on Ray: each actor prepares the study's context once and runs trials one after another.

The nodes share the results folder: actors map images and teacher outputs from its cache, and resume
an unfinished training from there on any node. An actor on a node that does not see that folder ends
the run. On a CPU an actor computes with one thread. At a rung a trial asks the pruner, an actor of
its own on the driver's node.
"""

from __future__ import annotations

import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdsearch import atomic
from kdsearch.engines.dispatch import Engine
from kdsearch.engines.processes import load_context
from kdsearch.errors import SpecError, StudyError
from kdsearch.extras import install
from kdsearch.spec import Candidate
from kdsearch.study.config import StudyConfig
from kdsearch.study.early_stopping import OnRung, RungPruner
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.training.trainer import Epoch
from kdsearch.trials.trial import UNFINISHED, TrialContext, run_trial

if TYPE_CHECKING:
    from kdsearch.engines.ray_tune import Evaluate, Report

_ADDRESS = re.compile(r"none|auto|[^:/\s]+:[0-9]{1,5}")
_SIGN = "driver"  # a file in the folder of unfinished trainings that proves a node shares it
OnTrialEpoch = Callable[[int, Epoch, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnRay:
    """Where Ray runs, and each trial's share of a GPU; None: a whole one.

    address: `none` for a Ray of our own on this machine, `auto`, or HOST:PORT of a cluster.
    """

    address: str = "none"
    gpus_per_trial: float | None = None

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise SpecError(f"--engine ray needs Ray: `{install('ray')}`")
        if not _ADDRESS.fullmatch(self.address):
            raise SpecError(
                f"--ray-address {self.address!r}: expected none, auto or HOST:PORT of a cluster "
                "that this machine is a node of"
            )
        if self.gpus_per_trial is not None and not 0 < self.gpus_per_trial <= 1:
            raise SpecError(
                f"--gpus-per-trial {self.gpus_per_trial:g}: expected above 0 and up to 1, such as "
                "0.25 for four trials on a GPU"
            )

    def share(self, device: torch.device) -> float:
        """Return the share of a GPU that a trial has. Raises SpecError for one without a GPU."""
        if device.type == "cuda":
            return self.gpus_per_trial or 1.0
        if self.gpus_per_trial is not None:
            raise SpecError(
                f"--gpus-per-trial {self.gpus_per_trial:g}: trials run on the {device.type}; "
                "leave it out, or give --device cuda"
            )
        return 0.0


@contextmanager
def open_actors(
    count: int | None,
    study: OpenStudy,
    on_ray: OnRay,
    *,
    device: torch.device,
    timeout: float | None,
    on_epoch: OnTrialEpoch,
    pruner: RungPruner,
) -> Iterator[Engine]:
    """Give an engine of that many actors on Ray, or of as many as it has room for."""
    from kdsearch.engines import ray_cluster, ray_tune

    def on_progress(proposal: Proposal, epoch: Epoch, epochs: int) -> None:
        on_epoch(proposal.number, epoch, epochs)

    sign = uuid.uuid4().hex
    (study.path / UNFINISHED).mkdir(exist_ok=True)
    atomic.write(study.path / UNFINISHED / _SIGN, sign)
    start = partial(
        _start,
        study.config,
        study.path.absolute(),
        folder=Path.cwd(),
        device=device if device.type == "cpu" else torch.device(device.type, 0),
        sign=sign,
    )
    share = on_ray.share(device)
    with ray_cluster.connected(on_ray.address, cpus=count):
        room = ray_cluster.room(share)
        if room == 0:
            raise StudyError(
                f"--ray-address {on_ray.address}: Ray has no node with a CPU"
                + (f" and {share:g} of a GPU" if share else "")
            )
        pruner.update(study.records())
        ask = ray_cluster.PrunerActor(pruner) if pruner.mode != "off" else None
        yield partial(
            ray_tune.run,
            start=partial(start, on_rung=ask),
            workers=count or room,
            gpus=share,
            timeout=timeout,
            on_end=None if ask is None else ask.update,
            on_progress=on_progress,
        )


def _start(
    config: StudyConfig,
    study: Path,
    *,
    folder: Path,
    device: torch.device,
    sign: str,
    on_rung: OnRung | None,
) -> Evaluate:
    """Prepare the study's context in an actor, and return what runs a trial there.

    It works in the driver's folder, since the study may name files from there.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise StudyError(
            f"node {platform.node()} has no {folder}, where kdsearch was started; start it in a "
            "folder that all nodes see"
        ) from error
    file = study / UNFINISHED / _SIGN
    if not file.is_file() or file.read_text(encoding="utf-8") != sign:
        raise StudyError(
            f"node {platform.node()} does not see this study's {study}; put --out on a folder that "
            "all nodes see"
        )
    if device.type == "cpu":
        torch.set_num_threads(1)
    context = replace(load_context(config, study.parent, device), unfinished=study / UNFINISHED)
    return partial(_evaluate, context, study, on_rung)


def _evaluate(
    context: TrialContext,
    study: Path,
    on_rung: OnRung | None,
    proposal: Proposal,
    report: Report,
) -> TrialOutcome:
    return run_trial(
        Candidate.from_params(proposal.params),
        context,
        study / "trials" / f"{proposal.number:06d}",
        on_epoch=report,
        on_rung=None if proposal.kind else on_rung,
        pause_at=proposal.pause_at,
    )
