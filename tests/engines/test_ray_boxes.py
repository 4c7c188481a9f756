"""A study of boxes on Ray finds what one here finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from dense_study import finished

from kdsearch.study.open import load_study
from kdsearch.study.study import searched

pytest.importorskip("ray")


@pytest.mark.slow
def test_a_detector_trained_on_ray_is_the_one_trained_here(tmp_path: Path) -> None:
    first = finished("detection", tmp_path)
    found = first.run("on-ray", engine="ray")
    (here,) = searched(load_study(first.path).records())
    (there,) = searched(found.trials)
    assert there.params == here.params
    assert there.curve == pytest.approx(here.curve, abs=1e-6)
