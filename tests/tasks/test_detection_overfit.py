"""A small detector learns eight images by heart: an end-to-end mark of assignment and places."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

import kdsearch.data as datasets
from kdsearch import tasks
from kdsearch.data.views import to_input
from kdsearch.spec import StudentSpec

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
COUNT, STEPS, RATE = 8, 120, 4e-3


@pytest.mark.slow
@pytest.mark.skipif(not BCCD.is_dir(), reason="needs the BCCD images beside the checkout")
def test_eight_images_are_learned_within_three_minutes_of_one_core(tmp_path: Path) -> None:
    data = datasets.load(str(BCCD), cache_dir=tmp_path, size=320, subset=COUNT)
    task, labels = tasks.of(data), data.train.labels
    spec = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 4, "head.channels": 32})
    torch.manual_seed(0)
    network = task.network(spec, channels=3, size=data.size)
    images = to_input(
        data.train.at(slice(COUNT)),
        mean=data.mean,
        std=data.std,
        resolution=data.size,
        channels=3,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    threads, start = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        for step in range(STEPS):
            rate = min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / STEPS)) / 2
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate
            optimizer.zero_grad()
            task.loss(network.features(images), labels).backward()
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    seconds = time.process_time() - start
    meter = task.meter(torch.device("cpu"))
    with torch.no_grad():
        meter.add(network.eval()(images), labels)
    assert meter.value() > 0.9
    assert seconds < 180
