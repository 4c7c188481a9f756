"""Baselines: FLOPs and parameters of common untrained networks.

They are built for the data's image size and labels, and not trained, so only costs are known.
`kdsearch measure` gives their latency.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from kdsearch.data.base import CLASSIFICATION
from kdsearch.data.sizes import size_text
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import KDSearchError
from kdsearch.json_cache import JsonCache
from kdsearch.spec import StudentSpec
from kdsearch.study.summary import Baseline
from kdsearch.trials.trial import TrialContext

# Small, medium, large.
NETWORKS = ("timm:mobilenetv3_small_050", "timm:mobilenetv2_100", "timm:resnet18")


def measure_baselines(
    context: TrialContext, cache_dir: Path, note: Callable[[str], None]
) -> tuple[Baseline, ...]:
    """Return the costs of each network, cached below `cache_dir`; note those that have none.

    The cache serves all studies with the same image shape and number of classes.
    """
    if not context.task.has_library_networks:
        return ()
    cache = JsonCache(cache_dir / "baselines", Baseline)
    data = context.data
    task = "" if context.task.name == CLASSIFICATION else f" of {context.task.name}"
    what = f"{data.channels} x {size_text(data.size)}, {len(data.classes)} classes{task}"
    found = []
    for name in NETWORKS:
        try:
            found.append(cache.get_or_measure(f"{name} | {what}", partial(_price, name, context)))
        except KDSearchError as error:
            note(f"{name} is not shown as a baseline: {error}")
    return tuple(found)


def _price(name: str, context: TrialContext) -> Baseline:
    student = build_student(StudentSpec(family=name), context.data)
    flops, params = count(student.network, input_shape=student.preprocess.input_shape)
    return Baseline(name=name, flops=flops, params=params, latency_ms=None, latency_spread_ms=None)
