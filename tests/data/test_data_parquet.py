import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdsearch.data import load, parquet
from kdsearch.errors import DataError, SpecError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def table(labels, *, names=None, image="img", label="label", kind=None, cells=None) -> pa.Table:
    """A table whose row r is a plain image of value r."""
    cells = cells or [{"bytes": png(r), "path": None} for r in range(len(labels))]
    made = pa.table({image: cells, label: pa.array(labels, kind)})
    if names is None:
        return made
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    text = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": text})


def write(path: Path, content: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def test_round_trip_of_shards_in_the_order_of_their_names(tmp_path):
    root = tmp_path / "set"
    labels = [0, 1] * 20
    write(root / "data/train-00001-of-00002.parquet", table(labels[::-1], names=["cat", "dog"]))
    write(root / "data/train-00000-of-00002.parquet", table(labels, names=["cat", "dog"]))
    write(root / "data/validation-00000-of-00001.parquet", table([1, 1], names=["cat", "dog"]))
    write(root / "data/test.parquet", table([0, 1, 0], names=["cat", "dog"]))
    data = load(str(root), cache_dir=tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (80, 2, 3)
    assert data.train.labels.tolist() == labels + labels[::-1]
    assert data.train.at(slice(None))[:, 0, 0, 0].tolist() == [*range(40), *range(40)]
    assert data.test.labels.tolist() == [0, 1, 0]


def test_rows_keep_their_labels_over_batches_and_row_groups(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 700).tolist()
    cells = [{"bytes": b"%d" % row, "path": None} for row in range(700)]
    path = write(tmp_path / "train.parquet", table(labels, cells=cells), row_group_size=90)
    samples = list(parquet.read(path).splits["train"])
    assert [sample.content for sample in samples] == [b"%d" % row for row in range(700)]
    assert [sample.label for sample in samples] == labels
    assert samples[699].name == "train.parquet:699"


def test_labels_without_names_are_their_own_names(tmp_path):
    path = write(tmp_path / "train.parquet", table([30, 4, 4, 30, 100]))
    source = parquet.read(path)
    assert source.classes == ("4", "30", "100")
    assert [sample.label for sample in source.splits["train"]] == [1, 0, 0, 1, 2]


@pytest.mark.parametrize("label", ["label", "labels", "fine_label", "class", "category"])
@pytest.mark.parametrize("image", ["img", "image", "jpg"])
def test_columns_go_by_their_usual_names(tmp_path, image, label):
    path = write(tmp_path / "train.parquet", table([0, 1], image=image, label=label))
    assert len(list(parquet.read(path).splits["train"])) == 2


def test_plain_binary_images_are_read(tmp_path):
    path = write(tmp_path / "train.parquet", table([0, 1], cells=[png(3), png(4)]))
    assert [sample.content for sample in parquet.read(path).splits["train"]] == [png(3), png(4)]


def test_null_image_is_skipped_by_its_row(tmp_path):
    cells = [{"bytes": png(0), "path": "x"} for _ in range(200)]
    cells[5] = {"bytes": None, "path": "x"}
    cells[9] = None
    path = write(tmp_path / "train.parquet", table([0, 1] * 100, cells=cells))
    assert load(str(path), cache_dir=tmp_path).skipped == ("train.parquet:5", "train.parquet:9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            table([0, 1], names=["a", "b"], image="pixels"),
            "no column img, .* or webp; it has pixels, label; name it with --image-column",
        ),
        (
            table([0, 1], label="y"),
            "no column label, .* or segmentation_mask; it has img, y; name it with",
        ),
        (table([0, 1, 2], names=["a", "b"]), "column 'label' is 2 in row 2; accepted: 0 to 1"),
        (
            table([0, -2], names=["a", "b"]),
            "column 'label' is -2 in row 1; accepted: 0 to 1, and",
        ),
        (table([0, -2]), "column 'label' is -2 in row 1; accepted: 0 and above"),
        (table([1, -1]), "column 'label' holds -1, which means no label, and 1; write 0 and 1"),
        (
            table([0.5, 1.5]),
            "column 'label' holds double; expected one label a row: integers",
        ),
        (table([[0], [1]]), "column 'label' holds list.*; --label-column names another column"),
        (
            table([0, 1], cells=["a.jpg", "b.jpg"]),
            "holds string; .*the files that it names",
        ),
        (table([0, 1], cells=[1.0, 2.0]), "column 'img' holds double; expected encoded images"),
        (
            table([0, 1]).replace_schema_metadata({"huggingface": "{"}),
            "'huggingface' metadata has no info.features.label",
        ),
        (table([0, 2**63], kind=pa.uint64()), "column 'label' holds no class numbers: "),
    ],
)
def test_mistake_is_reported_with_file_and_column(tmp_path, content, message):
    path = write(tmp_path / "train.parquet", content)
    with pytest.raises(DataError, match="train.parquet.*" + message):
        parquet.read(path)


