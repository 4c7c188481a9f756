"""The speed run's halves on the CPU, with a script that has the public one's interface."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_data import CPU, toy_data

from benchmarks import speed_run, warm_start
from kdsearch import data as datasets
from kdsearch.data.base import Augment
from kdsearch.spec import TrainSpec
from kdsearch.training.step import Session

pytestmark = pytest.mark.slow  # a script, not the package

DATA = toy_data(channels=3)
SPEC = TrainSpec(epochs=4, batch_size=48, optimizer="muon", lr=0.05, warmup=0.0, ema=0.5)
# Half weights, a whitening that is blank until it is made, times and accuracies in a table.
SCRIPT = """
import os
import sys

with open(sys.argv[0]) as f:
    code = f.read()

import torch
from torch import nn


@torch.compile
def is_compiled():
    return torch.compiler.is_compiling()


class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.whiten = nn.Conv2d(3, 12, 2)
        self.whiten.weight.requires_grad = False
        self.layers = nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16),
            nn.GELU(), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.GELU(),
        )
        self.head = nn.Linear(16 * 9, 3, bias=False)
        self.half()

    def reset(self):
        for part in (*self.layers, self.head):
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        nn.init.zeros_(self.whiten.weight)
        nn.init.zeros_(self.whiten.bias)

    def init_whiten(self, images):
        assert images.dtype == torch.float32 and images.mean().abs() < 0.2, "not normalised"
        self.whiten.weight.data[:] = torch.eye(12).view(12, 3, 2, 2)

    def forward(self, x):
        x = nn.functional.conv2d(x, self.whiten.weight, self.whiten.bias)
        return self.head(self.layers(x).flatten(1))


class CifarLoader:
    def __init__(self, path, train):
        data = torch.load(os.path.join(path, "train.pt" if train else "test.pt"))
        self.images, self.labels, self.classes = data["images"], data["labels"], data["classes"]
        assert self.images.dtype == torch.uint8


def main(run, model):
    train, test = (CifarLoader("cifar10", train) for train in (True, False))
    assert len(train.classes) == 3 and not is_compiled()
    assert model.whiten.weight.dtype == torch.float16
    reds = train.images[..., 0].float().mean() + run
    half = (test.labels < 2).float().mean()
    print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
    print(f"|  {run}  |      0  |     0.1000  |   0.2000  |               |        0.5000  |")
    print(f"|       |      1  |     0.3000  |   {half:.4f}  |             |      {reds:.4f}  |")
    print("|          |   eval  |     0.3000  |   0.2000  |       0.9999  |      999.0000  |")
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return runpy.run_path(str(file), run_name="speed_run")


def test_script_runs_eagerly_on_our_images_and_tells_its_time_and_accuracy(script, tmp_path):
    speed_run.write(DATA, tmp_path)
    here = Path.cwd()
    run = speed_run.theirs(script, tmp_path, CPU)(7)
    reds = DATA.train.images[:, 0].float().mean().item()
    assert run.seconds == pytest.approx(reds + 7, abs=1e-4)
    assert run.accuracy == pytest.approx(2 / 3, abs=1e-4)
    assert Path.cwd() == here


def test_student_is_the_scripts_network_in_float32_on_normalised_images(script):
    torch.manual_seed(0)
    network = script["CifarNet"]()
    model = speed_run.student(network, DATA)
    network.init_whiten(inputs := model.preprocess(DATA.train.images))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    logits = model.eval()(DATA.train.images)
    assert logits.abs().max() > 0.01
    torch.testing.assert_close(logits, network(inputs))


def test_scripts_network_learns_by_our_steps_once_it_is_whitened(script):
    session = Session(data=DATA, spec=SPEC, seed=0, view_seed=0, device=CPU)
    run = speed_run.ours(script, session)
    assert run.accuracy > 0.9
    assert run.seconds > 0
    assert run.mode == "fp32 eager"
    script["CifarNet"].init_whiten = lambda *_: None
    assert speed_run.ours(script, session).accuracy == pytest.approx(1 / 3)


def test_both_train_on_what_was_held_out_for_validation_too(tmp_path):
    (path, _), *_ = warm_start.made(tmp_path, small=60, large=30)
    data = datasets.load(str(path), cache_dir=tmp_path / "cache")
    both = speed_run.images(str(path), cache_dir=tmp_path / "cache")
    assert both.train.shape[0] == len(data.train) + len(data.val) > len(data.train)
    assert torch.equal(both.train.labels[-len(data.val) :], data.val.labels)
    assert torch.equal(both.train.images[-1], data.val.at(slice(None))[-1])
    assert both.augment == Augment(pad=2, flip=True)


def test_without_a_source_pictures_are_made_for_the_same_views(monkeypatch):
    monkeypatch.setattr(speed_run, "_MADE", 1)
    made = speed_run.images(None, cache_dir=Path())
    assert made.train.shape == (128 + 2, 3, 32, 32)
    assert made.augment == Augment(pad=2, flip=True)


@pytest.mark.usefixtures("script")
def test_row_is_our_time_over_the_scripts_and_the_first_run_of_each_does_not_count(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(speed_run, "_GPU", CPU)
    monkeypatch.setattr(speed_run, "RECIPE", SPEC)
    monkeypatch.setattr(speed_run, "images", lambda *_, **__: DATA)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "none")
    (row,) = speed_run.rows(tmp_path / "script.py", None)
    reds = DATA.train.images[:, 0].float().mean().item()
    middle = reds + (1 + speed_run.RUNS) / 2
    assert row.facts["script_s"] == pytest.approx(middle, abs=1e-3)
    assert row.measured.median == pytest.approx(row.facts["our_s"] / middle, rel=0.2, abs=1e-4)
    assert (row.facts["our_accuracy"], row.facts["script_accuracy"]) == (1.0, 0.6667)
    assert row.facts["mode"] == "bf16 channels_last eager"
    assert row.is_met


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_speed_run_asks_for_a_gpu(capsys):
    assert speed_run.main(["--script", "script.py"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_our_half_is_replayed_as_a_graph(script):
    gpu = torch.device("cuda", 0)
    data = replace(DATA, train=DATA.train.to(gpu))
    session = Session(data=data, spec=SPEC, seed=0, view_seed=0, device=gpu)
    assert speed_run.ours(script, session).mode == "fp32 graph"
