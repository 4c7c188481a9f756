"""The model card says what was measured, in the form that a hub reads; what it shows works."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from toy_data import toy_data

from kdsearch.deploy import model_card
from kdsearch.deploy.card_program import timm_snippet
from kdsearch.deploy.pricing import build_student
from kdsearch.models.features import bare
from kdsearch.models.weights import save_weights
from kdsearch.spec import StudentSpec
from kdsearch.tasks import ACCURACY
from kdsearch.tasks.classification import Classification

DATA = toy_data(channels=3, size=32)
METADATA = {
    "classes": '["cat", "dog"]',
    "mean": "[0.5, 0.5, 0.25]",
    "std": "[0.25, 0.25, 0.125]",
    "image_size": "32",
    "resolution": "24",
    "channels": "3",
}
TASK = Classification(["cat", "dog"])
MEASURED = {"latency_ms": 1.25, "latency_low_ms": 1.0, "latency_high_ms": 1.5}
METRICS = {
    "metric": asdict(ACCURACY),
    "task": {"name": "classification", "output_name": "logits", **asdict(TASK.facts())},
    "accuracy": {"validation": 0.9, "test": 0.875},
    "teacher": {"name": "auto", "validation": 0.95, "test": None},
    "data": {"name": "pets", "images": {"training": 80, "validation": 20, "test": 16}},
    "metadata": METADATA,
    "machine": "some processor",
    "target": {"device": "cpu", "runtime": "onnxruntime", "threads": 2, "batch": 1},
    "onnx": {"opset": 20, "bytes": 12_000, "val": 0.9, **MEASURED},
    "is_taught": True,
    "flops": 2_500_000,
    "params": 31_000,
}
CONFIG = {"data": "pets", "student": "resnet", "method": "kd", "set": {"train.lr": 0.1}}
INT8 = {
    "name": "student-int8.onnx",
    "runtime": "ONNX Runtime",
    "target": METRICS["target"],
    "bytes": 4_000,
    "val": 0.5,
    "latency": {"ms": 1.0, "low_ms": 0.5, "high_ms": 2.0},
    "misses": ["loses 40.00 points, over --max-drop 0.01"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / model_card.CONFIG).write_text(yaml.safe_dump(CONFIG))
    model_card.update(tmp_path, **METRICS)
    return tmp_path


def test_a_hub_reads_the_results(folder):
    read = ModelCard.load(folder / model_card.CARD)

    message = {result.dataset_split: result.metric_value for result in read.data.eval_results}
    assert message == {"validation": 0.9, "test": 0.875}
    assert {result.metric_type for result in read.data.eval_results} == {"accuracy"}
    assert read.data.pipeline_tag == "image-classification"
    assert read.data.license == "unknown"


@pytest.mark.parametrize(
    "expected",
    [
        "2.5 million multiply-adds",
        "31,000 parameters",
        "0.012 MB, 1.25 ms (1.00 to 1.50) on cpu, onnxruntime, 2 threads, batch 1",
        "| test | 87.50 ± 9.32 % |  | 16 |  |",  # sqrt(15 / 18 * 3 / 18 / 16)
        "It knows 2 classes: cat, dog.",
        "some processor",
        "80 training, 20 validation, 16 test",
        "[batch, 3, 24, 24]",
        'in the order of: "cat", "dog"',
        "An image is cut to its centre of 32 x 32 pixels",
        "train.lr: 0.1",
    ],
)
def test_the_card_states_the_measurements(folder, expected):
    assert expected in (folder / model_card.CARD).read_text()


@pytest.mark.parametrize(
    ("taught", "epochs", "expected"),
    [
        (True, None, "Distilled from auto by kd, chosen"),
        (True, 9, "Distilled from auto by kd for 9 epochs, until it reached its teacher, chosen"),
        (False, None, "Trained without a teacher (kd), chosen"),
    ],
)
def test_the_card_states_how_long_the_teacher_taught(folder, taught, epochs, expected):
    model_card.update(folder, is_taught=taught, taught_epochs=epochs)
    assert expected in (folder / model_card.CARD).read_text().replace("\n", " ")


HOSTILE = "<script>alert(1)</script>\n| x | `y` \x1b[2J &"


def test_text_from_outside_is_no_markup(tmp_path):
    task = Classification([HOSTILE, 'hot dog, "best"', "b"])
    (tmp_path / model_card.CONFIG).write_text(yaml.safe_dump({**CONFIG, "student": HOSTILE}))
    model_card.update(
        tmp_path,
        **METRICS
        | {
            "task": {"name": "classification", "output_name": "logits", **asdict(task.facts())},
            "data": {**METRICS["data"], "name": HOSTILE},
            "teacher": {**METRICS["teacher"], "name": HOSTILE},
            "notes": [HOSTILE],
        },
    )
    text = (tmp_path / model_card.CARD).read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["model-index"][0]["name"] == f"{HOSTILE} for {HOSTILE}"
    prose = body.partition("```yaml")[0] + body.rpartition("```")[2]
    assert "<script" not in prose
    assert "\x1b" not in text
    assert '"hot dog, \\"best\\"", "b"' in prose


def test_the_card_states_the_check_of_predict_py(folder):
    checked = {"same": 1.0, "max_abs": 1e-6, "max_rel": 1e-6, "n": 20}
    model_card.update(folder, onnx={**METRICS["onnx"], "predict_py": checked})
    line = "predict.py answers 20 of 20 validation files as in training."
    assert line in (folder / model_card.CARD).read_text()


def test_licence_and_author_are_those_that_were_given(folder):
    model_card.update(folder, license="apache-2.0", author="A. Author")
    read = ModelCard.load(folder / model_card.CARD)
    assert read.data.license == "apache-2.0"
    assert read.data.to_dict()["authors"] == ["A. Author"]
    assert "Licence: apache-2.0, by A. Author." in (folder / model_card.CARD).read_text()


def test_what_is_found_later_is_added(folder):
    model_card.update(folder, files={"student-int8.onnx": INT8})
    model_card.update(folder, notes=["Gain: 1.00 points"])

    text = (folder / model_card.CARD).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `student-int8.onnx`"))
    assert "| 4,000 | 50.00 % | 1.00 ms (0.50 to 2.00)" in row
    assert "do not use: loses 40.00 points" in row
    assert "Gain: 1.00 points" not in text  # the diary of a study is in metrics.json
    kept = json.loads((folder / model_card.METRICS).read_text())
    assert kept["notes"] == ["Gain: 1.00 points"]
    assert kept["files"] == {"student-int8.onnx": INT8}
    assert kept["accuracy"] == METRICS["accuracy"]


def test_the_card_states_a_latency_of_one_round(folder):
    for one_round in (False, True):
        model_card.update(folder, onnx={**METRICS["onnx"], "one_round": one_round})
        text = (folder / model_card.CARD).read_text()
        assert ("one round by the clock" in text) == one_round
        assert ("95 % range over new processes" in text) != one_round


@pytest.mark.parametrize(("contention", "is_told"), [(1.5, True), (1.0, False), (None, False)])
def test_the_card_states_a_busy_machine(folder, contention, is_told):
    model_card.update(folder, onnx={**METRICS["onnx"], "contention": contention})
    assert ("The machine was busy" in (folder / model_card.CARD).read_text()) == is_told


def test_the_card_states_the_spread_over_seeds(folder):
    seeds = {"mean": 0.8925, "sd": 0.0125, "low": 0.85, "high": 0.935, "values": [0.88, 0.905]}
    model_card.update(folder, seeds={"validation": seeds})

    expected = "| 95.00 % | 20 | 89.25 ± 1.25 (85.00 to 93.50), 2 seeds |"
    assert expected in (folder / model_card.CARD).read_text()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_alone_loads_a_student_of_its_own(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    student = build_student(StudentSpec(family=f"timm:{name}"), DATA).freeze()
    save_weights(bare(student.network), tmp_path / "student.safetensors")
    metadata = {"channels": "3", "resolution": "32"}
    shown = timm_snippet({"student": student.name}, metadata, {"head_outputs": len(DATA.classes)})
    (code,) = re.findall(r"```python\n(.*?)```", shown, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.nn.Module] = {}

    exec(code, found)

    images = DATA.val.at(slice(5))
    with torch.no_grad():
        torch.testing.assert_close(found["network"](student.preprocess(images)), student(images))


@pytest.mark.parametrize(
    "config",
    [
        {"student": "resnet"},
        {"student": "timm:resnet18", "set": {"student.depth": 1}},
        {"student": "timm:resnet18", "set": {"student.cut": 1}},
    ],
)
def test_other_families_and_networks_without_some_blocks_are_not_timms(config):
    assert timm_snippet(config, METADATA, {"head_outputs": 3}) == ""
