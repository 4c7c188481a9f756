"""Latency grows with the network, and what was measured once is remembered."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from kdsearch.deploy.latency import Latency, LatencyCache, measure
from kdsearch.deploy.targets import parse_target
from kdsearch.deploy.targets._reference_network import conv_chain
from kdsearch.deploy.targets.base import References, Target, TimingRequest
from kdsearch.deploy.timing import Round
from kdsearch.errors import CostError
from kdsearch.json_cache import processor

SHAPE = (8, 16, 16)
MEASURED = Latency(ms=1.25, low_ms=1.2, high_ms=1.3, spread_ms=0.1, contention=1.0)


def network(convolutions: int) -> bytes:
    """A chain of 3x3 convolutions of 8 channels."""
    file = conv_chain(convolutions, SHAPE)
    onnx.checker.check_model(onnx.load_from_string(file))
    return file


def test_batch_of_sixteen_takes_longer_than_one_image():
    one = measure(network(10), shape=SHAPE)
    many = measure(network(10), shape=SHAPE, target=parse_target("cpu", batch=16))

    assert many.ms > 4 * one.ms


def test_a_measurement_is_repeatable_and_states_contention():
    """Each has a process of its own, a reference of its own, and another load beside it."""
    ratios = []
    for _ in range(3):  # another load on its core may slow one of two for seconds
        first, second = measure(network(40), shape=SHAPE), measure(network(40), shape=SHAPE)
        ratios.append(first.ms / second.ms)
        if 0.8 < ratios[-1] < 1.25:
            break

    assert 0.8 < ratios[-1] < 1.25, ratios
    assert first.low_ms < first.ms < first.high_ms
    assert first.contention is not None
    assert first.contention > 0.9  # the wall clock is never behind the CPU clock


def test_slow_moments_of_the_reference_are_of_every_student(tmp_path, monkeypatch):
    """Blocks of 1 ms, a tenth of them 1.2: the 2nd of 100 is undisturbed, the 95th slow."""
    cache = LatencyCache(tmp_path)
    target = cache.target
    answers = {"seconds_alone": {"blocks": [1.0] * 90 + [1.2] * 10}, "length": {"ratio": 8.0}}
    file = {"ratio": 0.5, "length": 8, "contention": 1.0}
    monkeypatch.setattr(
        target._server,
        "request",
        lambda sent: next((answers[k] for k in answers if k in sent), file),
    )

    found = cache.measure(network(1), shape=SHAPE)

    assert found.ms == pytest.approx(0.5 * 8 * 1)
    assert found.pace == pytest.approx(1.2)
    assert found.high_ms == pytest.approx(4 * 1.02 * 1.2)
    kept = {file.name: json.loads(file.read_text()) for file in (tmp_path / "references").iterdir()}
    assert sorted(entry["reference"]["ms"] for entry in kept.values()) == [1.0, 8.0]


def test_two_threads_are_measured_by_the_wall_clock():
    assert measure(network(10), shape=SHAPE, target=parse_target("cpu", threads=2)).ms > 0


def test_file_and_its_bytes_are_the_same_network(tmp_path):
    path = tmp_path / "chain.onnx"
    path.write_bytes(network(10))

    assert 0.5 < measure(path, shape=SHAPE).ms / measure(network(10), shape=SHAPE).ms < 2


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(CostError, match=r"there is no file .*absent\.onnx"):
        measure(tmp_path / "absent.onnx", shape=SHAPE)


def test_images_of_another_shape_are_refused():
    with pytest.raises(CostError, match=r"cannot run images \(1, 3, 16, 16\)"):
        measure(network(1), shape=(3, 16, 16))


def never() -> Latency:
    raise AssertionError("measured although it is kept")


def test_a_cached_latency_is_of_its_key_and_returned_without_measuring(tmp_path):
    cache = LatencyCache(tmp_path)
    other = Latency(ms=7.0, low_ms=6.5, high_ms=7.5, spread_ms=0.5, contention=1.0)
    cache.latency_of("resnet@cpu", lambda: MEASURED)

    assert cache.latency_of("resnet@cpu, 2 threads", lambda: other) == other
    assert LatencyCache(tmp_path).latency_of("resnet@cpu", never) == MEASURED


def test_cache_keeps_targets_and_their_settings_apart(tmp_path):
    one, two = (LatencyCache(tmp_path, parse_target("cpu", threads=n)) for n in (1, 2))
    batch = LatencyCache(tmp_path, parse_target("cpu", batch=2))
    other = Latency(ms=7.0, low_ms=6.5, high_ms=7.5, spread_ms=0.5, contention=1.0)
    one.latency_of("resnet", lambda: MEASURED)

    assert two.latency_of("resnet", lambda: other) == other
    assert batch.latency_of("resnet", lambda: other) == other
    assert one.latency_of("resnet", never) == MEASURED


def test_a_reference_is_cached_and_scales_each_measurement(tmp_path):
    """A kept time of the double makes the same file twice as slow: the clock is a ratio."""
    cache = LatencyCache(tmp_path)
    before = cache.measure(network(10), shape=SHAPE)
    for entry in (tmp_path / "references").iterdir():
        kept = json.loads(entry.read_text())
        kept["reference"]["ms"] *= 2
        entry.write_text(json.dumps(kept))

    assert 1.6 < cache.measure(network(10), shape=SHAPE).ms / before.ms < 2.4


def test_what_was_cut_at_a_limit_serves_where_it_is_on_one_side_of_the_limit(tmp_path):
    cache = LatencyCache(tmp_path)
    cut = Latency(ms=7.0, low_ms=5.0, high_ms=9.0, spread_ms=0.5, contention=1.0, is_cut=True)
    whole = Latency(ms=6.9, low_ms=6.8, high_ms=7.0, spread_ms=0.1, contention=1.0)

    assert cache.latency_of("resnet", lambda: cut, 2.0) == cut
    assert cache.latency_of("resnet", never, 4.0) == cut
    assert cache.latency_of("resnet", never, 9.0) == cut
    assert cache.latency_of("resnet", never, math.inf) == cut
    assert cache.latency_of("resnet", lambda: whole, 6.0) == whole
    assert cache.latency_of("resnet", never) == whole


def test_a_full_measurement_changes_no_decision_at_a_limit(tmp_path):
    cache = LatencyCache(tmp_path)
    cut = Latency(ms=7.0, low_ms=5.0, high_ms=9.0, spread_ms=0.5, contention=1.0, is_cut=True)
    whole = Latency(ms=6.9, low_ms=6.8, high_ms=7.0, spread_ms=0.1, contention=1.0)

    assert cache.latency_of("resnet", lambda: cut, 2.0) == cut
    assert cache.latency_of("resnet", lambda: whole) == whole
    assert cache.latency_of("resnet", never, 2.0) == cut
    assert cache.latency_of("resnet", never) == whole


def test_failed_measurement_leaves_no_file(tmp_path):
    with pytest.raises(CostError):
        LatencyCache(tmp_path).latency_of("x", lambda: measure(b"no", shape=SHAPE))

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
    cache.latency_of("resnet@cpu", lambda: MEASURED)
    (entry,) = (tmp_path / "latency").iterdir()
    entry.write_text(damage(entry.read_text()))
    again = Latency(ms=3.0, low_ms=2.9, high_ms=3.1, spread_ms=0.2, contention=None)

    assert cache.latency_of("resnet@cpu", lambda: again) == again
    assert "is damaged" in caplog.text
    assert cache.latency_of("resnet@cpu", never) == again


def test_measuring_needs_no_torch():
    code = (
        "import sys, kdsearch.deploy.latency, kdsearch.deploy.formats\n"
        "print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_files_of_a_runtime_that_the_target_takes_are_timed_on_it(tmp_path):
    cache = LatencyCache(tmp_path, parse_target("cpu", threads=2, batch=4))

    assert cache.for_runtime("onnxruntime") is cache
    other = cache.for_runtime("torch_export").target
    assert (other.name, other.threads, other.batch) == ("torch_export", 2, 4)
    assert other.device == "cpu"


class _Asks(Target):
    """Takes one kind of file and records its requests."""

    device, runtime = "cpu", "any"

    def __init__(self, takes: str) -> None:
        super().__init__()
        self.takes = (takes,)
        self.names: set[str] = set()

    def version(self) -> str:
        return "1"

    def measure_round(self, timing: TimingRequest, references: References) -> Round:
        self.names.add(timing.file.name)
        return Round(ms=1.0)


@pytest.mark.parametrize(
    ("takes", "name"), [("onnxruntime", "student.onnx"), ("torch_export", "student.pt2")]
)
def test_bytes_are_named_by_what_the_target_takes(takes, name, tmp_path):
    target = _Asks(takes)
    LatencyCache(tmp_path, target).measure(b"any", shape=SHAPE)
    assert target.names == {name}


def test_a_processor_is_named_without_the_key_of_its_line():
    assert "model name" not in processor()
    assert "\t" not in processor()


def test_a_file_of_pixels_is_fed_pixels():
    """A cast of [4, 4, 3] bytes to float: it refuses anything else."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["pixels"], ["logits"], to=TensorProto.FLOAT)],
        "cast",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 4, 3])],
    )
    opset = [helper.make_opsetid("", 20)]
    cast = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()

    assert measure(cast, shape=(4, 4, 3), dtype="uint8").ms > 0
    with pytest.raises(CostError, match=r"cannot run images \(1, 4, 4, 3\)"):
        measure(cast, shape=(4, 4, 3))
