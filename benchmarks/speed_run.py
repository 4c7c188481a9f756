"""A public speed run's network and recipe through our loop, beside the script. Needs a GPU.

The script is the user's copy of airbench94_muon.py (github.com/KellerJordan/cifar10-airbench). It
runs as it is, but uncompiled and on our images; its time is what it prints for whitening and
epochs. Ours is the wall time of both, the device waited for, with the step built and its graph
captured in it. Accuracies are of the test images, without its test-time augmentation.

Our recipe is the script's as far as it can say it. Otherwise, the script's in brackets: one rate,
falling as half a cosine (three, linearly); Muon of momentum 0.95 and 5 iterations (0.6, 3, weights
kept at their length); AdamW for the first trained convolution, the head and the biases (SGD for the
last two, Muon for all convolutions); bf16 autocast on float32 weights (half weights); crops padded
with zeros (reflections); mirrored by chance (every other epoch); the whitening's bias trained
throughout (three epochs); averaged weights judged (the last ones).
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch

from benchmarks import bars, trials
from benchmarks.paired import quartiles
from kdsearch import data as datasets
from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.models.features import Tapped, bare
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.training.cuda_graph import own_stream
from kdsearch.training.distiller import Distiller
from kdsearch.training.step import Execution, Session, Step
from kdsearch.training.validation import evaluate
from kdsearch.trials.trial import side_of

CEILING = 1.1
RUNS = 5  # of each, besides a first one that is not counted
# Decayed by 0.05 * 0.5 a step, matrices settle where a step of Muon's is sqrt(2 * 0.025) = 0.22 of
# their length; the script's is 0.24. On 4,000 images, 64 steps of 250 reach 66 % of 1,000 others.
RECIPE = TrainSpec(
    epochs=8,
    batch_size=2000,
    optimizer="muon",
    lr=0.05,
    weight_decay=0.5,
    warmup=0.0,
    label_smoothing=0.2,
)
_WHITENED = 5000  # images that the whitening is made of
_MADE = 391  # batches of 128: an epoch has 25 of 2000, as that of CIFAR-10
_GPU = torch.device("cuda", 0)  # with a number, as images there name it: they stay where they are

Script: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: its seconds, its accuracy in [0, 1] at the end, and the mode of our step."""

    seconds: float
    accuracy: float
    mode: str = ""


def rows(path: Path, source: str | None) -> bars.Rows:
    """Return one row. path: of the script. source: see `images`."""
    script = runpy.run_path(str(path), run_name="speed_run")  # it reads itself, by sys.argv[0]
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = images(source, cache_dir=folder / "cache")
        write(data, folder)
        peer = theirs(script, folder, _GPU)
        data = replace(data, train=data.train.to(_GPU))
        pairs = [_pair(number, script, data, peer) for number in range(1 + RUNS)][1:]
    both = np.array([[(run.seconds, run.accuracy) for run in pair] for pair in pairs])
    (our_s, our_accuracy), (script_s, script_accuracy) = np.median(both, axis=0).round(4).tolist()
    row = bars.Row(
        case=f"{RECIPE.epochs} epochs of {data.name}",
        measured=quartiles(both[:, 0, 0] / both[:, 1, 0]),
        unit="x the script's time",
        bar=CEILING,
        facts={
            "our_s": our_s,
            "script_s": script_s,
            "our_accuracy": our_accuracy,
            "script_accuracy": script_accuracy,
            "mode": pairs[-1][0].mode,
            "device": torch.cuda.get_device_name(_GPU),
        },
    )
    return [row]


def images(source: str | None, *, cache_dir: Path) -> ImageData:
    """Return images to train on, those for validation among them, under the script's views.

    source: CIFAR-10; None: as many pictures made on the spot, whose classes nobody can learn.
    """
    if source is None:
        data = trials.image_data(_MADE)
    else:
        data = datasets.load(source, cache_dir=cache_dir)
    both = data.train, data.val
    train = ImageSet(
        torch.cat([part.at(slice(None)) for part in both]),
        torch.cat([part.labels for part in both]),
    )
    return replace(data, train=train, augment=Augment(pad=2, flip=True))


