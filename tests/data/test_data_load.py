from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdsearch.data import LEAST_AREA, load, statistics
from kdsearch.data.base import Augment
from kdsearch.errors import DataError

EVERY = slice(None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def fill(root: Path, split: str, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / split / name / f"{number:03d}.png")
    return root


def test_digits_are_the_published_pixels_scaled(cache):
    data = load("digits", cache_dir=cache)
    assert (data.name, data.num_classes, data.channels, data.size) == ("digits", 10, 1, (8, 8))
    assert data.augment == Augment(pad=1, flip=False)
    assert (len(data.train), len(data.val), len(data.test)) == (1079, 359, 359)
    parts = (data.train, data.val, data.test)
    found = np.concatenate([part.at(EVERY).numpy().reshape(len(part), 64) for part in parts])
    labels = np.concatenate([part.labels.numpy() for part in parts])
    # 16 -> 255, 8 -> 127.5, rounded to even: 128
    expected = np.rint(load_digits().data * 255 / 16)
    assert sorted(zip(labels, map(tuple, found), strict=True)) == sorted(
        zip(load_digits().target, map(tuple, expected), strict=True)
    )


def test_digits_statistics_are_those_of_train(cache):
    data = load("digits", cache_dir=cache)
    values = data.train.at(EVERY).double() / 255
    assert data.mean == pytest.approx([values.mean().item()])
    assert data.std == pytest.approx([values.std(unbiased=False).item()])


def test_same_request_gives_the_same_data(cache):
    first, again = (load("digits", cache_dir=cache, seed=3, subset=200) for _ in range(2))
    assert first.key == again.key
    assert torch.equal(first.train.at(EVERY), again.train.at(EVERY))


@pytest.mark.parametrize("change", [{"seed": 1}, {"subset": 100}, {"size": 16}, {"flip": True}])
def test_key_differs_for_different_data(cache, change):
    assert load("digits", cache_dir=cache).key != load("digits", cache_dir=cache, **change).key


def test_size_and_flip_are_the_users_to_choose(cache):
    data = load("digits", cache_dir=cache, size=16, flip=True)
    assert data.size == (16, 16)
    assert data.augment == Augment(pad=2, flip=True)


@pytest.mark.parametrize(
    ("size", "augment"),
    [(63, Augment(pad=7, flip=True)), (64, Augment(pad=0, flip=True, area=LEAST_AREA))],
)
def test_large_images_are_cropped_and_resized_and_small_ones_padded(cache, size, augment):
    data = load("digits", cache_dir=cache, size=size, flip=True, subset=20)
    assert data.augment == augment


def test_subset_leaves_validation_and_test_alone(cache):
    whole, part = (load("digits", cache_dir=cache, subset=subset) for subset in (None, 100))
    assert len(part.train) == 100
    assert torch.bincount(part.train.labels).tolist() == [10] * 10
    assert torch.equal(part.val.at(EVERY), whole.val.at(EVERY))
    assert torch.equal(part.test.at(EVERY), whole.test.at(EVERY))


def test_subset_above_train_is_refused(cache):
    with pytest.raises(DataError, match=r"digits: subset: 1080 images .* choose 10 to 1079"):
        load("digits", cache_dir=cache, subset=1080)


def test_given_splits_are_kept_and_the_missing_is_carved(tmp_path):
    root = fill(tmp_path / "set", "train", {"a": 20, "b": 40})
    fill(root, "val", {"a": 3, "b": 4})
    data = load(str(root), cache_dir=tmp_path)
    assert data.val.at(EVERY)[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert (len(data.train), len(data.test)) == (54, 6)
    assert torch.bincount(data.test.labels).tolist() == [2, 4]
    seen = {
        (int(label), int(image[0, 0, 0]))
        for part in (data.train, data.test)
        for image, label in zip(part.at(EVERY), part.labels, strict=True)
    }
    assert len(seen) == 60


def test_splits_that_are_all_given_do_not_depend_on_the_seed(tmp_path):
    root = tmp_path / "set"
    for split in ("train", "val", "test"):
        fill(root, split, {"a": 2, "b": 1})
    first, other = (load(str(root), cache_dir=tmp_path, seed=seed) for seed in (0, 1))
    assert first.key == other.key
    assert first.train.labels.tolist() == [0, 0, 1]


def test_class_too_small_to_carve_stays_in_train_and_is_named(tmp_path):
    root = fill(tmp_path / "set", "train", {"a": 20, "b": 2, "c": 20})
    data = load(str(root), cache_dir=tmp_path)
    assert data.train.labels.bincount().tolist() == [16, 2, 16]
    assert "val has no images of b, so they are never validated" in data.inventory
    assert "test has no images of b, so they are never tested" in data.inventory


def test_without_two_classes_to_carve_from_the_first_are_named(tmp_path):
    root = fill(tmp_path / "set", "train", {**dict.fromkeys("abcdefg", 2), "x": 9})
    with pytest.raises(DataError, match=r"set: too few .*'e' \(2\) and 2 more; a class needs 3"):
        load(str(root), cache_dir=tmp_path)


def add_unlabelled(root: Path, *values: int) -> Path:
    folder = root / "unlabeled/some"
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("RGB", (8, 8), (value, 0, 0)).save(folder / f"{value}.png")
    return root


def test_unlabelled_images_join_train_and_no_other_split(tmp_path):
    root = fill(tmp_path / "set", "train", {"a": 20, "b": 40})
    plain = load(str(root), cache_dir=tmp_path)
    add_unlabelled(root, 101, 102, 103)
    for data in (load(str(root), cache_dir=tmp_path) for _ in range(2)):  # decoded, then warm
        assert data.train.labels[-4:].tolist() == [1, -1, -1, -1]
        assert data.train.at(EVERY)[-3:, 0, 0, 0].tolist() == [101, 102, 103]
        assert torch.equal(data.labelled.at(EVERY), plain.train.at(EVERY))
        assert torch.equal(data.labelled.labels, plain.train.labels)
        for split in ("val", "test"):
            assert torch.equal(getattr(data, split).at(EVERY), getattr(plain, split).at(EVERY))
        assert (data.mean, data.std) == (plain.mean, plain.std)
        assert data.num_classes == 2


def test_subset_is_of_labelled_images_and_keeps_all_others(tmp_path):
    root = add_unlabelled(fill(tmp_path / "set", "train", {"a": 20, "b": 40}), 101, 102)
    data = load(str(root), cache_dir=tmp_path, subset=12)
    assert torch.bincount(data.labelled.labels).tolist() == [4, 8]
    assert data.train.at(EVERY)[12:, 0, 0, 0].tolist() == [101, 102]
    with pytest.raises(DataError, match=r"subset: 49 images .* choose 2 to 48"):
        load(str(root), cache_dir=tmp_path, subset=49)


def test_key_follows_the_unlabelled_images(tmp_path):
    root = fill(tmp_path / "set", "train", {"a": 20, "b": 40})
    keys = [load(str(root), cache_dir=tmp_path).key]
    for value in (101, 102):
        keys.append(load(str(add_unlabelled(root, value)), cache_dir=tmp_path).key)
    (root / "unlabeled/some/101.png").unlink()
    keys.append(load(str(root), cache_dir=tmp_path).key)
    assert len(set(keys)) == 4


def test_labelled_images_are_not_copied(cache):
    data = load("digits", cache_dir=cache)
    assert data.labelled.images.data_ptr() == data.train.images.data_ptr()
    assert len(data.labelled) == len(data.train)


def test_keys_are_those_of_earlier_releases(cache):
    # A key names the teachers and students that were trained on the data.
    data = load("digits", cache_dir=cache)
    assert data.key == "362efe619485ae368036c3fc0398dcb4"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "e745e8d6162a46bc9c8c5161fbd6c554"),
        ({"subset": 7, "seed": 5, "flip": False, "size": 16}, "be035dd8bd01a88322544ea63836c4c9"),
    ],
)
def test_keys_of_a_folder_are_those_of_earlier_releases(tmp_path, given, key):
    for number, place in enumerate(["train/a", "train/b", "val/a", "val/b", "unlabeled"] * 6):
        file = tmp_path / "set" / place / f"{number}.ppm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P6 8 8 255\n" + bytes([number]) * 192)
    for _ in range(2):
        assert load(str(tmp_path / "set"), cache_dir=tmp_path, **given).key == key


