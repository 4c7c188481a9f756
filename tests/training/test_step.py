"""A step reads all that changes from the device, and never waits for the host to tell it.

There is no GPU here. A tensor on the device `meta` has no values: reading one on the host, or
mixing it with one of the CPU's, is an error, as it would be a stall or an error on a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread

import detection_data
import pytest
import torch
import toy_masks
from torch import Tensor, nn
from toy_data import CPU, toy_data

import kdsearch.data as datasets
from kdsearch import methods
from kdsearch.data.base import Augment, ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import build_student
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.tasks.classification import ClassCounts
from kdsearch.training import cuda_graph
from kdsearch.training.cuda_graph import Repeated, attributes_of, free_cached_memory, own_stream
from kdsearch.training.distiller import Distiller
from kdsearch.training.step import Session, Step
from kdsearch.training.validation import Validation
from kdsearch.trials.trial import TrialContext, build_distiller

DATA = toy_data(channels=3, size=16)
NOWHERE = torch.device("meta")
RESNET = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3})
SEGMENTER = StudentSpec(
    family="resnet", knobs={"width": 0.25, "depth": 4, "head.kind": "fpn", "head.channels": 16}
)
DETECTOR = StudentSpec(
    family="resnet", knobs={"width": 0.25, "depth": 4, "head.channels": 16, "head.depth": 1}
)
FOR_BOXES = [name for name in methods.names("detection") if methods.get(name).tasks]
FOR_MASKS = ("kd", "dist", "cwd", "pkd", "mgd", "ifvd", "skd")
VIT = StudentSpec(family="vit", knobs={"width": 0.25, "depth": 4})
SPEC = TrainSpec(epochs=1, batch_size=48, clip=1.0, accumulate=2, lr=0.05)
ONE_STEP = replace(SPEC, batch_size=96)  # all images: each operation is on a step's way


class Live:
    """A teacher that has stored nothing."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> None:
        assert host.device == CPU

    @torch.no_grad()
    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        return self._model.features(images, need=need)

    def boxes(self) -> Tensor:
        count = detection_data.SPLITS["train"]
        return torch.zeros(count, 2, 6, device=next(self._model.parameters()).device)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device without values, where neither autocast nor fused kernels are offered."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for name in ("sgd", "adam"):
        module = import_module(f"torch.optim.{name}")
        for kernel in ("_device_dtype_check_for_fused", f"_fused_{name}"):
            monkeypatch.setattr(module, kernel, lambda *_, **__: None)
    return NOWHERE


def step_of(
    distill: DistillSpec,
    train: TrainSpec,
    device: torch.device,
    *,
    student: StudentSpec = RESNET,
    data: ImageData = DATA,
    captures: bool = True,
    max_bytes: int | None = None,
) -> tuple[Step, Model, Distiller]:
    """Return a step on a device, its losses made on the CPU, where they may look at values."""
    torch.manual_seed(0)
    teacher = build_student(student, data).freeze()
    model = build_student(student, data)
    context = TrialContext(
        data=data,
        teachers=(teacher,),
        outputs=(),
        budget=Budget(),
        latencies=LatencyCache(Path("none")),
        device_lock=DeviceLock(),
        seed=0,
        device=CPU,
    )
    candidate = Candidate(student=student, distill=distill, train=train)
    distiller = build_distiller(candidate, model, context)
    session = Session(
        data=data,
        spec=train,
        seed=0,
        view_seed=0,
        device=device,
        teachers=(Live(teacher.to(device)),),
        train=Feed(data.train, device, max_bytes=max_bytes),
        captures=captures,
    )
    for loss in distiller.modules():
        if hasattr(loss, "_is_read"):  # grad_cam looks once, in the first step
            loss._is_read = True
    return Step(model, distiller, session), model, distiller


def student_for(method: str) -> StudentSpec:
    return VIT if "attention" in methods.get(method).reads or method == "vitkd" else RESNET


