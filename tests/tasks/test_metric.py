"""A metric writes its values in its unit and knows the noise of a split."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdsearch.tasks import Metric

ACCURACY = Metric(key="accuracy", label="accuracy")
FIT = Metric(key="fit", label="goodness of fit", is_percent=False, image_variance=0.04)


def test_a_share_is_written_in_percent_and_its_difference_in_points() -> None:
    assert ACCURACY.text(0.9731) == "97.31 %"
    assert ACCURACY.difference(0.012) + ACCURACY.points == "+1.20 points"
    assert ACCURACY.difference(-0.012) == "-1.20"


def test_a_plain_number_has_no_unit() -> None:
    assert FIT.text(0.9731) == "0.9731"
    assert FIT.difference(0.012) + FIT.points == "+0.0120"


def test_the_noise_of_a_share_is_binomial_by_the_rule_of_laplace() -> None:
    share = (0.9 * 98 + 1) / 100
    assert ACCURACY.standard_error(0.9, 98) == pytest.approx((share * (1 - share) / 98) ** 0.5)
    assert ACCURACY.standard_error(1.0, 98) > 0


def test_a_task_may_state_the_variance_of_an_image() -> None:
    assert FIT.standard_error(0.3, 100) == pytest.approx(0.02)


def test_metrics_and_names_of_tasks_load_no_torch() -> None:
    script = "import kdsearch.tasks as t; t.names(); import sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "False"
