"""What training for 8 bits gives back, beside the int8 file without it, on eight students.

Each is distilled shortly, exported as it is and after training for 8 bits, which is forced; both
files are judged on the same validation images, and timed alternately with the fp32 file. The bar
is what `--max-drop` is by default. Without --data on digits, which has few images to judge by.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.bars import Row, parser, tell
from benchmarks.paired import Ratio, alternate
from kdsearch.deploy import runtimes
from kdsearch.deploy.files import calibration_images
from kdsearch.deploy.formats.base import Source, answer_of
from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.deploy.formats.onnx_int8 import OnnxInt8
from kdsearch.deploy.pricing import build_student
from kdsearch.models.model import Model, batches
from kdsearch.space import Params
from kdsearch.spec import Candidate, DistillSpec
from kdsearch.study.config import StudyConfig
from kdsearch.training.step import Session
from kdsearch.training.trainer import train
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import TrialContext, build_distiller
from kdsearch.workflows.qat import EPOCHS, fake_quantised, fine_tune

BAR = 1.0  # points
_CPU = torch.device("cpu")
TAUGHT = DistillSpec(method="kd", alpha=0.9, knobs={"temperature": 4.0})
SGD: Params = {"lr": 0.1}
ADAMW: Params = {"lr": 2e-3, "optimizer": "adamw", "weight_decay": 0.05}
STUDENTS: tuple[tuple[str, Params, Params], ...] = (
    ("resnet", {"width": 0.25, "depth": 3}, SGD),
    ("mobilenet", {"width": 0.25, "depth": 4, "expansion": 2}, SGD),
    ("convnext", {"width": 0.4, "depth": 4, "kernel": 3}, ADAMW),
    ("convnext", {"width": 0.25, "depth": 4, "kernel": 3}, ADAMW),
    ("vit", {"width": 0.25, "depth": 2}, ADAMW),
    ("deit", {"width": 0.25, "depth": 2}, ADAMW),
    ("timm:mobilenetv3_small_050", {}, SGD),
    ("timm:mobilenetv2_035", {}, SGD),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, export and train for 8 bits; print what each file gets wrong that another does not."""
    made = parser("int8_training", __doc__)
    made.add_argument("--data", default="digits")
    made.add_argument("--teacher", default="auto")
    made.add_argument("--teacher-weights")
    made.add_argument("--subset", type=int, help="training images")
    made.add_argument("--images", type=int, default=2000, help="validation images at most")
    made.add_argument("--epochs", type=int, default=6)
    given = made.parse_args(argv)
    config = StudyConfig(
        data=given.data,
        teacher=given.teacher,
        teacher_weights=given.teacher_weights,
        subset=given.subset,
    )
    return tell(
        "int8_training",
        __doc__,
        lambda: measure(config, STUDENTS, epochs=given.epochs, images=given.images),
        given.json,
    )


def measure(
    config: StudyConfig, students: Sequence[tuple[str, Params, Params]], *, epochs: int, images: int
) -> list[Row]:
    """Return two rows a student: its int8 file as it is, and after training for 8 bits."""
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        out = Path(folder)
        data, config = load_data(config, out)
        judged = data.val.take(torch.arange(min(images, len(data.val))))
        data = replace(data, val=judged)
        context = lay_out(config, data, out=out, device=_CPU)
        for family, knobs, recipe in students:
            candidate = Candidate.from_params(
                {"student.family": family}
                | {f"student.{family}.{name}": value for name, value in knobs.items()}
                | {f"train.{name}": value for name, value in recipe.items()}
                | {"train.epochs": epochs, "train.views": 1}
            )
            candidate = replace(candidate, distill=TAUGHT)
            wide = f" {knobs['width']}" if "width" in knobs else ""
            found = _rows(f"{family.removeprefix('timm:')}{wide}", candidate, context, out)
            print(*found, sep="\n", file=sys.stderr, flush=True)  # the next takes a minute
            rows += found
    return rows


