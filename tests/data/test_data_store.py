import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdsearch.data import decode, seen, store
from kdsearch.data.base import Sample, Source
from kdsearch.data.sizes import Decoding
from kdsearch.data.store import open_store
from kdsearch.errors import DataError


def pictures(count: int, size: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def files(root: Path, images: list[np.ndarray]) -> list[Sample]:
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, image in enumerate(images):
        path = root / f"{number:04d}.png"
        Image.fromarray(image).save(path)
        samples.append(Sample(name=path.name, label=number % 2, content=path))
    return samples


def source_of(samples: list[Sample], **splits: list[Sample]) -> Source:
    everything = samples + [sample for split in splits.values() for sample in split]
    return Source(
        name="pictures",
        classes=("a", "b"),
        splits={"train": samples, **splits},
        content=[(str(sample.content), sample.content) for sample in everything],
    )


def state(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def store_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "data").iterdir() if path.is_dir())
    return folder


def test_store_holds_the_pixels_and_labels_in_order(tmp_path):
    images = pictures(1030)  # more than two chunks
    stored = open_store(
        source_of(files(tmp_path / "in", images)), cache_dir=tmp_path, decoding=Decoding()
    )
    train = stored.images
    assert train.images.dtype == torch.uint8
    assert np.array_equal(train.images.numpy(), np.stack(images).transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [number % 2 for number in range(1030)]


def test_second_opening_decodes_and_writes_nothing(tmp_path):
    samples = files(tmp_path / "in", pictures(6))
    first = open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    before = state(tmp_path / "data")
    second = open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    assert state(tmp_path / "data") == before
    assert second.key == first.key
    assert torch.equal(second.images.images, first.images.images)


def test_writing_to_the_tensor_leaves_the_store_alone(tmp_path):
    source = source_of(files(tmp_path / "in", pictures(4)))
    open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).images.images.zero_()
    again = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).images.images
    assert again.count_nonzero() > 0


def test_key_follows_content_name_and_size(tmp_path):
    samples = files(tmp_path / "in", pictures(4))
    keys = [open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8)).key]
    keys.append(open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=16)).key)
    Image.new("RGB", (8, 8)).save(samples[0].content)
    keys.append(open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8)).key)
    assert len(set(keys)) == 3


@pytest.fixture
def _settled(monkeypatch):
    """Take files that were just written for old ones."""
    monkeypatch.setattr(seen, "TICK_NS", 0)


def reads(monkeypatch, name: str) -> list[str]:
    """List what a function of the store reads from now on."""
    read = []
    function = getattr(store, name)
    monkeypatch.setattr(store, name, lambda what: [read.append(what), function(what)][1])
    return read


@pytest.mark.usefixtures("_settled")
def test_files_that_stayed_as_they_were_are_not_read_again(tmp_path, monkeypatch):
    source = source_of(files(tmp_path / "in", pictures(4)))
    first = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    hashed, summed = reads(monkeypatch, "_digest"), reads(monkeypatch, "_crc32")
    assert open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).key == first.key
    assert (hashed, summed) == ([], [])

    os.utime(source.content[2][1])
    os.utime(store_folder(tmp_path) / store.LABELS)
    for _ in range(2):
        assert open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).key == first.key
    assert len(hashed) == 4
    assert [path.name for path in summed] == list(decode.FILES)


def test_a_change_within_a_tick_of_the_file_systems_clock_is_seen(tmp_path, monkeypatch):
    class Coarse:
        """What FAT would say: times in steps of two seconds."""

        def __init__(self, found):
            self._found = found

        def __getattr__(self, name):
            value = getattr(self._found, name)
            return value // 2_000_000_000 * 2_000_000_000 if name.endswith("_ns") else value

    exact = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: Coarse(exact(path, **how)))
    path = tmp_path / "0.ppm"
    source = source_of([Sample(name="0", label=0, content=path)])
    for value in range(4):
        path.write_bytes(b"P6 8 8 255\n" + bytes([value]) * 192)
        images = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).images.images
        assert images.unique().tolist() == [value]


@pytest.mark.usefixtures("_settled")
@pytest.mark.parametrize("damage", [b"", b"no checksum", b"0123456789abcdef\nanother key"])
def test_a_damaged_memory_is_none(tmp_path, damage):
    source = source_of(files(tmp_path / "in", pictures(4)))
    first = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    (known,) = (tmp_path / "sources").iterdir()
    known.write_bytes(damage)
    assert open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).key == first.key
    assert known.read_bytes() != damage


@pytest.mark.usefixtures("_settled")
def test_a_cache_that_cannot_be_written_still_serves(tmp_path, monkeypatch):
    source = source_of(files(tmp_path / "in", pictures(4)))
    first = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    shutil.rmtree(tmp_path / "sources")
    (store_folder(tmp_path) / "checked").unlink()
    monkeypatch.setattr(Path, "write_text", refuse)
    assert open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).key == first.key


def refuse(path: Path, *_, **__):
    raise PermissionError(13, "Permission denied", str(path))