def test_label_that_train_never_holds_is_refused(tmp_path):
    write(tmp_path / "train.parquet", table([0, 1]))
    write(tmp_path / "test.parquet", table([0, 7]))
    with pytest.raises(DataError, match=r"test\.parquet: column 'label' holds 7, which train"):
        parquet.read(tmp_path)


def test_files_must_agree_on_class_names(tmp_path):
    write(tmp_path / "train.parquet", table([0, 1], names=["a", "b"]))
    write(tmp_path / "test.parquet", table([0, 1], names=["b", "a"]))
    with pytest.raises(DataError, match=r"test\.parquet: its class names differ"):
        parquet.read(tmp_path)


@pytest.mark.parametrize("name", ["test.parquet", "other.parquet"])
def test_folder_without_a_train_file_is_refused(tmp_path, name):
    write(tmp_path / name, table([0, 1]))
    with pytest.raises(DataError, match=name):
        parquet.read(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_corrupt_file_is_named(tmp_path, kept):
    path = write(tmp_path / "train.parquet", table([0, 1] * 9))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        parquet.read(path)


def test_corrupt_page_is_found_when_it_is_read(tmp_path):
    path = write(tmp_path / "train.parquet", table([0, 1] * 50), compression="gzip")
    data = bytearray(path.read_bytes())
    data[20:400] = bytes(380)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        load(str(path), cache_dir=tmp_path)


def labels_of(source, split="train") -> list[int]:
    return [sample.label for sample in source.splits[split]]


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "expected"),
    [
        (["fox", "cat", "fox"], None, ("cat", "fox"), [1, 0, 1]),
        (["fox", "cat", "fox"], pa.large_string(), ("cat", "fox"), [1, 0, 1]),
        (["fox", "cat", "fox"], pa.dictionary(pa.int8(), pa.string()), ("cat", "fox"), [1, 0, 1]),
        ([True, False, True], None, ("False", "True"), [1, 0, 1]),
        ([3, 250, 3], pa.uint8(), ("3", "250"), [0, 1, 0]),
    ],
)
def test_text_and_truth_values_are_their_own_names(tmp_path, labels, kind, classes, expected):
    path = write(tmp_path / "train.parquet", table(labels, kind=kind))
    source = parquet.read(path)
    assert source.classes == classes
    assert labels_of(source) == expected


def test_columns_can_be_named(tmp_path):
    content = table([0, 0, 1] * 9).append_column("colour", pa.array(["red", "blue", "red"] * 9))
    path = write(tmp_path / "train.parquet", content)
    named = load(str(path), cache_dir=tmp_path, label_column="colour")
    assert named.classes == ("blue", "red")
    assert load(str(path), cache_dir=tmp_path, image_column="img").key != named.key
    with pytest.raises(DataError, match=r"no column 'color' \(did you mean 'colour'\?\) \(--label"):
        parquet.read(path, label="color")


def test_columns_are_of_parquet_alone(tmp_path):
    with pytest.raises(SpecError, match="-column are for Parquet and Arrow files; digits is none"):
        load("digits", cache_dir=tmp_path, label_column="label")


def test_a_second_usual_label_column_is_named(tmp_path):
    content = table([0, 1]).append_column("category", pa.array([5, 5]))
    path = write(tmp_path / "train.parquet", content)
    note = "Labels are the column 'label'; --label-column takes category"
    assert list(parquet.read(path).notes) == [note]


def test_a_split_with_hidden_labels_is_left_out(tmp_path):
    write(tmp_path / "train.parquet", table([0, 1] * 30))
    write(tmp_path / "test.parquet", table([-1] * 4))
    data = load(str(tmp_path), cache_dir=tmp_path / "cache")
    note = "Left out: test, since none of its 4 rows has a label (null or -1)"
    assert note in data.inventory
    assert (len(data.train), len(data.test)) == (48, 6)


@pytest.mark.parametrize("labels", [[0, None, 1, 0], [0, -1, 1, 0]])
def test_rows_without_a_label_are_left_out(tmp_path, labels):
    source = parquet.read(write(tmp_path / "train.parquet", table(labels)))
    assert [s.name for s in source.splits["train"]] == [f"train.parquet:{row}" for row in (0, 2, 3)]
    assert labels_of(source) == [0, 1, 0]
    assert source.left_out == {"rows without a label (null or -1)": ["train.parquet:1"]}


def test_train_without_any_label_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no row of train has a label .* in 'label'"):
        parquet.read(write(tmp_path / "train.parquet", table([-1, -1])))