@pytest.mark.parametrize("method", methods.names("classification"))
def test_no_method_waits_for_the_device(method: str, nowhere: torch.device) -> None:
    step, *_ = step_of(DistillSpec(method=method), ONE_STEP, nowhere, student=student_for(method))
    step.epoch(1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step.means()


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw"},
        {"policy": "trivial"},
        {"policy": "rand", "mix": "mixup"},
        {"mix": "cutmix", "views": 1},
    ],
    ids=str,
)
def test_no_recipe_waits_for_the_device(recipe: dict[str, object], nowhere: torch.device) -> None:
    step_of(DistillSpec(method="kd"), replace(ONE_STEP, **recipe), nowhere)[0].epoch(1)


def test_no_schedule_waits_for_the_device(nowhere: torch.device) -> None:
    distill = DistillSpec(
        method="at+kd",
        knobs={"kd.temperature": 3.0},
        alpha_schedule="cosine",
        temperature_schedule="linear:1->0.5",
        balance="uncertainty",
        order="progressive",
        mapping="all",
    )
    step_of(distill, SPEC, nowhere)[0].epoch(1)


def test_the_end_of_distillation_does_not_wait_for_the_device(nowhere: torch.device) -> None:
    step, *_ = step_of(DistillSpec(method="kd"), replace(ONE_STEP, epochs=2), nowhere)
    step.epoch(1)
    step.epoch(2, is_taught=False)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("masks")
    return datasets.load(str(toy_masks.write(folder / "set")), cache_dir=folder / "cache")