def write(data: ImageData, folder: Path) -> None:
    """Write what the script's loader reads below the folder that it runs in."""
    place = folder / "cifar10"
    place.mkdir()
    for split, part in (("train", data.train), ("test", data.test)):
        pixels = part.at(slice(None)).permute(0, 2, 3, 1).contiguous()
        held = {"images": pixels, "labels": part.labels, "classes": list(data.classes)}
        torch.save(held, place / f"{split}.pt")


def theirs(script: Script, folder: Path, device: torch.device) -> Callable[[int], Run]:
    """Return a run of the script, eager whatever it compiles, on what is written in `folder`."""
    network = script["CifarNet"]().to(device=device, memory_format=torch.channels_last)

    def run(number: int) -> Run:
        with (
            chdir(folder),
            redirect_stdout(StringIO()) as told,
            torch.compiler.set_stance("force_eager"),
        ):
            script["main"](number, network)
        return read(told.getvalue())

    return run


def read(table: str) -> Run:
    """Return what the script told after its last epoch; the row below it is of its `eval`.

    Columns: run, epoch, accuracy on a batch, on the test images, on views of these, seconds so far.
    """
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    *_, last = (row for row in cells if len(row) == 6 and row[1].isdigit())
    return Run(seconds=float(last[5]), accuracy=float(last[3]))


def ours(script: Script, session: Session) -> Run:
    """Return a training of the script's network by our steps."""
    torch.manual_seed(session.seed)
    data, spec, device = session.data, session.spec, session.device
    model = student(script["CifarNet"](), data).to(device)
    network: Any = bare(model.network)
    distiller = Distiller(
        DistillSpec(method="none"),
        task=session.task,
        student=side_of(model, data.train.at(slice(2))),
        label_smoothing=spec.label_smoothing,
    )
    with own_stream(device):
        started = _now(device)
        network.init_whiten(model.preprocess(data.train.at(slice(_WHITENED))))
        step = Step(model, distiller, session)
        for number in range(1, spec.epochs + 1):
            step.epoch(number)
        seconds = _now(device) - started
        found = evaluate(step.average.model, data.test, session.task, device)
        step.close()
    return Run(seconds=seconds, accuracy=found, mode=step.mode)


def student(network: Any, data: ImageData) -> Model:
    """Return the script's network, in float32 and with new weights, as a student of ours."""
    network.float().reset()
    tapped = Tapped(
        network, in_channels=data.channels, num_classes=data.num_classes, resolution=data.size
    )
    shown = Preprocess(mean=data.mean, std=data.std, resolution=data.size, channels=data.channels)
    return Model("speed_run", tapped, shown)


def _pair(
    number: int, script: Script, data: ImageData, peer: Callable[[int], Run]
) -> tuple[Run, Run]:
    """Return our run and the script's; every other time the script's comes first."""
    session = Session(
        data=data,
        spec=RECIPE,
        seed=number,
        view_seed=number,
        device=_GPU,
        execution=Execution(precision="bf16", is_channels_last=True),
    )
    if number % 2:
        its = peer(number)
        return ours(script, session), its
    return ours(script, session), peer(number)


def _now(device: torch.device) -> float:
    """Return the clock's seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when ours takes too long, 2 without a GPU."""
    parser = bars.parser("speed_run", __doc__)
    parser.add_argument("--script", type=Path, required=True, help="a copy of airbench94_muon.py")
    parser.add_argument("--data", help="CIFAR-10 as Parquet; without it, pictures made on the spot")
    given = parser.parse_args(argv)
    return bars.on_gpu(
        lambda: bars.tell("speed_run", __doc__, lambda: rows(given.script, given.data), given.json)
    )
