from pathlib import Path

import pytest
from PIL import Image

from kdsearch.data import folder
from kdsearch.errors import DataError


def fill(root: Path, *names: str) -> Path:
    """Write a tiny image for each name, with folders, under `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    return root


def listed(source, split: str) -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in source.splits[split]]


def test_classes_and_files_are_sorted(tmp_path):
    fill(tmp_path, "train/dog/2.png", "train/dog/1.png", "train/cat/9.png", "val/dog/1.png")
    source = folder.read(tmp_path)
    assert source.classes == ("cat", "dog")
    train = [("train/cat/9.png", 0), ("train/dog/1.png", 1), ("train/dog/2.png", 1)]
    assert listed(source, "train") == train
    assert listed(source, "val") == [("val/dog/1.png", 1)]
    assert (source.channels, source.flip) == (3, True)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_goes_by_three_names(tmp_path, name):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/1.png", "test/b/1.png")
    assert list(folder.read(tmp_path).splits) == ["train", "val", "test"]


def test_two_validation_folders_are_ambiguous(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="val and valid are one split"):
        folder.read(tmp_path)


def test_hidden_files_and_other_suffixes_are_not_images(tmp_path):
    fill(tmp_path, "train/a/1.PNG", "train/a/.2.png", "train/.cache/1.png", "train/b/1.JPeG")
    (tmp_path / "train/a/notes.txt").write_text("none")
    source = folder.read(tmp_path)
    assert listed(source, "train") == [("train/a/1.PNG", 0), ("train/b/1.JPeG", 1)]


def test_class_that_train_lacks_is_named(tmp_path):
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/dogs/1.png")
    with pytest.raises(DataError, match=r"val: train has no class 'dogs' \(did you mean 'dog'\?\)"):
        folder.read(tmp_path)


def test_empty_class_is_named(tmp_path):
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "train/fox").mkdir()
    with pytest.raises(DataError, match="no images in fox"):
        folder.read(tmp_path)


def test_train_without_classes_is_refused(tmp_path):
    fill(tmp_path, "train/1.png")
    with pytest.raises(DataError, match="holds no class folders"):
        folder.read(tmp_path)


def test_class_linked_from_outside_is_refused(tmp_path):
    fill(tmp_path / "in", "train/a/1.png", "train/b/1.png")
    fill(tmp_path / "out", "c/1.png")
    (tmp_path / "in/train/c").symlink_to(tmp_path / "out/c")
    with pytest.raises(DataError, match=r"train/c: is a link to .*out/c"):
        folder.read(tmp_path / "in")


def test_root_may_be_a_link(tmp_path):
    fill(tmp_path / "real", "train/a/1.png", "train/b/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert folder.read(tmp_path / "link").classes == ("a", "b")


@pytest.mark.parametrize("name", ["unlabeled", "unlabelled"])
def test_unlabelled_images_are_found_at_any_depth_and_sorted(tmp_path, name):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    fill(tmp_path, *(f"{name}/{path}" for path in ("z.png", "b/c/2.png", "b/1.png", "a/.no.png")))
    (tmp_path / name / "notes.txt").write_text("none")
    source = folder.read(tmp_path)
    found = [(f"{name}/b/1.png", -1), (f"{name}/b/c/2.png", -1), (f"{name}/z.png", -1)]
    assert listed(source, "unlabeled") == found
    assert listed(source, "train") == [("train/a/1.png", 0), ("train/b/1.png", 1)]
    assert source.classes == ("a", "b")
    assert {sample for sample, _ in found} < {content for content, _ in source.content}


def test_unlabelled_folder_without_images_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "unlabeled/deep").mkdir(parents=True)
    with pytest.raises(DataError, match="unlabeled: no images in it or below; remove the folder"):
        folder.read(tmp_path)


def test_links_below_unlabelled_are_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "unlabeled/x/1.png")
    (tmp_path / "unlabeled/x/all").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"unlabeled/x/all: is a link to .*; copy the images"):
        folder.read(tmp_path)


def test_unlabelled_folder_linked_from_outside_is_refused(tmp_path):
    fill(tmp_path / "in", "train/a/1.png", "train/b/1.png")
    fill(tmp_path / "out", "1.png")
    (tmp_path / "in/unlabeled").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match=r"unlabeled: is a link to .*out, outside of"):
        folder.read(tmp_path / "in")
