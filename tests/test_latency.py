"""Latency grows with the network, and what was measured once is remembered."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdsearch.errors import CostError
from kdsearch.latency import Latency, LatencyCache, measure, measure_run
from kdsearch.runtimes import load

SHAPE = (8, 16, 16)
MEASURED = Latency(ms=1.25, spread_ms=0.1, contention=1.0)


def network(convolutions: int) -> bytes:
    """A chain of 3x3 convolutions of 8 channels."""
    weights = np.random.default_rng(0).standard_normal((8, 8, 3, 3), dtype=np.float32) / 9
    names = ["input", *(f"x{i}" for i in range(convolutions - 1)), "logits"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [source, "w"], [target], pads=[1, 1, 1, 1])
            for source, target in pairwise(names)
        ],
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *SHAPE])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_network_of_forty_times_the_work_takes_several_times_as_long():
    small = measure(network(1), shape=SHAPE, seconds=0.05)
    large = measure(network(40), shape=SHAPE, seconds=0.05)

    assert large.ms > 5 * small.ms


def test_batch_of_sixteen_takes_longer_than_one_image():
    one = measure(network(10), shape=SHAPE, seconds=0.05)
    many = measure(network(10), shape=SHAPE, seconds=0.05, batch=16)

    assert many.ms > 4 * one.ms


def test_measurement_is_repeatable_and_says_how_disturbed_it_was():
    first = measure(network(40), shape=SHAPE, seconds=0.1)
    second = measure(network(40), shape=SHAPE, seconds=0.1)

    assert 0.5 < first.ms / second.ms < 2
    assert first.contention > 0.9  # the wall clock is never behind the CPU clock
    assert first.spread_ms < first.ms


def test_two_threads_are_measured_by_the_wall_clock():
    assert measure(network(10), shape=SHAPE, seconds=0.05, threads=2).ms > 0


def test_file_and_its_bytes_are_the_same_network(tmp_path):
    path = tmp_path / "chain.onnx"
    path.write_bytes(network(10))

    assert (
        0.3
        < measure(path, shape=SHAPE, seconds=0.05).ms
        / measure(network(10), shape=SHAPE, seconds=0.05).ms
        < 3
    )


def test_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "torn.onnx"
    path.write_bytes(network(3)[:200])

    with pytest.raises(CostError, match=r"ONNX Runtime refuses .*torn\.onnx"):
        measure(path, shape=SHAPE)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(CostError, match=r"refuses .*absent\.onnx"):
        measure(tmp_path / "absent.onnx", shape=SHAPE)


def test_images_of_another_shape_are_refused():
    with pytest.raises(CostError, match=r"cannot run images \(1, 3, 16, 16\)"):
        measure(network(1), shape=(3, 16, 16))


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_latency_is_a_positive_number(ms):
    with pytest.raises(CostError, match="is not a latency"):
        Latency(ms=ms, spread_ms=0.0, contention=1.0)


def never() -> Latency:
    raise AssertionError("measured although it is kept")


def test_cache_returns_what_it_kept_without_measuring(tmp_path):
    assert LatencyCache(tmp_path).get_or_measure("resnet@cpu", lambda: MEASURED) == MEASURED

    assert LatencyCache(tmp_path).get_or_measure("resnet@cpu", never) == MEASURED


def test_cache_keeps_keys_apart(tmp_path):
    cache = LatencyCache(tmp_path)
    other = Latency(ms=7.0, spread_ms=0.5, contention=1.0)
    cache.get_or_measure("resnet@cpu", lambda: MEASURED)

    assert cache.get_or_measure("resnet@cpu, 2 threads", lambda: other) == other
    assert cache.get_or_measure("resnet@cpu", never) == MEASURED


def test_failed_measurement_leaves_no_file(tmp_path):
    with pytest.raises(CostError):
        LatencyCache(tmp_path).get_or_measure("x", lambda: measure(b"no", shape=SHAPE))

    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: text.replace("1.25", '"fast"'),
        lambda text: text.replace("1.25", "-1"),
        lambda text: text.replace("spread_ms", "spread"),
        lambda text: text.replace("resnet", "vgg"),
    ],
)
def test_damaged_entry_is_measured_again_and_mended(tmp_path, damage, caplog):
    cache = LatencyCache(tmp_path)
    cache.get_or_measure("resnet@cpu", lambda: MEASURED)
    (entry,) = (tmp_path / "latency").iterdir()
    entry.write_text(damage(entry.read_text()))
    again = Latency(ms=3.0, spread_ms=0.2, contention=1.0)

    assert cache.get_or_measure("resnet@cpu", lambda: again) == again
    assert "is damaged" in caplog.text
    assert cache.get_or_measure("resnet@cpu", never) == again


def test_measuring_needs_no_torch():
    code = "import sys, kdsearch.latency, kdsearch.export; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_a_loaded_file_takes_as_long_as_the_same_file_by_its_path(tmp_path):
    path = tmp_path / "chain.onnx"
    path.write_bytes(network(40))
    images = np.zeros((1, *SHAPE), np.float32)

    by_run = measure_run(load("onnxruntime", path), images, seconds=0.1)

    assert 0.5 < by_run.ms / measure(path, shape=SHAPE, seconds=0.1).ms < 2
