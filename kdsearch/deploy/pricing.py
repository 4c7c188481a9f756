"""Price a student before it is trained: FLOPs, parameters, latency of its file on the target.

Latency is measured only where the budget limits it, for a student within the other limits, once
an architecture and input.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import nn

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy.closed_forms import without_weights
from kdsearch.deploy.flops import count
from kdsearch.deploy.formats._program import program_bytes
from kdsearch.deploy.formats.onnx import onnx_bytes
from kdsearch.deploy.latency import Latency, LatencyCache
from kdsearch.deploy.targets.base import Shape, Target
from kdsearch.digests import changed, digest_of
from kdsearch.errors import CostError, ExportError
from kdsearch.models import students
from kdsearch.models.features import bare
from kdsearch.models.inherit.library import statistics_in
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.weights import fit_weights, read_weights, save_weights
from kdsearch.registry import sources_of
from kdsearch.space import Params
from kdsearch.spec import INITS, Budget, Candidate, Cost, StudentSpec

logger = logging.getLogger(__name__)
# Trials may be threads of one process, which has one random state and one exporter state in torch:
# one thread at a time builds or traces.
BUILD_LOCK = threading.Lock()
_MEASURE_LOCK = threading.Lock()  # the second of two equal students finds what the first measured


def build_student(spec: StudentSpec, data: ImageData) -> Model:
    """Return an untrained student on the CPU, with the preprocessing of its data."""
    network = tasks.of(data).network(spec, channels=data.channels, size=data.size)
    return Model(spec.family, network, preprocess_of(spec, data))


def save_student(student: Model, path: Path) -> None:
    """Write the weights of a trained student, and the statistics of its pixels, to one file."""
    shown = student.preprocess
    facts = {"mean": json.dumps(shown.mean), "std": json.dumps(shown.std)}
    save_weights(bare(student.network), path, facts)


def load_student(spec: StudentSpec, data: ImageData, path: Path) -> Model:
    """Return the student that `save_student` wrote, frozen, on the CPU. Raises SpecError."""
    student = build_student(spec, data)
    fit_weights(bare(student.network), read_weights(path), where=str(path))
    student.preprocess = with_statistics(student.preprocess, path)
    return student.freeze()


def with_statistics(preprocess: Preprocess, path: Path) -> Preprocess:
    """Return a preprocessing with the statistics in a student's weights file, if it has them."""
    found = statistics_in(path)
    return preprocess if found is None else replace(preprocess, mean=found.mean, std=found.std)


def preprocess_of(spec: StudentSpec, data: ImageData) -> Preprocess:
    """Return the preprocessing of a student that is trained on `data`."""
    size = tasks.of(data).input_size(data.size, spec.resolution)
    return Preprocess(mean=data.mean, std=data.std, resolution=size, channels=data.channels)


def price(student: Model, *, budget: Budget, latencies: LatencyCache) -> Cost:
    """Return the cost of a student. Latency is measured only for a budget of it, within the others.

    Raises CostError where it cannot be counted, or, if it is of no built-in family, not exported.
    """
    shape = student.preprocess.input_shape
    with BUILD_LOCK:
        flops, params = count(student.network, input_shape=shape)
    cost = Cost(flops=flops, params=params)
    is_over = any(violation > 0 for violation in budget.violations(cost).values())
    if is_over:
        return cost
    if budget.latency_ms is None:
        if student.name not in students.names():  # trained for nothing if its file cannot be made
            with BUILD_LOCK:
                file_for(student.network, latencies.target, shape)
        return cost
    latency = latency_of(student, latencies, limit=budget.latency_ms)
    return replace(cost, **latency.as_cost())


class StaticCosts:
    """FLOPs and parameters of students before their trials, counted once an architecture.

    A network is built on the meta device, without weights: 10 ms of CPU for a student of
    `classification-small`. One that cannot be is built with them.
    """

    def __init__(self, data: ImageData) -> None:
        self._data = data
        self._known: dict[str, Cost | None] = {}

    def __call__(self, params: Params) -> Cost | None:
        """Return the cost of a candidate; None if it cannot be built: its trial will fail."""
        spec = replace(Candidate.from_params(params).student, init=INITS[0])
        name = digest_of(changed(spec))
        if name not in self._known:
            self._known[name] = self._count(spec)
        return self._known[name]

    def _count(self, spec: StudentSpec) -> Cost | None:
        # A network of a user or a library may need its numbers, and is built once more with them.
        for device in (without_weights(), nullcontext()):
            try:
                with BUILD_LOCK, device:
                    student = build_student(spec, self._data)
                    shape = student.preprocess.input_shape
                    flops, params = count(student.network, input_shape=shape)
                return Cost(flops=flops, params=params)
            except Exception as error:  # no message: a trial that cannot be built gives its reason
                logger.debug("Cannot count the FLOPs of %s: %s", spec, error)
        return None


def latency_of(model: Model, cache: LatencyCache, *, limit: float | None = None) -> Latency:
    """Return the latency of a model's file on the target, measured once per architecture and input.

    limit: in ms; measuring stops once the whole interval is on one side of it; infinity takes one
    round. The key of an architecture is its repr, its shapes and its user's file, not its name: the
    file may change under the same name.
    """
    shape = model.preprocess.input_shape
    network = bare(model.network)
    weights = {name: list(value.shape) for name, value in network.state_dict().items()}
    key = [repr(network), weights, shape, *filter(None, [sources_of([model.name])])]

    def measure() -> Latency:
        with BUILD_LOCK:  # other trials may be built while this one is measured
            file = file_for(model.network, cache.target, shape)
        return cache.measure(file, shape=shape, limit=limit)

    with _MEASURE_LOCK:
        return cache.latency_of(digest_of(key), measure, limit)


def file_for(network: nn.Module, target: Target, shape: Shape) -> bytes:
    """Return the file that a target times, ONNX or a `.pt2` program; the network may be untrained.

    Raises CostError when it does not export.
    """
    if "onnxruntime" in target.takes:
        return onnx_bytes(network, input_shape=shape)
    try:
        return program_bytes(network, input_shape=shape)
    except ExportError as error:
        raise CostError(str(error)) from error