def test_more_images_than_memory_can_be_mapped(tmp_path):
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shape = (2 * memory // (3 * 224 * 224), 3, 224, 224)
    with (tmp_path / "many.npy").open("wb") as file:
        decode._write_header(file, shape)
        file.truncate(file.tell() + np.prod(shape))  # sparse: it takes no space on disk
    images = store._mapped(tmp_path / "many.npy")
    assert images.shape == shape
    assert images[-1].count_nonzero() == 0


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "digests.npy", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda path: os.truncate(path, path.stat().st_size - 3),
        lambda path: path.write_bytes(b""),
        Path.unlink,
    ],
    ids=["byte", "cut", "empty", "gone"],
)
def test_damaged_store_is_built_again(tmp_path, caplog, name, damage):
    images = pictures(6)
    source = source_of(files(tmp_path / "in", images))
    open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    damage(store_folder(tmp_path) / name)
    stored = open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    assert "is damaged and is built again" in caplog.text
    expected = np.stack(images).transpose(0, 3, 1, 2)
    assert np.array_equal(stored.images.images.numpy(), expected)


def test_remains_of_a_killed_build_are_replaced(tmp_path):
    source = source_of(files(tmp_path / "in", pictures(4)))
    open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    folder = store_folder(tmp_path)
    half = folder.with_name(folder.name + ".tmp")
    shutil.move(folder, half)
    (half / "meta.json").unlink()
    open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    assert store_folder(tmp_path) == folder


def test_one_unreadable_image_in_a_hundred_is_named_and_skipped(tmp_path, caplog):
    samples = files(tmp_path / "in", pictures(100))
    samples[7].content.write_bytes(b"")
    stored = open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    assert stored.skipped == {"0007.png": "it is empty (0 bytes)"}
    assert "skipped 0007.png" in caplog.text
    labels = [number % 2 for number in range(100) if number != 7]
    assert stored.images.labels.tolist() == labels
    again = open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    assert again.skipped == stored.skipped


def test_more_unreadable_images_stop_with_count_and_names(tmp_path):
    samples = files(tmp_path / "in", pictures(100))
    for number in (3, 50):
        samples[number].content.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train: 2 of 100 .*0003\.png: .*; 0050\.png: "):
        open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    assert state(tmp_path / "data") == {}


def test_many_unreadable_images_are_listed_in_a_file(tmp_path):
    samples = files(tmp_path / "in", pictures(100))
    for number in range(12):
        samples[number].content.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"12 of 100 .*; all of them: .*unreadable\.txt"):
        open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding(side=8))
    lines = (tmp_path / "data/unreadable.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n:04}.png" for n in range(12)]


def test_the_fit_and_the_limit_are_part_of_the_key(tmp_path):
    source = source_of(files(tmp_path / "in", pictures(4)))
    decodings = [
        Decoding(side=8),
        Decoding(side=8, fit="pad"),
        Decoding(side=8, fit="squash"),
        Decoding(side=8, max_megapixels=1),
    ]
    keys = {open_store(source, cache_dir=tmp_path, decoding=each).key for each in decodings}
    assert len(keys) == len(decodings)


def test_equal_pixels_have_equal_digests(tmp_path):
    images = pictures(3)
    samples = files(tmp_path / "in", [*images, images[1]])
    digests = open_store(source_of(samples), cache_dir=tmp_path, decoding=Decoding()).digests
    assert digests[3] == digests[1]
    assert len(set(digests.tolist())) == 3


def test_unreadable_images_are_counted_in_each_split_alone(tmp_path):
    samples, val = files(tmp_path / "in", pictures(200)), files(tmp_path / "val", pictures(20))
    val[0].content.write_bytes(b"no image")
    with pytest.raises(DataError, match="pictures/val: 1 of 20 images"):
        open_store(source_of(samples, val=val), cache_dir=tmp_path, decoding=Decoding(side=8))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(28, 28)] * 4, 28),
        ([(64, 64)] * 4, 64),
        ([(65, 65)] * 4, 64),
        ([(28, 28), (28, 28), (29, 29), (29, 29)], 32),
        ([(100, 80), (90, 300), (120, 110), (130, 110)], 96),  # median of 80 90 110 110 is 100
        ([(900, 800)] * 4, 224),
        ([(20, 10)] * 4, 32),
    ],
)
def test_default_size_follows_the_images(tmp_path, shapes, expected):
    images = [np.zeros((height, width, 3), np.uint8) for width, height in shapes]
    source = source_of(files(tmp_path / "in", images))
    images = open_store(source, cache_dir=tmp_path, decoding=Decoding()).images.images
    assert images.shape == (4, 3, expected, expected)


def test_size_below_one_is_refused(tmp_path):
    source = source_of(files(tmp_path / "in", pictures(2)))
    with pytest.raises(DataError, match="size 0 is not a number of pixels"):
        open_store(source, cache_dir=tmp_path, decoding=Decoding(side=0))


def test_disk_that_refuses_a_write_leaves_no_half_store(tmp_path):
    # A limit on the size of a file stands in for a full disk: the write itself fails.
    source = source_of(files(tmp_path / "in", pictures(40)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write decoded images to .*File too large"):
            open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state(tmp_path / "data") == {}
    assert len(open_store(source, cache_dir=tmp_path, decoding=Decoding(side=8)).images) == 40


def test_cache_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    source = source_of(files(tmp_path / "in", pictures(2)))
    with pytest.raises(DataError, match=r"cannot write decoded images to .*cache"):
        open_store(source, cache_dir=tmp_path / "cache", decoding=Decoding(side=8))


def test_one_class_is_no_classification():
    with pytest.raises(DataError, match="at least two classes, found 'a'"):
        Source(name="x", classes=("a",), splits={"train": []}, content=[])
