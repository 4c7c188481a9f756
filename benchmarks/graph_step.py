"""A training step replayed as a CUDA graph, beside the same step run eagerly. Needs a GPU.

Epochs of a few batches of 512 images of 32 px, cached `kd`, alternately; wall time with the device
waited for. Beside it the share of a replayed step in which the device computes (kernels, by torch's
profiler), and the share of its input: crop, flip and normalising, replayed alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import bars, trials
from benchmarks.paired import alternate, quartiles
from kdsearch.data.views import augmented
from kdsearch.deploy.pricing import build_student
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.cuda_graph import Repeated, own_stream
from kdsearch.training.step import Session, Step
from kdsearch.trials.trial import TrialContext, build_distiller

FLOOR, INPUT_BAR = 2.0, 5.0
_BATCH, _BATCHES = 512, 16
_GPU = torch.device("cuda", 0)
_STUDENTS = {
    "resnet w.25 d3 (d8)": StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3}),
    "resnet w.5 d5": StudentSpec(family="resnet", knobs={"width": 0.5, "depth": 5}),
    "resnet w1 d9 (d20)": StudentSpec(family="resnet", knobs={"width": 1.0, "depth": 9}),
}


def rows() -> bars.Rows:
    """Return two rows a student."""
    with TemporaryDirectory() as folder, own_stream(_GPU):
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[bars.Row]:
    data = trials.image_data(_BATCH * _BATCHES // trials.BATCH)
    context = trials.context(data, trials.teacher().to(_GPU), folder, device=_GPU)
    for case, student in _STUDENTS.items():
        steps = [step(student, context, captures=captures) for captures in (True, False)]
        calls: list[Callable[[], object]] = [epoch(one) for one in steps]
        view = inputs(student, context)
        times = alternate([*calls, view], seconds=6, blocks=15, warm_up=4).wall
        yield bars.Row(
            case=case,
            measured=quartiles(times[:, 1] / times[:, 0]),
            unit="x eager's speed",
            bar=FLOOR if "d8" in case else 1.0,
            is_floor=True,
            facts={
                "graph_step_ms": round(1e3 * statistics.median(times[:, 0]) / _BATCHES, 3),
                "of_it_kernels_ms": round(kernels_ms(calls[0]) / _BATCHES, 3),
                "mode": steps[0].mode,
                "device": torch.cuda.get_device_name(),
            },
        )
        yield bars.Row(
            case=f"input of {case}",
            measured=quartiles(100 * times[:, 2] / times[:, 0]),
            unit="%",
            bar=INPUT_BAR,
        )
        for one in steps:
            one.close()


def step(student: StudentSpec, context: TrialContext, *, captures: bool) -> Step:
    """Return a study's steps in bfloat16 and channels_last, as on a GPU they mostly are."""
    recipe = TrainSpec(epochs=1, batch_size=_BATCH, lr=1e-3, warmup=0.0)
    candidate = Candidate(student=student, distill=DistillSpec(method="kd"), train=recipe)
    torch.manual_seed(1)
    model = build_student(student, context.data)
    assert context.executions is not None
    session = Session(
        data=context.data,
        spec=recipe,
        seed=0,
        view_seed=context.seed,
        device=_GPU,
        teachers=context.outputs,
        train=context.train,
        execution=context.executions.fastest(model, context.data, _GPU),
        captures=captures,
    )
    return Step(model, build_distiller(candidate, model, context), session)


def epoch(step: Step) -> Callable[[], None]:
    """Return an epoch that is over when it returns."""

    def run() -> None:
        step.epoch(1)
        torch.cuda.current_stream().synchronize()

    return run


def inputs(student: StudentSpec, context: TrialContext) -> Callable[[], None]:
    """Return what makes the inputs of an epoch, replayed as a step replays it."""
    images = context.data.train.to(_GPU)
    preprocess = build_student(student, context.data).preprocess
    index = torch.randperm(len(images), device=_GPU)[:_BATCH]

    def work() -> None:
        preprocess(augmented(images, index, 1, seed=0, augment=context.data.augment))

    repeated = Repeated(work, _GPU)

    def run() -> None:
        for _ in range(_BATCHES):
            repeated()
        torch.cuda.current_stream().synchronize()

    return run


def kernels_ms(call: Callable[[], object]) -> float:
    """Return the milliseconds in which the device computes during a call."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
    return float(sum(event.self_device_time_total for event in found.key_averages())) / 1e3


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a graph saves too little, 2 without a GPU."""
    given = bars.parser("graph_step", __doc__).parse_args(argv)
    return bars.on_gpu(lambda: bars.tell("graph_step", __doc__, rows, given.json))