def test_paths_without_bytes_are_refused(tmp_path):
    cells = [{"bytes": None, "path": f"{row}.jpg"} for row in range(4)]
    path = write(tmp_path / "train.parquet", table([0, 1, 0, 1], cells=cells))
    with pytest.raises(DataError, match=r"no bytes, only paths such as '0\.jpg'; write the file"):
        load(str(path), cache_dir=tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("train_0.parquet", "dev-00000-of-00001.parquet"),
        ("Train/part.parquet", "VALID/part.parquet"),
    ],
)
def test_files_of_the_hub_are_found_in_their_splits(tmp_path, names):
    for name, labels in zip(names, ([0, 1] * 20, [1, 0]), strict=True):
        write(tmp_path / "set" / name, table(labels, names=["a", "b"]))
    data = load(str(tmp_path / "set"), cache_dir=tmp_path)
    assert (len(data.val), len(data.train) + len(data.test)) == (2, 40)
    assert data.inventory[0].startswith("Data set: 2 classes; train 36, val 2, test 4")


def test_a_config_of_the_hub_is_suggested_and_can_be_read(tmp_path):
    write(tmp_path / "set/default/train/0000.parquet", table([0, 1] * 20))
    with pytest.raises(DataError, match=r"did you mean .*set/default\?"):
        load(str(tmp_path / "set"), cache_dir=tmp_path)
    assert len(load(str(tmp_path / "set/default"), cache_dir=tmp_path).classes) == 2


def test_a_file_of_no_split_is_left_out(tmp_path):
    for name in ("train-0.parquet", "train_small-0.parquet", "extra.parquet"):
        write(tmp_path / name, table([0, 1]))
    source = parquet.read(tmp_path)
    assert len(labels_of(source)) == 2
    left_out = {"files that begin with no split": ["extra.parquet", "train_small-0.parquet"]}
    assert source.left_out == left_out


def test_files_that_others_count_and_that_are_not_here_are_named(tmp_path):
    for name in ("train-00001-of-00003", "test-00000-of-00001", "val-0-of-2", "data-00000-of-1"):
        write(tmp_path / f"{name}.parquet", table([0, 1]))
    absent = ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"]
    assert parquet.read(tmp_path).left_out["files that are not here"] == absent


def test_classes_of_equal_names_get_their_numbers(tmp_path):
    path = write(tmp_path / "train.parquet", table([0, 1, 2], names=["crane", "dog", "crane"]))
    assert parquet.read(path).classes == ("crane (0)", "dog", "crane (2)")


def test_every_column_that_is_named_as_labels_are_is_offered(tmp_path):
    content = table([0, 1], label="fine_label").append_column("coarse_label", pa.array([0, 0]))
    (note,) = parquet.read(write(tmp_path / "train.parquet", content)).notes
    assert note == "Labels are the column 'fine_label'; --label-column takes coarse_label"


def test_a_stray_table_beside_class_folders_is_not_the_data(tmp_path):
    for name in "ab":
        (tmp_path / "set/train" / name).mkdir(parents=True)
        for number in range(9):
            (tmp_path / f"set/train/{name}/{number}.png").write_bytes(png(number))
    write(tmp_path / "set/metadata.parquet", table([0, 1]))
    assert load(str(tmp_path / "set"), cache_dir=tmp_path).classes == ("a", "b")


def write_arrow(path: Path, content: pa.Table, *, opened=pa.ipc.new_stream) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened(str(path), content.schema) as file:
        file.write_table(content, max_chunksize=7)


@pytest.mark.parametrize("opened", [pa.ipc.new_stream, pa.ipc.new_file])
def test_what_datasets_saves_to_disk_is_read(tmp_path, opened):
    root, labels = tmp_path / "saved", [0, 1] * 20
    for split, rows in {"train": labels, "validation": [1, 0]}.items():
        content = table(rows, names=["cat", "dog"])
        write_arrow(root / split / "data-00000-of-00001.arrow", content, opened=opened)
        write_arrow(root / split / "cache-123.arrow", content, opened=opened)
        (root / split / "state.json").write_text("{}")
    data = load(str(root), cache_dir=tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 2, 4)
    assert data.val.labels.tolist() == [1, 0]


def test_one_saved_split_is_train(tmp_path):
    write_arrow(tmp_path / "saved/data-00000-of-00001.arrow", table([0, 1] * 20))
    data = load(str(tmp_path / "saved"), cache_dir=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (32, 4, 4)


def test_a_damaged_arrow_file_is_named(tmp_path):
    write_arrow(tmp_path / "saved/data-0.arrow", table([0, 1] * 20))
    path = tmp_path / "saved/data-0.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"data-0\.arrow: cannot be read as Arrow"):
        load(str(tmp_path / "saved"), cache_dir=tmp_path)
