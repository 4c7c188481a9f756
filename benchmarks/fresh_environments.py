"""Every exported file, run by predict.py in an environment that holds its runtime alone.

A digits student is distilled, exported in every format, and asked about validation images in
environments made for one runtime each, with pillow and numpy; LiteRT's converter needs one of 5 GB.
Needs a package registry. Reported: the share of images on which the file's class is the PyTorch
student's, the largest difference of its likeliest class's share, and what is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from kdsearch.data import load
from kdsearch.data.base import ImageData
from kdsearch.models.model import Model, batches
from kdsearch.teachers.previous_study import find_student

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
IMAGES = 100
CONVERTERS = ("openvino>=2026.1", "executorch>=1.5", "ai-edge-litert>=2.3")
RUNTIMES = {
    "student.onnx": ("onnxruntime",),
    "student-fp16.onnx": ("onnxruntime",),
    "student-int8.onnx": ("onnxruntime",),
    "student-uint8.onnx": ("onnxruntime",),
    "student.pt2": ("torch",),
    "student.xml": ("openvino",),
    "student.pte": ("executorch", "torch"),
    "student.tflite": ("ai-edge-litert",),
}
LEAST_EQUAL = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How a file answered in an environment of its own, which holds `packages`."""

    file: str
    runtime: str
    packages: int
    equal: float
    largest_difference: float


def main(argv: Sequence[str]) -> int:
    """Return 1 when a file answers otherwise than its student on more than 3 % of the images."""
    parser = argparse.ArgumentParser(prog="benchmarks fresh_environments", description=__doc__)
    parser.add_argument("--json", type=Path, help="write there what is printed")
    parser.add_argument("--without-litert", action="store_true", help="not its 5 GB converter")
    given = parser.parse_args(argv)
    with TemporaryDirectory() as name:
        told = answered(Path(name), is_litert=not given.without_litert)
    for one in told:
        print("  ".join(f"{key} {value}" for key, value in asdict(one).items()))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in told], indent=1) + "\n")
    return 0 if all(one.equal >= LEAST_EQUAL for one in told) else 1


def answered(folder: Path, *, is_litert: bool) -> list[Answered]:
    """Distil, export, and ask each file in an environment of its own."""
    best = exported(folder, is_litert=is_litert)
    data = load("digits", cache_dir=folder / "cache")
    expected = likeliest(best.parent, data)
    files = [file for file in RUNTIMES if is_litert or not file.endswith(".tflite")]
    pictures = save_pictures(folder / "images", data)
    environments: dict[tuple[str, ...], Path] = {}
    told = []
    for file in files:
        runtime = RUNTIMES[file]
        if runtime not in environments:
            python = folder / "-".join(runtime) / "bin" / "python"
            make_environment(python, [*runtime, "pillow", "numpy"])
            environments[runtime] = python
        found = ask(environments[runtime], best, file, pictures)
        pairs = list(zip(found, expected, strict=True))
        told.append(
            Answered(
                file=file,
                runtime=runtime[0],
                packages=count_packages(environments[runtime]),
                equal=sum(ours == theirs for (ours, _), (theirs, _) in pairs) / len(pairs),
                largest_difference=round(
                    max(abs(a - b) for (ours, a), (theirs, b) in pairs if ours == theirs), 4
                ),
            )
        )
    return told


def exported(folder: Path, *, is_litert: bool) -> Path:
    """Return the folder of a distilled digits student in every format."""
    python = folder / "converters" / "bin" / "python"
    packages = CONVERTERS if is_litert else CONVERTERS[:2]
    make_environment(python, [*packages, "-e", str(ROOT)])

    def kdsearch(*line: str) -> None:
        asked = [str(python), "-m", "kdsearch", *line, "--out", str(folder / "out")]
        subprocess.run(asked, check=True, cwd=ROOT)

    kdsearch(
        "distill", "--student", "resnet", "--epochs", "5", "--teacher-epochs", "4", "--name", "it"
    )
    for_all = "onnx,onnx-fp16,onnx-int8,torch-export,openvino,executorch"
    kdsearch("export", "it", "--format", for_all, "--max-drop", "1")
    kdsearch("export", "it", "--format", "onnx", "--fold-preprocess", "--max-drop", "1")
    best = folder / "out" / "it" / "best"
    if is_litert:
        converter = [ROOT / "scripts" / "to_litert.sh", best, folder / "litert-converter"]
        subprocess.run(list(map(str, converter)), check=True)
        kdsearch("export", "it", "--format", "litert", "--max-drop", "1")
    return best


def make_environment(python: Path, packages: Sequence[str]) -> None:
    """Make an environment with these packages and what they need, and nothing else."""
    folder = str(python.parents[1])
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *packages], check=True)


def count_packages(python: Path) -> int:
    """Return how many packages an environment holds."""
    asked = [str(UV), "pip", "list", "--quiet", "--format", "json", "--python", str(python)]
    return len(json.loads(subprocess.run(asked, check=True, capture_output=True).stdout))


def save_pictures(folder: Path, data: ImageData) -> list[Path]:
    """Write validation images as PNG files."""
    folder.mkdir()
    paths = [folder / f"{number:03d}.png" for number in range(IMAGES)]
    for path, image in zip(paths, data.val.at(slice(IMAGES)), strict=True):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
    return paths


@torch.no_grad()
def likeliest(study: Path, data: ImageData) -> list[tuple[str, float]]:
    """Return the likeliest class of each picture and its share, by the PyTorch student."""
    earlier = find_student(str(study), data)
    student = Model(earlier.spec.family, earlier.build(len(data.classes)), earlier.preprocess)
    student.freeze()
    images = next(batches(data.val, torch.device("cpu")))[0][:IMAGES]
    shares, places = student.network(student.preprocess(images)).softmax(1).max(1)
    return [(data.classes[i], float(p)) for i, p in zip(places, shares, strict=True)]


def ask(python: Path, best: Path, file: str, pictures: Sequence[Path]) -> list[tuple[str, float]]:
    """Return the same as predict.py prints it, run without anything of ours on its path."""
    line = [python, "-I", best / "predict.py", "--model", best / file, "--top", "1", *pictures]
    done = subprocess.run([*map(str, line)], check=True, capture_output=True, text=True)
    told = [row.rpartition(": ")[2].split() for row in done.stdout.splitlines()]
    return [(name, float(share) / 100) for name, share, _ in told]
