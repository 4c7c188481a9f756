import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdsearch.data import load, parquet
from kdsearch.errors import DataError


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


@pytest.mark.parametrize("label", ["label", "fine_label"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_columns_go_by_two_names(tmp_path, image, label):
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
        (table([0, 1], names=["a", "b"], image="pixels"), "no column 'img' or 'image'; it has pix"),
        (table([0, 1], label="y"), "no column 'label' or 'fine_label'"),
        (table([0, None, 1]), "column 'label' is null in row 1"),
        (table([0, 1, 2], names=["a", "b"]), "column 'label' is 2 in row 2; accepted: 0 to 1"),
        (table([0, -1], names=["a", "b"]), "column 'label' is -1 in row 1"),
        (table([0, -1]), "column 'label' is -1 in row 1; accepted: 0 and above"),
        (table(["a", "b"]), "column 'label' holds string; expected integers"),
        (table([0, 1], cells=[1.0, 2.0]), "column 'img' holds double; expected encoded images"),
        (
            table([0, 1]).replace_schema_metadata({"huggingface": "{"}),
            "'huggingface' metadata has no info.features.label",
        ),
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
