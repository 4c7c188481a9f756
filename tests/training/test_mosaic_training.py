"""A training on mosaics: which epochs have them, what a teacher sees, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detection_data
import pytest
import torch
from torch import Tensor

import kdsearch.data as datasets
from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.pricing import build_student
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.spec import DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import train

CPU = torch.device("cpu")
SMALL = {"width": 0.25, "depth": 4, "head.channels": 16, "head.depth": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    root = tmp_path_factory.mktemp("shapes")
    splits = {"train": 16, "val": 4, "test": 4}
    detection_data.write(root / "shapes", splits=splits)
    return datasets.load(str(root / "shapes"), cache_dir=root / "cache")


def model(data: ImageData, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_student(StudentSpec(family="resnet", knobs=SMALL), data)


def test_the_last_tenth_of_the_epochs_has_no_mosaics(data: ImageData) -> None:
    def shares(epochs: int) -> list[float]:
        spec = TrainSpec(epochs=epochs, mosaic=0.5)
        session = Session(data=data, spec=spec, seed=0, view_seed=0, device=CPU)
        return [session.augment(epoch).mosaic for epoch in range(1, epochs + 1)]

    assert shares(20) == [0.5] * 18 + [0.0] * 2
    assert shares(21) == [0.5] * 18 + [0.0] * 3
    assert shares(3) == [0.5, 0.5, 0.0]
    assert shares(1) == [0.0]


def test_teacher_and_student_see_the_same_mosaics_and_a_training_resumes_among_them(
    data: ImageData, tmp_path: Path
) -> None:
    """Losses of a training that pauses before its last, plain epoch are those of a whole one."""
    teacher, seen = model(data, seed=1).freeze(), []
    cache = TeacherOutputs(teacher, Feed(data.train, CPU), view_seed=0)
    spec = TrainSpec(epochs=3, batch_size=8, optimizer="adamw", lr=2e-3, scale=0.4, mosaic=0.5)

    class Seen:
        def rows(self, index: Tensor, host: Tensor, view: int, **given: Any) -> Outputs | None:
            seen.append((view, given["augment"].mosaic))
            return cache.rows(index, host, view, **given)

    def losses(folder: str, pauses: tuple[int | None, ...]) -> list[dict[str, float]]:
        for pause in pauses:
            student = model(data)
            sides = [
                Side(outputs=m.example(data.train.at(slice(2))), resolution=data.size)
                for m in (student, teacher)
            ]
            distill, task = DistillSpec(method="det_kd"), tasks.of(data)
            distiller = Distiller(distill, task=task, student=sides[0], teachers=sides[1:])
            outputs: Any = (Seen(),)
            session = Session(
                data=data, spec=spec, seed=0, view_seed=0, device=CPU, teachers=outputs
            )
            kept = Checkpoint(tmp_path / folder, "this")
            epochs = train(student, distiller, session, checkpoint=kept, pause_at=pause)
        return [epoch.losses for epoch in epochs]

    whole = losses("whole", (None,))
    assert sorted(set(seen)) == [(1, 0.5), (2, 0.5), (3, 0.0)]
    assert losses("parts", (2, None)) == whole
