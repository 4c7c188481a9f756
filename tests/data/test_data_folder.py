import os
from pathlib import Path

import pytest
from PIL import Image

from kdsearch.data import folder, load
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


@pytest.mark.parametrize("name", ["train", "train/c"])
def test_links_to_folders_are_followed(tmp_path, name):
    fill(tmp_path / "in", "train/a/1.png", "train/b/1.png")
    fill(tmp_path / "out", "1.png")
    (tmp_path / "in" / name).with_name("c").symlink_to(tmp_path / "out")
    if name == "train":
        (tmp_path / "in/train").rename(tmp_path / "moved")
        (tmp_path / "in/train").symlink_to(tmp_path / "moved")
        (tmp_path / "in/c").rename(tmp_path / "moved/c")
    assert ("train/c/1.png", 2) in listed(folder.read(tmp_path / "in"), "train")


def test_a_link_back_ends_and_is_named(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "train/a/all").symlink_to(tmp_path / "train/a")
    source = folder.read(tmp_path)
    assert len(listed(source, "train")) == 2
    assert source.left_out == {"links back to a folder that holds them": ["train/a/all"]}


def test_images_below_a_class_are_of_that_class(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/a/extra/deep/2.png", "train/b/1.png")
    found = listed(folder.read(tmp_path), "train")
    assert found == [("train/a/1.png", 0), ("train/a/extra/deep/2.png", 0), ("train/b/1.png", 1)]


def test_every_file_that_is_no_image_is_left_out_with_the_reason(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.JFIF", "train/b/2.jpe", "train/b/3.avif")
    fill(tmp_path, "train/a/2.heic", "train/a/plain", "train/a/.2.png", "train/3.png", "4.png")
    fill(tmp_path, "train/__MACOSX/1.png", "extra/a/1.png", "train/a/Thumbs.db")
    (tmp_path / "train/a/gone.png").symlink_to(tmp_path / "nowhere")
    source = folder.read(tmp_path)
    assert len(listed(source, "train")) == 4
    assert source.left_out == {
        "folders that are no split": ["extra"],
        "images outside of a split": ["4.png"],
        "outside of a class folder": ["train/3.png"],
        "hidden or of the system": ["train/__MACOSX", "train/a/.2.png"],
        ".heic files": ["train/a/2.heic"],
        "broken links": ["train/a/gone.png"],
        "files without a suffix": ["train/a/plain"],
    }


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", "validation", "Testing"), ("TRAIN", "Dev", "Test"), ("train", "valid", "test")],
)
def test_splits_go_by_their_usual_names_in_upper_or_lower_case(tmp_path, train, val, test):
    root = tmp_path / "set"
    fill(root, *(f"{split}/{name}/1.png" for split in (train, val, test) for name in "ab"))
    source = load(str(root), cache_dir=tmp_path).raw.source
    assert list(source.splits) == ["train", "val", "test"]
    assert source.left_out == {}


def test_a_composed_and_a_decomposed_name_are_one_class(tmp_path):
    fill(tmp_path, "train/caf\u00e9/1.png", "train/b/1.png", "val/cafe\u0301/2.png")
    source = folder.read(tmp_path)
    assert source.classes == ("b", "caf\u00e9")
    assert [label for _, label in listed(source, "val")] == [1]


def test_a_class_of_another_case_is_suggested(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/A/1.png")
    with pytest.raises(DataError, match=r"no class 'A' \(did you mean 'a'\?\)"):
        folder.read(tmp_path)


def test_many_classes_are_not_all_listed(tmp_path):
    fill(tmp_path, *(f"train/{n:03}/1.png" for n in range(40)), "val/x/1.png")
    with pytest.raises(DataError, match=r"009 and 30 more$"):
        folder.read(tmp_path)


def test_a_test_split_without_classes_is_left_out(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png")
    source = folder.read(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.left_out == {"outside of a class folder": ["test/1.png", "test/2.png"]}


def test_a_split_without_any_image_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "test/a").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in test; remove the folder"):
        folder.read(tmp_path)


def test_a_class_of_other_files_states_them(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.heic", "train/b/2.heic")
    with pytest.raises(DataError, match=r"no images in b \(2 \.heic files\)"):
        folder.read(tmp_path)


def test_a_class_whose_name_is_not_utf8_is_refused_by_name(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "train/b").rename(tmp_path / "train" / os.fsdecode(b"\xff"))
    with pytest.raises(DataError, match=r"train/\\xff: the name of this class is not UTF-8"):
        folder.read(tmp_path)


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "train/b/1.png").rename(tmp_path / "train/b" / os.fsdecode(b"\xff.png"))
    source = folder.read(tmp_path)
    assert listed(source, "train")[1] == ("train/b/\\xff.png", 1)
    source.splits["train"][1].name.encode()


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
    with pytest.raises(DataError, match="no images in unlabeled; remove the folder"):
        folder.read(tmp_path)
