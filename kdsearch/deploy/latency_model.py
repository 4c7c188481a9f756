"""Expect the latency of a student before it is measured, from the trials of its study.

log(upper end of the latency in ms) = level + family + a log(MFLOPs) + b log(M parameters): least
squares with a normal prior for each coefficient, so that it predicts from the first trial on. It
need not be exact: a width that it picks is measured, which its trial does anyway, and corrected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdsearch.data.base import ImageData
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import BUILD_LOCK, build_student, price
from kdsearch.space import Params
from kdsearch.spec import Budget, Candidate, Cost, TrialRecord
from kdsearch.study.width import Price

logger = logging.getLogger(__name__)
# Mean and standard deviation of each prior. Students of `digits` take .07 ms a MFLOP on one core of
# a server; a latency grows less than its FLOPs, as each operator costs something by itself.
_LEVEL = (np.log(0.07), 1.5)
_FLOPS = (0.6, 0.3)
_PARAMS = (0.0, 0.2)
_FAMILY = (0.0, 0.7)
_NOISE = 0.1  # standard deviation of a student's log latency around the model


class LatencyModel:
    """Costs with an expected latency, and with a measured one.

    static: FLOPs and parameters of a student. latencies: None where students are measured elsewhere
    (see `study.width.Latencies`).
    """

    def __init__(
        self, static: Price, data: ImageData, budget: Budget, latencies: LatencyCache | None
    ) -> None:
        self._static = static
        self._data = data
        self._budget = budget
        self._latencies = latencies

    def expected(self, records: Sequence[TrialRecord]) -> Price:
        """Return the price, latency included, that these trials let expect."""
        predict = Fit(
            [
                (_family(r.params), r.cost, r.cost.latency_high_ms or r.cost.latency_ms)
                for r in records
                if r.cost is not None and r.cost.latency_ms is not None and not r.kind
            ]
        )

        def price_of(params: Params) -> Cost | None:
            cost = self._static(params)
            if cost is None:
                return None
            return replace(cost, latency_ms=predict(_family(params), cost))

        return price_of

    def measured(self, params: Params) -> Cost | None:
        """Return the cost with the latency that the student's trial finds in the cache.

        None where it is not measured here or cannot be: then its trial fails with the reason.
        """
        if self._latencies is None:
            return None
        try:
            with BUILD_LOCK:
                student = build_student(Candidate.from_params(params).student, self._data)
            return price(student, budget=self._budget, latencies=self._latencies)
        except Exception as error:  # a candidate must not end the study, whatever it does
            logger.info("%s has no latency: %s", params, error)
            return None


class Fit:
    """The latency in ms, upper end, of a student of a family with these FLOPs and parameters.

    seen: family, cost and that latency of the students that were measured.
    """

    def __init__(self, seen: Sequence[tuple[str, Cost, float]]) -> None:
        self._families = sorted({family for family, _, _ in seen})
        priors = [_LEVEL, _FLOPS, _PARAMS, *(_FAMILY for _ in self._families)]
        mean, deviation = np.array(priors).T
        rows = np.array([self._row(family, cost) for family, cost, _ in seen])
        rows = rows.reshape(len(seen), len(priors))
        logs = np.log([ms for _, _, ms in seen])
        precision = np.diag(deviation**-2) + rows.T @ rows / _NOISE**2
        missed = rows.T @ (logs - rows @ mean) / _NOISE**2
        self._coefficients = mean + np.linalg.solve(precision, missed)

    def __call__(self, family: str, cost: Cost) -> float:
        """Return the expected upper end of the latency."""
        return float(np.exp(self._row(family, cost) @ self._coefficients))

    def _row(self, family: str, cost: Cost) -> np.ndarray:
        assert cost.flops is not None
        assert cost.params is not None
        size = np.log([cost.flops / 1e6, cost.params / 1e6])
        return np.array([1.0, *size, *(family == name for name in self._families)])


def _family(params: Params) -> str:
    return str(params["student.family"])
