import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdsearch.data import load, names, vision
from kdsearch.errors import DataError


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Send every download to a closed port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urlopen reads the environment once a process; another test may have opened something.
    monkeypatch.setattr("urllib.request._opener", None)


def write_mnist(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """The IDX format: magic number (type 8, number of axes), the axes, the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
        (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())


def test_downloaded_grey_set_is_read(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    raw = tmp_path / "downloads/mnist/MNIST/raw"
    write_mnist(raw, "train", images, labels)
    write_mnist(raw, "t10k", images[:20], labels[:20])
    data = load("mnist", cache_dir=tmp_path)
    assert (data.channels, data.size, data.num_classes) == (1, (28, 28), 10)
    assert (len(data.train), len(data.val), len(data.test)) == (50, 10, 20)
    assert np.array_equal(data.test.at(slice(None))[:, 0].numpy(), images[:20])
    assert data.test.labels.tolist() == labels[:20].tolist()
    assert not data.augment.flip


def test_downloaded_colour_set_without_splits_is_read(tmp_path):
    for value, name in ((40, "Forest"), (200, "River")):
        folder = tmp_path / "downloads/eurosat/eurosat/2750" / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (64, 64), (value, 0, 0)).save(folder / f"{number}.png")
    data = load("eurosat", cache_dir=tmp_path)
    assert data.classes == ("Forest", "River")
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 2)
    assert data.train.at(slice(None))[:, 0, 0, 0].unique().tolist() == [40, 200]
    assert data.augment.flip


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_offline_error_names_what_to_pass_instead(tmp_path, capsys, name):
    with pytest.raises(DataError) as caught:
        load(name, cache_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: cannot be downloaded")
    assert "refused" in message
    assert "Pass a folder (train/CLASS/*.jpg) or Parquet files instead" in message
    assert message.count("\n") <= 2
    assert capsys.readouterr().out == ""
    assert list((tmp_path / "downloads").iterdir()) == []


def test_every_name_is_a_set_of_torchvision():
    from torchvision import datasets

    assert set(names()) == {"digits", *vision.SETS}
    assert all(name == known.kind.lower() for name, known in vision.SETS.items())
    assert all(hasattr(datasets, known.kind) for known in vision.SETS.values())


def test_names_are_listed_without_torch():
    import subprocess

    code = "import sys, kdsearch.data as d; d.names(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
