"""The script in the shipped folder sees what the study saw, and needs three packages alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdsearch.data.pixels import decode
from kdsearch.deploy import predict
from kdsearch.deploy.files import _pixels
from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.deploy.script import write_script
from kdsearch.models.model import Model, Preprocess

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Path:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(values.squeeze(), mode).save(path)
    return path


def trained_on(path: Path, *, size: int, channels: int, fit: str = "crop") -> torch.Tensor:
    pixels, _ = decode(path, size=size, channels=channels, fit=fit, max_megapixels=64)
    return torch.from_numpy(pixels.copy())[None]


def expected(channels: int, size: int, resolution: int) -> dict[str, str]:
    return {
        "classes": '["dark", "bright"]',
        "mean": str(list(MEAN[:channels])),
        "std": str(list(STD[:channels])),
        "image_size": str(size),
        "resolution": str(resolution),
        "channels": str(channels),
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize(
    ("channels", "size", "resolution"), [(3, 32, 32), (3, 32, 24), (1, 16, 32)]
)
def test_an_image_becomes_what_the_study_would_make_of_it(
    mode, channels, size, resolution, tmp_path
):
    path = picture(tmp_path / "a.png", mode=mode)
    preprocess = Preprocess(
        mean=MEAN[:channels], std=STD[:channels], resolution=resolution, channels=channels
    )
    pixels = trained_on(path, size=size, channels=channels)

    found = predict.network_input(path, expected(channels, size, resolution))

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, preprocess(pixels).numpy(), atol=2e-5)


def test_a_file_with_its_preprocessing_inside_is_given_pixels(tmp_path):
    path = picture(tmp_path / "a.png")
    shown = Preprocess(mean=MEAN, std=STD, resolution=24, channels=3)
    images = trained_on(path, size=32, channels=3)
    student = Model("any", nn.Identity(), shown)

    found = predict.network_input(path, expected(3, 32, 24) | {"input": "uint8 pixels"})

    assert found.dtype == np.uint8
    pixels = _pixels(student, images)[1].float().numpy()
    np.testing.assert_allclose(found, pixels, atol=1)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_fit_is_that_of_the_file(fit, tmp_path):
    path = picture(tmp_path / "a.png")
    preprocess = Preprocess(mean=MEAN, std=STD, resolution=32, channels=3)
    found = predict.network_input(path, expected(3, 32, 32) | {"fit": fit})
    pixels = trained_on(path, size=32, channels=3, fit=fit)
    np.testing.assert_allclose(found, preprocess(pixels).numpy(), atol=2e-5)


def test_another_file_uses_the_metadata_in_metrics_json(tmp_path):
    file = tmp_path / "student.pt2"
    torch.export.save(torch.export.export(Brightness(), (torch.zeros(1, 3, 16, 16),)), file)
    message = {"metadata": expected(3, 16, 16)}
    file.with_name("metrics.json").write_text(json.dumps(message), encoding="utf-8")

    answer, known = predict.load(file)

    image = torch.rand(1, 3, 16, 16)
    np.testing.assert_allclose(answer(image.numpy()), Brightness()(image).numpy(), rtol=1e-5)
    assert known == expected(3, 16, 16)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"student.h5: not one of .onnx, .xml"):
        predict.load(tmp_path / "student.h5")


class Brightness(nn.Module):
    """Two logits that say how bright an image is."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.mean((1, 2, 3))
        return torch.stack([-9 * mean, 9 * mean], 1)


@pytest.fixture
def folder(tmp_path):
    file = tmp_path / "best" / "student.onnx"
    to_onnx(Brightness(), input_shape=(3, 16, 16), path=file, metadata=expected(3, 16, 16))
    write_script(file.parent)
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    Image.new("RGB", (40, 40), "black").save(tmp_path / "black.png")
    return tmp_path


def test_it_prints_the_likely_classes_of_each_image(folder):
    line = [sys.executable, str(folder / "best" / "predict.py"), "white.png", "black.png"]

    message = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout

    assert message.splitlines() == [
        "white.png: bright 100.0 %, dark 0.0 %",
        "black.png: dark 100.0 %, bright 0.0 %",
    ]


def typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-I", str(folder / "best" / "predict.py"), *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def test_an_unreadable_image_ends_nothing_and_the_exit_code_is_1(folder):
    (folder / "broken.png").write_bytes((folder / "white.png").read_bytes()[:50])
    Image.new("1", (9000, 9000), 1).save(folder / "big.png")

    done = typed(folder, "broken.png", "nowhere.png", "big.png", "white.png")

    assert done.returncode == 1
    assert done.stdout == "white.png: bright 100.0 %, dark 0.0 %\n"
    first, second, third = done.stderr.splitlines()
    assert first.startswith("broken.png: cannot be read: ")
    assert second.startswith("nowhere.png: cannot be read: [Errno 2]")
    limit = "9000 x 9000 pixels, more than --max-megapixels 64"
    assert third == f"big.png: cannot be read: {limit}"
    allowed = typed(folder, "big.png", "--max-megapixels", "100")
    assert (allowed.returncode, allowed.stdout) == (0, "big.png: bright 100.0 %, dark 0.0 %\n")


def test_a_model_that_is_not_there_is_one_line(folder):
    done = typed(folder, "white.png", "--model", "student.xml")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("student.xml: cannot be loaded: ")


@pytest.mark.slow
def test_it_runs_where_three_packages_are_installed_alone(folder):
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).is_file():
        pytest.skip("uv is not installed")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder / "venv")], check=True)
    install = [uv, "pip", "install", "-q", "--python", str(python)]
    done = subprocess.run(
        [*install, "onnxruntime", "pillow", "numpy"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no registry: {done.stderr.strip().splitlines()[-1]}")
    line = [str(python), "-I", "-W", "error", str(folder / "best" / "predict.py"), "white.png"]

    message = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout

    assert message.startswith("white.png: bright 100.0 %")
    torch_too = subprocess.run([str(python), "-I", "-c", "import torch"], capture_output=True)
    assert torch_too.returncode != 0
