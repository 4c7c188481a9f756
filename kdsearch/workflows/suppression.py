"""The share of a latency budget that non-maximum suppression takes, by `--budget-with-nms`.

No student is trained when the search rejects by latency, so the share is that of the teacher's
boxes. The file that ships is checked with its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kdsearch import tasks
from kdsearch.deploy.suppression import IMAGES, measure_suppression
from kdsearch.errors import SpecError
from kdsearch.models.model import eval_batch
from kdsearch.study.config import StudyConfig
from kdsearch.teachers.evaluation import common_answer
from kdsearch.trials.trial import TrialContext


def with_suppression(config: StudyConfig, context: TrialContext) -> StudyConfig:
    """Return the configuration with the milliseconds of the budget that suppression takes.

    They are those of the teacher's boxes on validation images: no student is trained yet. Raises
    SpecError where they leave nothing for the network.
    """
    if not config.budget_with_nms or config.nms_ms is not None:
        return config
    data, device = context.data, context.device
    answer = common_answer(context.teachers, data, context.task, device)
    images = torch.split(data.val.some(IMAGES), eval_batch(data.size))
    with torch.no_grad():
        answers = [answer(part.to(device)) for part in images]
    taken = float(f"{measure_suppression(answers, context.latencies).p95_ms:.2g}")
    assert config.budget_ms is not None
    if taken >= config.budget_ms:
        raise SpecError(
            f"--budget-ms {config.budget_ms:g}: suppression of the teacher's boxes takes {taken:g} "
            "ms for 95 % of validation images, and leaves nothing for a network; raise the budget, "
            "or leave out --budget-with-nms"
        )
    return replace(config, nms_ms=taken)


def about_suppression(config: StudyConfig) -> list[str]:
    """Return the share of the budget that suppression takes, in words; nothing without one."""
    if config.nms_ms is None or config.budget_ms is None:
        return []
    return [
        f"Of the budget of {config.budget_ms:g} ms, {config.nms_ms:g} ms are for non-maximum "
        f"suppression, that of 95 % of the teacher's validation images; "
        f"{config.budget.latency_ms:.4g} ms are left for the network"
    ]


def check_suppression(config: StudyConfig, task: tasks.Task) -> None:
    """Raise SpecError for a budget that counts suppression where there is none."""
    if not config.budget_with_nms:
        return
    if not task.joins_boxes:
        raise SpecError(f"--budget-with-nms is for detection; the data are for {task.name}")
    if not config.is_limited("budget_ms"):
        raise SpecError("--budget-with-nms counts in --budget-ms; give that too")
