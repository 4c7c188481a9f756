"""Baselines: common untrained networks, priced as students are.

They are built for the data's image size and labels, and not trained, so only costs are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from kdsearch.data.base import CLASSIFICATION
from kdsearch.data.sizes import size_text
from kdsearch.deploy.pricing import build_student, price
from kdsearch.errors import KDSearchError
from kdsearch.json_cache import JsonCache
from kdsearch.spec import Budget, StudentSpec
from kdsearch.study.summary import Baseline
from kdsearch.trials.trial import TrialContext

# Small, medium, large; only three, since they take 16 s of CPU, once a machine.
NETWORKS = ("timm:mobilenetv3_small_050", "timm:mobilenetv2_100", "timm:resnet18")


def measure_baselines(
    context: TrialContext, cache_dir: Path, note: Callable[[str], None]
) -> tuple[Baseline, ...]:
    """Return the costs of each network, cached below `cache_dir`; note those that have none.

    The cache serves all studies with the same image shape, number of classes and target.
    """
    cache = JsonCache(cache_dir / "baselines", Baseline)
    data = context.data
    task = "" if context.task.name == CLASSIFICATION else f" of {context.task.name}"
    images = f"{data.channels} x {size_text(data.size)}, {len(data.classes)} classes{task}"
    what = f"{images} | {context.latencies.here()}"
    found = []
    for name in NETWORKS:
        try:
            found.append(cache.get_or_measure(f"{name} | {what}", partial(_price, name, context)))
        except KDSearchError as error:
            note(f"{name} is not shown as a baseline: {error}")
    return tuple(found)


def _price(name: str, context: TrialContext) -> Baseline:
    student = build_student(StudentSpec(family=name), context.data)
    cost = price(student, budget=Budget(), latencies=context.latencies)
    return Baseline(name=name, **asdict(cost))