def _rows(case: str, candidate: Candidate, context: TrialContext, out: Path) -> list[Row]:
    student = _distilled(candidate, context)
    labels = torch.cat([labels for _, labels in batches(context.data.val, _CPU)])
    started = time.perf_counter()
    images = calibration_images(student, context.data)
    tuned = fine_tune(student, candidate, context, images)
    seconds = round(time.perf_counter() - started, 1)
    plain, trained = (
        _written(student, context, out / "plain"),
        _written(tuned, context, out / "tuned"),
    )
    said = {
        "fp32": _logits(student, context),
        "plain": _said(plain[1], student, context),
        "tuned fp32": _logits(tuned, context),
        "tuned": _said(trained[1], tuned, context),
    }
    right = {name: (logits.argmax(1) == labels).numpy() for name, logits in said.items()}
    speeds = _speeds([plain[0], plain[1], trained[1]], student, context)
    sizes = {"kB": _kilobytes(plain[1]), "fp32_kB": _kilobytes(plain[0])}
    return [
        _row(
            f"{case}, as it is",
            right["fp32"],
            right["plain"],
            {**sizes, **speeds[0], **_agreement(student, said["plain"], said["fp32"], context)},
        ),
        _row(
            f"{case}, trained",
            right["fp32"],
            right["tuned"],
            {
                **speeds[1],
                **_agreement(tuned, said["tuned"], said["tuned fp32"], context),
                **_paired("plain", right["plain"], right["tuned"]),
                # More epochs under the teacher, whatever they round: what of the gain is theirs.
                "tuned_fp32_val": _percent(right["tuned fp32"]),
                "seconds": seconds,
                "epochs": EPOCHS,
            },
        ),
    ]


def _row(case: str, whole: np.ndarray, ours: np.ndarray, facts: Mapping[str, float]) -> Row:
    """Return the points lost against fp32, one standard error of the paired difference around."""
    lost = 100.0 * (whole.astype(float) - ours)
    drop, error = float(lost.mean()), float(lost.std() / np.sqrt(len(lost)))
    return Row(
        case=case,
        measured=Ratio(
            median=round(drop, 3), low=round(drop - error, 3), high=round(drop + error, 3)
        ),
        unit="pts",
        bar=BAR,
        facts={
            "of": len(lost),
            "fp32_val": _percent(whole),
            "val": _percent(ours),
            **_paired("fp32", whole, ours),
            **facts,
        },
    )


def _paired(name: str, other: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Return how many images only the other gets right, and how many only this one."""
    return {
        f"only_{name}_right": int((other & ~ours).sum()),
        f"right_unlike_{name}": int((ours & ~other).sum()),
    }


def _distilled(candidate: Candidate, context: TrialContext) -> Model:
    torch.manual_seed(0)
    student = build_student(candidate.student, context.data)
    session = Session(
        data=context.data,
        spec=candidate.train,
        seed=0,
        view_seed=context.seed,
        device=_CPU,
        teachers=context.outputs,
        train=context.train,
        val=context.val,
    )
    train(student, build_distiller(candidate, student, context), session)
    return student.freeze()


def _written(student: Model, context: TrialContext, folder: Path) -> tuple[Path, Path]:
    """Return the float32 file of a student and its int8 file."""
    folder.mkdir(exist_ok=True)
    whole, rounded_to = folder / "student.onnx", folder / "student-int8.onnx"
    shape = student.preprocess.input_shape
    to_onnx(student.network, input_shape=shape, path=whole, metadata={})
    source = Source(
        network=student.network,
        input_shape=shape,
        onnx=whole,
        calibration_images=lambda: calibration_images(student, context.data),
    )
    OnnxInt8().write(source, rounded_to)
    return whole, rounded_to


@torch.no_grad()
def _logits(student: Model, context: TrialContext) -> Tensor:
    return torch.cat([student(images) for images, _ in batches(context.data.val, _CPU)])


def _said(file: Path, student: Model, context: TrialContext) -> Tensor:
    run = runtimes.load("onnxruntime", file, threads=1)
    shown = [student.preprocess(images) for images, _ in batches(context.data.val, _CPU)]
    return torch.cat([answer_of(run, images) for images in shown])


def _agreement(
    student: Model, said: Tensor, whole: Tensor, context: TrialContext
) -> dict[str, float]:
    """Return how often the file answers as its network does, and as that does while it rounds."""
    with fake_quantised(student.network, calibration_images(student, context.data)):
        foretold = _logits(student, context)
    same = (said.argmax(1) == other.argmax(1) for other in (whole, foretold))
    as_fp32, as_rounded = (round(float(each.float().mean()), 4) for each in same)
    return {"as_its_fp32": as_fp32, "as_while_training": as_rounded}


def _speeds(files: Sequence[Path], student: Model, context: TrialContext) -> list[dict[str, float]]:
    """Return each int8 file's milliseconds an image, beside those of the first, the fp32 file."""
    image = student.preprocess(context.data.val.at(slice(1)))
    runs = [runtimes.load("onnxruntime", file, threads=1) for file in files]
    times = alternate([lambda run=run: answer_of(run, image) for run in runs], seconds=1.0)  # type: ignore[misc]
    return [
        {"ms": times.ms(i), "fp32_ms": times.ms(0), "speed": times.ratio(0, i).median}
        for i in range(1, len(files))
    ]


def _percent(right: np.ndarray) -> float:
    return round(100 * float(right.mean()), 2)


def _kilobytes(file: Path) -> float:
    return round(file.stat().st_size / 1e3, 1)
