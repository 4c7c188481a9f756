"""The cost of one model, a segmenter too."""

from __future__ import annotations

import pytest
from quick import quick

from kdsearch import tasks
from kdsearch.deploy.flops import count
from kdsearch.errors import SpecError
from kdsearch.spec import StudentSpec
from kdsearch.study.config import StudyConfig
from kdsearch.workflows.measure import Measured, measure_model

SHAPE = (3, 64, 96)
BODY = {"width": 0.25, "depth": 4}


def measured(knobs: dict[str, object]) -> Measured:
    spec = StudentSpec(family="resnet", knobs=knobs)  # type: ignore[arg-type]
    with quick():
        return measure_model(
            spec, StudyConfig(), input_shape=SHAPE, note=lambda text: None, classes=5
        )


@pytest.mark.parametrize("kind", ["lraspp", "fpn"])
def test_a_student_with_a_head_is_measured_as_a_segmenter(kind: str) -> None:
    knobs = {**BODY, "head.kind": kind, "head.channels": 16}
    found = measured(knobs)
    network = tasks.get("segmentation")(["a", "b", "c", "d", "e"]).network(
        StudentSpec(family="resnet", knobs=knobs), channels=3, size=SHAPE[1:]
    )
    assert (found.flops, found.params) == count(network, input_shape=SHAPE)
    assert found.latency.ms > 0
    with pytest.raises(SpecError, match="classification takes square images, as 3x64x64"):
        measured(BODY)


def test_a_head_on_a_family_without_maps_is_refused() -> None:
    spec = StudentSpec(family="vit", knobs={"head.kind": "fpn"})
    with pytest.raises(SpecError, match="gives no maps at several strides"):
        measure_model(spec, StudyConfig(), input_shape=SHAPE, note=lambda text: None)
