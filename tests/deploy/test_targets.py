"""Every target times what it is given, in fresh processes, or says what is missing."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from test_latency import SHAPE, network
from torch import nn
from torch.export import passes

from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.formats._program import program_bytes
from kdsearch.deploy.latency import LatencyCache, measure
from kdsearch.deploy.pricing import file_for
from kdsearch.deploy.targets import TARGETS, parse_target, require_target, target_info
from kdsearch.deploy.targets._fork_server import ForkServer
from kdsearch.deploy.targets.base import Reference, References, Target, TimingRequest
from kdsearch.deploy.targets.cmd import Cmd
from kdsearch.deploy.targets.cuda import Cuda
from kdsearch.errors import CostError, SpecError
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TargetInfo

SLOW_TORCH = pytest.param("torch", marks=pytest.mark.slow)  # 2 s a round
TIMING = """
import os, sys, time
import numpy, onnxruntime
channels, height, width = map(int, os.environ["KDSEARCH_INPUT"].split("x"))
batch, threads = int(os.environ["KDSEARCH_BATCH"]), int(os.environ["KDSEARCH_THREADS"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(sys.argv[-1], options, providers=["CPUExecutionProvider"])
images = numpy.zeros((batch, channels, height, width), numpy.float32)
for _ in range(30):
    start = time.thread_time()
    session.run(None, {"input": images})
    print(1e3 * (time.thread_time() - start))
"""


def nothing_kept(_name: str, make: References) -> Reference:
    raise AssertionError("no reference is needed here")


def command(tmp_path: Path, script: str) -> str:
    path = tmp_path / "with a space.py"
    path.write_text(script)
    return f"cmd:{shlex.join([sys.executable, str(path)])}"


def usable(name: str) -> Target:
    """The target, or the test is skipped where it cannot be used here."""
    target = parse_target(name)
    try:
        target.require()
    except SpecError as error:
        pytest.skip(str(error))
    return target


def file_of(target: Target, count: int) -> bytes:
    """That many convolutions in a file that the target takes."""
    if "onnxruntime" in target.takes:
        return network(count)
    chain = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(count)))
    return file_for(chain, target, SHAPE)


def test_the_targets_are_these() -> None:
    assert TARGETS.names() == (
        *("cmd", "cpu", "cuda", "mnn", "ncnn", "openvino", "tensorrt", "torch"),
    )


def test_an_unknown_target_is_refused_with_those_there_are() -> None:
    with pytest.raises(SpecError, match=r"unknown --target 'cpuu' \(did you mean 'cpu'\?\); known"):
        parse_target("cpuu")
    for wrong in ("nonsense", "cm:python"):
        with pytest.raises(SpecError, match=f"unknown --target '{wrong}'; known: cmd:COMMAND, cpu"):
            parse_target(wrong)
    with pytest.raises(SpecError, match="only cmd takes a command after the colon"):
        parse_target("cpu:0").require()


@pytest.mark.parametrize("name", ["cpu", "torch", "openvino", "cuda", "tensorrt"])
@pytest.mark.parametrize("wrong", ["threads", "batch"])
def test_settings_are_part_of_the_key(name: str, wrong: str) -> None:
    assert parse_target(name).key() != parse_target(name, **{wrong: 2}).key()


@pytest.mark.parametrize("name", ["cpu", SLOW_TORCH, "openvino"])
def test_a_longer_network_takes_longer(name: str) -> None:
    target = usable(name)
    times = []
    for count in (2, 40):
        file = file_of(target, count)
        found = measure(file, shape=SHAPE, target=target)
        assert found.contention is not None
        times.append(found.ms)

    assert times[1] > 3 * times[0]


@pytest.mark.parametrize("name", ["cpu", "torch", "openvino"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "torn"
    file.write_bytes(network(3)[:200])

    with pytest.raises(CostError, match=r"refuses .*torn"):
        measure(file, shape=SHAPE, target=usable(name))


@pytest.mark.skipif(find_spec("openvino") is not None, reason="OpenVINO is installed here")
def test_the_error_for_a_missing_runtime_names_its_extra() -> None:
    with pytest.raises(SpecError, match=r"--target openvino: .*pip install \"openvino>=2026\.1\""):
        require_target(StudyConfig(target="openvino"))


def test_more_threads_than_cores_are_refused() -> None:
    cores = os.cpu_count() or 1
    require_target(StudyConfig(threads=cores))
    with pytest.raises(SpecError, match=f"--threads {cores + 1}: this machine has {cores} cores"):
        require_target(StudyConfig(threads=cores + 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(SpecError, match="--target cuda: PyTorch sees no GPU"):
        require_target(StudyConfig(target="cuda"))


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in onnxruntime.get_available_providers(), reason="it has TensorRT"
)
def test_a_missing_tensorrt_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"--target tensorrt: this ONNX Runtime has .*CPUExec"):
        require_target(StudyConfig(target="tensorrt"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_longer_network_takes_longer_on_a_gpu(name: str) -> None:
    target = usable(name)
    times = []
    for count in (2, 40):
        file = file_of(target, count)
        times.append(measure(file, shape=SHAPE, target=target).ms)

    assert times[1] > 3 * times[0]


def test_a_command_that_times_onnxruntime_agrees_with_cpu(tmp_path: Path) -> None:
    target = parse_target(command(tmp_path, TIMING))
    target.require()
    file = network(40)
    ours, theirs = measure(file, shape=SHAPE), measure(file, shape=SHAPE, target=target)

    assert 0.5 < theirs.ms / ours.ms < 2
    assert theirs.contention is None


def test_a_command_gets_the_file_the_batch_and_the_threads(tmp_path: Path) -> None:
    """(16 images + 3 threads + 8 channels, and 100 for a file that is there) ms."""
    script = (
        "import os, sys; e = os.environ\n"
        "print(int(e['KDSEARCH_BATCH']) + int(e['KDSEARCH_THREADS'])\n"
        "    + int(e['KDSEARCH_INPUT'].split('x')[0]) + 100 * os.path.isfile(sys.argv[-1]))"
    )
    target = parse_target(command(tmp_path, script), threads=3, batch=16)

    assert measure(network(1), shape=SHAPE, target=target).ms == pytest.approx(127)


def test_a_commands_round_is_the_median_of_its_numbers(tmp_path: Path) -> None:
    target = parse_target(command(tmp_path, "print('1 2'); print(30.0)"))

    assert target.measure_round(TimingRequest(file=tmp_path, shape=SHAPE), nothing_kept).ms == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print(1); print('no device', file=sys.stderr); sys.exit(3)", "ended with 3"),
        ("pass", "printed nothing; expected milliseconds above 0"),
        ("print('1.5 nan')", "printed '1.5 nan'; expected milliseconds above 0"),
        ("print('x' * 1000)", "printed 'x{199}…'; expected milliseconds"),
        ("print('inf')", "printed 'inf'; expected"),
        ("print(0)", "printed '0'; expected"),
        (
            "print('took 1.5 ms')",
            "the ONNX file as its last argument and printed 'took 1.5 ms'; expected",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
    ],
)
def test_the_error_of_a_failing_command_names_it(tmp_path: Path, script: str, message: str) -> None:
    target = parse_target(command(tmp_path, script))
    with pytest.raises(CostError, match=f"(?s)with a space.*{message}") as error:
        target.measure_round(TimingRequest(file=tmp_path, shape=SHAPE), nothing_kept)

    assert ("no device" in str(error.value)) == ("no device" in script)


def test_a_command_is_rehearsed_on_images_as_the_students_take_them(tmp_path: Path) -> None:
    script = TIMING.replace("os, sys, time\n", "os, sys, time; time.sleep(0.2)\n")
    message: list[str] = []
    parse_target(command(tmp_path, script), batch=2).dry_run((3, 16, 24), message.append)

    first, then = message
    assert first.startswith("Trying --target cmd:")
    found = re.fullmatch(r"It took (.+) s; a network is measured by 3 to 6 such .*", then)
    assert found is not None
    assert float(found[1]) >= 0.2


def test_a_command_that_fails_its_dry_run_is_refused_with_its_output(tmp_path: Path) -> None:
    target = parse_target(command(tmp_path, "raise SystemExit('adb: no devices')"))
    with pytest.raises(SpecError, match=r"(?s)small ONNX file of 1x8x8: .*ended with 1.*adb: no d"):
        target.dry_run((1, 8, 8), lambda _: None)


def test_a_command_that_leaves_a_process_on_its_pipe_does_not_hang(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "code = 'import time; time.sleep(30)'\n"
        "subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "print(1)"
    )
    require_timeout(tmp_path, script)


def require_timeout(tmp_path: Path, script: str) -> None:
    target = parse_target(command(tmp_path, script))
    assert isinstance(target, Cmd)
    target.timeout_seconds = 2.0
    begun = time.monotonic()
    with pytest.raises(CostError, match="took more than 2 s"):
        target.measure_round(TimingRequest(file=tmp_path, shape=SHAPE), nothing_kept)
    assert time.monotonic() - begun < 20


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = (
        "import subprocess, sys, time\n"
        "code = 'import time; time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        f"open({str(started)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    require_timeout(tmp_path, script)
    assert gone(int(started.read_text()))


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds; one that nobody waits for counts as ended."""
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or ") Z " in state.read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cmd", "expected cmd:COMMAND"),
        ("cmd:", "expected cmd:COMMAND"),
        ("cmd:no-such-program --fast", "there is no program 'no-such-program'"),
        ("cmd:sh 'unclosed", "No closing quotation"),
    ],
)
def test_an_unusable_command_is_refused_before_a_study(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        require_target(StudyConfig(target=text))


@pytest.mark.parametrize("name", ["cpu", SLOW_TORCH])
def test_a_process_that_dies_costs_its_student_alone(name: str, tmp_path: Path) -> None:
    """The parent outlives its fork, and a killed parent is started again."""
    target = usable(name)
    file = tmp_path / "file"
    file.write_bytes(file_of(target, 2))
    cache = LatencyCache(tmp_path, target)
    assert cache.measure(file, shape=SHAPE).ms > 0
    parent = target._server._parent  # type: ignore[attr-defined]
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert cache.measure(file, shape=SHAPE).ms > 0


def test_an_interrupted_question_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    long, short = tmp_path / "long", tmp_path / "short"
    long.write_bytes(network(400))
    short.write_bytes(network(1))
    cache = LatencyCache(tmp_path)
    expected = cache.measure(short, shape=SHAPE).ms
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            cache.target.measure_round(TimingRequest(file=long, shape=SHAPE), nothing_kept)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert (
        cache.target.measure_round(TimingRequest(file=short, shape=SHAPE), cache._reference).ms
        < 3 * expected
    )


HUNG = """
import os, time
class Hung:
    def prepare(self):
        pass
    def handle(self, request):
        if request["file"].endswith("slow"):
            time.sleep(60)
        return {"pid": os.getppid()}
"""


def test_a_hung_runtime_is_ended_and_lets_go_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hung.py").write_text(HUNG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ForkServer, "timeout_seconds", 20.0)
    cache = LatencyCache(tmp_path)
    server = cache.target._server = ForkServer("hung:Hung", {})  # type: ignore[attr-defined]
    parent = server.request({"file": "quick"})["pid"]
    monkeypatch.setattr(ForkServer, "timeout_seconds", 0.2)
    (tmp_path / "slow").touch()

    with pytest.raises(CostError, match=r"gave no answer within 0\.2 s and was ended"):
        cache.measure(tmp_path / "slow", shape=SHAPE)
    monkeypatch.setattr(ForkServer, "timeout_seconds", 20.0)
    with DeviceLock().exclusive():
        assert server.request({"file": "quick"})["pid"] != parent
    assert isinstance(parent, int)
    assert gone(parent)


def test_a_forgotten_target_leaves_no_process(tmp_path: Path) -> None:
    target = parse_target("cpu")
    measure(network(1), shape=SHAPE, target=target)
    parent: subprocess.Popen[str] = target._server._parent  # type: ignore[attr-defined]
    assert parent.poll() is None
    del target

    assert parent.wait(20) == 0


def test_a_target_is_described_for_front_json() -> None:
    assert target_info(StudyConfig()) == TargetInfo()
    assert target_info(StudyConfig(target="cmd:ssh board run", batch=8)) == TargetInfo(
        device="cmd", runtime="ssh board run", threads=1, batch=8
    )
    assert (
        str(target_info(StudyConfig(target="torch", threads=2))) == "cpu, torch, 2 threads, batch 1"
    )


@pytest.mark.parametrize("flag", ["threads", "batch"])
@pytest.mark.parametrize("value", [0, -1, 1025])
def test_threads_and_batch_are_positive(flag: str, value: int) -> None:
    with pytest.raises(SpecError, match=f"--{flag} {value}: expected 1 to 1024"):
        StudyConfig(**{flag: value})  # type: ignore[arg-type]


class Counting(nn.Module):
    """A student that creates a tensor in its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + torch.arange(x.shape[1], device=x.device)


def test_the_cuda_target_moves_the_whole_program_and_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On `meta` in place of a GPU: a tensor left on the CPU is an error there."""
    alive: list[weakref.ref[object]] = []

    class Graph:
        def replay(self) -> None:
            assert all(reference() is not None for reference in alive)

    class Capture(nullcontext[None]):
        def __init__(self, graph: Graph) -> None:
            super().__init__()

    file = tmp_path / "student.pt2"
    file.write_bytes(program_bytes(Counting(), input_shape=SHAPE))
    move, load = passes.move_to_device_pass, torch.from_numpy

    def moved(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
        assert device == "cuda"
        return move(program, "meta")

    class Images:
        def __init__(self, array: object) -> None:
            self.array = array

        def to(self, device: str) -> torch.Tensor:
            images = load(self.array).to("meta")
            alive.append(weakref.ref(images))
            return images

    monkeypatch.setattr(passes, "move_to_device_pass", moved)
    monkeypatch.setattr(torch, "from_numpy", Images)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    replay = Cuda()._replay(TimingRequest(file=file, shape=SHAPE))
    replay()
    assert len(alive) == 1


@pytest.mark.parametrize("program", ["yes", "sh -c 'yes >&2'"])
def test_a_command_that_prints_without_end_is_killed(program: str, tmp_path: Path) -> None:
    target = parse_target(f"cmd:{program}")
    begun = time.monotonic()
    with pytest.raises(CostError, match="printed more than 1000000 characters"):
        target.measure_round(TimingRequest(file=tmp_path, shape=SHAPE), nothing_kept)
    assert time.monotonic() - begun < 20