@pytest.mark.parametrize(
    "distill",
    [
        *(DistillSpec(method=name) for name in FOR_MASKS),
        DistillSpec(method="cwd+kd", knobs={"cwd.mapping": "logits"}),
    ],
    ids=lambda distill: distill.method,
)
def test_no_method_on_masks_waits_for_the_device(
    distill: DistillSpec, masks: ImageData, nowhere: torch.device
) -> None:
    recipe = TrainSpec(epochs=1, batch_size=12, scale=0.5, class_weights=0.5, accumulate=2)
    step, *_ = step_of(distill, recipe, nowhere, student=SEGMENTER, data=masks)
    step.epoch(1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step.means()


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("boxes")
    return datasets.load(str(detection_data.write(folder / "set")), cache_dir=folder / "cache")


@pytest.mark.parametrize("method", FOR_BOXES)
def test_no_method_on_boxes_waits_for_the_device(
    method: str, boxes: ImageData, nowhere: torch.device
) -> None:
    recipe = TrainSpec(epochs=2, batch_size=24, scale=0.5, accumulate=2, mosaic=0.5)
    step, *_ = step_of(DistillSpec(method=method), recipe, nowhere, student=DETECTOR, data=boxes)
    step.epoch(1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step.means()


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("method", ["kd", "none"])
def test_images_read_ahead_train_as_those_that_stay(method: str, mix: str) -> None:
    found = []
    for max_bytes in (None, 0):
        step, model, _ = step_of(
            DistillSpec(method=method), replace(SPEC, mix=mix), CPU, max_bytes=max_bytes
        )
        step.epoch(1)
        step.epoch(2)
        found.append((step.means(), model.state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


def test_validation_waits_once_at_the_end() -> None:
    torch.manual_seed(0)
    model = build_student(RESNET, DATA).freeze().to(NOWHERE)
    with pytest.raises(RuntimeError, match="meta tensor"):
        Validation(model, Feed(DATA.val, NOWHERE), ClassCounts(3, "accuracy", NOWHERE))()


@pytest.mark.parametrize("count", [1, 60, 255, 256, 257, 700])
def test_validation_counts_every_image_once_and_no_blank(count: int) -> None:
    torch.manual_seed(0)
    model = build_student(RESNET, DATA).freeze()
    some = DATA.val.take(torch.arange(count) % len(DATA.val))
    with torch.no_grad():
        hits = model(some.at(slice(None))).argmax(dim=1) == some.labels
    assert (
        Validation(model, Feed(some, CPU), ClassCounts(3, "accuracy", CPU))()
        == int(hits.sum()) / count
    )


@pytest.mark.parametrize("method", methods.names("classification"))
def test_no_method_decides_on_the_host(method: str) -> None:
    """A number that a step changes on the host would stay as it was in a captured step."""
    step, model, distiller = step_of(
        DistillSpec(method=method), ONE_STEP, CPU, student=student_for(method)
    )
    step.epoch(1)
    before = attributes_of([model, distiller])
    step.epoch(2)
    assert attributes_of([model, distiller]) == before


def test_what_counts_on_the_host_is_found() -> None:
    step, model, distiller = step_of(DistillSpec(method="fitnet", balance="gradnorm"), SPEC, CPU)
    before = attributes_of([model, distiller])
    step.epoch(1)
    after = attributes_of([model, distiller])
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"GradNorm.count (1.gradnorm)"}


class Recorder:
    """Stands in for CUDA: a graph that does at a replay what was done while it was captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: Exception | None = None) -> None:
        self.captures = 0
        recorder = self

        class Graph:
            def replay(self) -> None:
                recorder.answers.append("replay")

            def reset(self) -> None:
                recorder.answers.append("reset")

        class Capture(nullcontext[None]):
            def __init__(self, graph: Graph, **_: object) -> None:
                super().__init__()

            def __enter__(self) -> None:
                recorder.answers.append("capture")
                if error is not None:
                    raise error

        self.answers: list[str] = []
        monkeypatch.setattr(cuda_graph, "_failures", [])
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)

    def work(self) -> None:
        self.answers.append("work")


GPU = torch.device("cuda", 0)


def test_three_runs_warm_up_then_one_is_captured_and_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Recorder(monkeypatch)
    repeated = Repeated(cuda.work, GPU, before_capture=lambda: cuda.answers.append("clear"))
    for _ in range(5):
        repeated("a")
    assert cuda.answers == ["work"] * 3 + ["clear", "capture", "work", "replay", "replay"]
    assert repeated.mode == "graph"
    cuda.answers.clear()
    repeated("b")
    assert cuda.answers == ["reset", "work"]
    repeated.close()


def test_what_cannot_be_captured_runs_eagerly_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Recorder(monkeypatch, error=RuntimeError("operation not permitted\nmore"))
    repeated = Repeated(cuda.work, GPU)
    for _ in range(5):
        repeated()
    assert cuda.answers == ["work"] * 3 + ["capture", "work", "work"]
    assert repeated.mode == "eager: operation not permitted"


def test_memory_that_runs_out_in_a_capture_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Recorder(monkeypatch, error=torch.OutOfMemoryError("no room"))
    repeated = Repeated(cuda.work, GPU)
    for _ in range(3):
        repeated()
    with pytest.raises(torch.OutOfMemoryError):
        repeated()


@pytest.mark.parametrize("error", [RuntimeError("not permitted"), torch.OutOfMemoryError("full")])
def test_nothing_more_is_captured_after_a_capture_that_failed(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Recorder(monkeypatch, error=error)
    failing, other = Repeated(cuda.work, GPU), Repeated(cuda.work, GPU)
    with suppress(torch.OutOfMemoryError):
        for _ in range(5):
            failing()
    cuda.answers.clear()
    for _ in range(5):
        other()
    assert cuda.answers == ["work"] * 5
    assert other.mode == f"eager: an earlier capture failed: {error}"


def test_cached_memory_is_freed_while_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Recorder(monkeypatch)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cuda.answers.append("empty"))
    freeing = Thread(target=free_cached_memory)

    def work() -> None:
        if cuda.answers[-1:] == ["capture"]:
            freeing.start()
            freeing.join(0.2)
        cuda.answers.append("work")

    repeated = Repeated(work, GPU)
    for _ in range(4):
        repeated()
    freeing.join()
    assert (
        cuda.answers.index("capture") < cuda.answers.index("work", 3) < cuda.answers.index("empty")
    )


def test_the_first_error_of_a_failed_capture_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """StopConditions such a capture raises once more, in the handling of what went wrong."""
    last = RuntimeError("operation failed due to a previous error during capture")
    last.__context__ = RuntimeError("a value was read")
    cuda = Recorder(monkeypatch, error=last)
    repeated = Repeated(cuda.work, GPU)
    for _ in range(4):
        repeated()
    assert repeated.mode == "eager: a value was read"


def test_streams_are_used_again_but_never_by_two_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stream:
        def __init__(self, _: torch.device | None = None) -> None:
            pass

        def wait_stream(self, other: Stream) -> None:
            assert other is not self

    used: list[Stream] = []
    default = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: default)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(used.append(stream)))
    monkeypatch.setattr("kdsearch.training.cuda_graph._free", {})
    for _ in range(40):
        with own_stream(GPU):
            pass
    assert len(set(used)) == 1
    with own_stream(GPU), own_stream(GPU):
        assert used[-1] is not used[-2]


def test_what_counts_on_the_host_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, module = Recorder(monkeypatch), nn.Identity()
    module.count = 0

    def work() -> None:
        module.count += 1

    repeated = Repeated(work, GPU, modules=(module,))
    for _ in range(6):
        repeated()
    assert module.count == 6
    assert cuda.answers == []
    assert repeated.mode == "eager: Identity.count (0.) changes from step to step"


def curve_of(
    distill: DistillSpec, spec: TrainSpec, *, captures: bool = True, taught: int = 99
) -> tuple[list[float], str]:
    """Return the loss of each of several epochs on the GPU, and how its steps ran.

    taught: the epochs with a teacher.
    """
    student = student_for(distill.method)
    step, *_ = step_of(distill, spec, GPU, student=student, captures=captures)
    losses = []
    with own_stream(GPU):
        for number in range(1, spec.epochs + 1):
            step.epoch(number, is_taught=number <= taught)
            losses.append(step.means()["loss"])
    step.close()
    return losses, step.mode


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", methods.names("classification"))
def test_a_graph_gives_the_losses_of_eager_steps(method: str) -> None:
    spec = replace(SPEC, epochs=6, precision="fp32")
    captured, mode = curve_of(DistillSpec(method=method), spec)
    plain, other = curve_of(DistillSpec(method=method), spec, captures=False)
    assert mode == "fp32 graph"
    assert other == "fp32 eager"
    if method in ("mgd", "vitkd", "crd"):  # their random numbers come from another place
        assert captured[0] == pytest.approx(plain[0], rel=0.2)
    else:
        assert captured == pytest.approx(plain, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_is_captured_anew_when_distillation_ends() -> None:
    spec = replace(SPEC, epochs=8, precision="fp32")
    captured, mode = curve_of(DistillSpec(method="kd"), spec, taught=4)
    plain, _ = curve_of(DistillSpec(method="kd"), spec, captures=False, taught=4)
    assert mode == "fp32 graph"
    assert captured == pytest.approx(plain, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_never_waits_for_the_host() -> None:
    step, *_ = step_of(DistillSpec(method="kd"), replace(SPEC, epochs=8), GPU)
    with own_stream(GPU):
        for number in range(1, 5):
            step.epoch(number)
        step._begin(5)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step._take()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert step.mode.endswith("graph")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_flat_over_a_thousand_trainings() -> None:
    held = []
    for _ in range(1000):
        curve_of(DistillSpec(method="kd"), replace(SPEC, epochs=2))  # three steps, then a graph
        held.append(torch.cuda.memory_reserved())
    assert max(held[100:]) <= max(held[:100])