def test_all_splits_are_rows_of_the_store(tmp_path):
    root = add_unlabelled(fill(tmp_path / "set", "train", {"a": 20, "b": 40}), 101, 102)
    data = load(str(root), cache_dir=tmp_path, subset=12)
    mapped = {part.images.data_ptr() for part in (data.train, data.labelled, data.val, data.test)}
    assert len(mapped) == 1
    assert data.train.images.shape[0] == 62


def test_statistics_are_remembered(tmp_path, monkeypatch):
    first = load("digits", cache_dir=tmp_path, subset=100)
    assert load("digits", cache_dir=tmp_path).mean != first.mean
    monkeypatch.setattr(statistics, "channel_statistics", lambda images: ((len(images),), (0.0,)))
    again = load("digits", cache_dir=tmp_path, subset=100)
    assert (again.mean, again.std) == (first.mean, first.std)
    for kept in tmp_path.glob("data/*/statistics-*"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert load("digits", cache_dir=tmp_path, subset=100).mean == (100,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"unknown data 'digit' \(did you mean 'digits'\?\)"),
        ("CIFAR-10", r"unknown data 'CIFAR-10' \(did you mean 'cifar10'\?\)"),
        ("{}/pictres", r"there is no '.*pictres' \(did you mean 'pictures'\?\)"),
        ("{}/nowhere/at/all", "there is no '.*nowhere/at/all'"),
        ("{}/empty", "empty: the folder is empty; expected train/CLASS"),
        ("{}/flat", "flat: holds images directly but no 'train' folder"),
        ("{}/pictures", "pictures: holds images in a, b but no 'train' folder"),
        ("{}/text", "text: holds neither images nor Parquet files"),
        ("{}/text/notes.txt", "is a file, but not a Parquet or Arrow file"),
        ("{}/whole/train", r"train: expected .*; did you mean .*/whole\?"),
        ("{}/above", r"above: expected .*; did you mean .*/above/set\?"),
        ("{}/" + "x" * 300, "cannot be read: .*File name too long"),
    ],
)
def test_what_cannot_be_data_raises_its_own_message(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("none")
    fill(tmp_path, "pictures", {"a": 1, "b": 1})
    fill(tmp_path / "whole", "train", {"a": 1, "b": 1})
    fill(tmp_path / "above/set", "train", {"a": 1, "b": 1})
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat/1.png")
    with pytest.raises(DataError, match=message):
        load(name.format(tmp_path), cache_dir=tmp_path / "cache")
