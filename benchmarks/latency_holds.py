"""Whether a stated latency holds: each file timed again in fresh processes, inside its interval?

An interval is stated for ten small students and three larger ones, as a study states it. Then a new
interpreter, which shares nothing with the first, times the same file, twice over: `again`, by the
same protocol with an empty cache, and `plain`, by the median of the wall clock over 0.4 s, neither
pinned nor beside a reference. Wants an idle machine; its load stands in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from kdsearch.deploy.formats.onnx import onnx_bytes
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.timing import Latency
from kdsearch.json_cache import processor
from kdsearch.models import students
from kdsearch.spec import StudentSpec

BAR = 0.9
STUDENTS = (
    (StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3}), 8),
    (StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3}), 32),
    (StudentSpec(family="resnet", knobs={"width": 0.5, "depth": 6}), 32),
    (StudentSpec(family="resnet", knobs={"width": 1.0, "depth": 9}), 32),
    (StudentSpec(family="mobilenet", knobs={"width": 0.5, "depth": 4}), 16),
    (StudentSpec(family="mobilenet", knobs={"width": 0.5, "depth": 6}), 32),
    (StudentSpec(family="mobilenet", knobs={"width": 1.0, "depth": 12}), 32),
    (StudentSpec(family="convnext", knobs={"width": 0.5, "depth": 6}), 32),
    (StudentSpec(family="vit", knobs={"width": 0.5, "depth": 6}), 32),
    (StudentSpec(family="vit", knobs={"width": 1.0, "depth": 12}), 32),
    (StudentSpec(family="timm:mobilenetv3_small_100"), 224),
    (StudentSpec(family="timm:resnet18"), 224),
    (StudentSpec(family="timm:vit_tiny_patch16_224"), 224),
)
_AGAIN = """
import sys
from pathlib import Path
from kdsearch.deploy.latency import measure
side = int(sys.argv[2])
print(measure(Path(sys.argv[1]), shape=(3, side, side)).ms)
"""
_PLAIN = """
import statistics, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
side = int(sys.argv[2])
images = numpy.random.default_rng(1).standard_normal((1, 3, side, side), dtype=numpy.float32)
feed = {session.get_inputs()[0].name: images}
for seconds in (0.1, 0.4):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
print(1e3 * statistics.median(times))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A stated latency, and what fresh processes found afterwards, in milliseconds."""

    student: str
    stated: Latency
    again: tuple[float, ...]
    plain: tuple[float, ...]

    def inside(self, found: Sequence[float]) -> int:
        """Return how many lie in the stated interval."""
        return sum(self.stated.low_ms <= ms <= self.stated.high_ms for ms in found)


def tries(folder: Path, repeats: int) -> Iterator[Tried]:
    """Yield a row a student: all are stated first, then all are timed again, `repeats` times."""
    stated: list[tuple[str, Path, int, Latency]] = []
    cache = LatencyCache(folder / "cache")
    for number, (spec, side) in enumerate(STUDENTS):
        network = students.build(spec, in_channels=3, num_classes=10, data_size=side)
        file = folder / f"{number}.onnx"
        file.write_bytes(onnx_bytes(network, input_shape=(3, side, side)))
        knobs = " ".join(f"{name} {value}" for name, value in spec.knobs.items())
        latency = cache.measure(file, shape=(3, side, side))
        stated.append((f"{spec.family} {knobs} at {side} px", file, side, latency))
    again = [
        [_in_new_process(_AGAIN, file, side) for _, file, side, _ in stated] for _ in range(repeats)
    ]
    plain = [
        [_in_new_process(_PLAIN, file, side) for _, file, side, _ in stated] for _ in range(repeats)
    ]
    for i, (name, _, _, latency) in enumerate(stated):
        yield Tried(
            student=name,
            stated=latency,
            again=tuple(found[i] for found in again),
            plain=tuple(found[i] for found in plain),
        )


def _in_new_process(script: str, file: Path, side: int) -> float:
    line = [sys.executable, "-c", script, str(file), str(side)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def share(rows: Sequence[Tried], found: Callable[[Tried], Sequence[float]]) -> float:
    """Return the fraction of all tries that lie inside."""
    return sum(row.inside(found(row)) for row in rows) / sum(len(found(row)) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when fewer than nine tenths of what is timed again lie inside."""
    parser = argparse.ArgumentParser(prog="benchmarks latency_holds", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--repeats", type=int, default=3, help="processes a student, each way")
    given = parser.parse_args(argv)
    before = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        rows = list(tries(Path(folder), given.repeats))
    again, plain = share(rows, lambda row: row.again), share(rows, lambda row: row.plain)
    for row in rows:
        found = f"again {row.inside(row.again)}, plain {row.inside(row.plain)} of {given.repeats}"
        print(f"{row.student:44} {found}: {row.stated}")
    print(f"inside: again {100 * again:.1f} %, plain {100 * plain:.1f} %; the bar is {100 * BAR} %")
    if given.json:
        result = {
            "benchmark": "latency_holds",
            "processor": processor(),
            "onnxruntime": version("onnxruntime"),
            "load_before_and_after": [before, os.getloadavg()[0]],
            "inside_again": again,
            "inside_plain": plain,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(again < BAR)
