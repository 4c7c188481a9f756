"""The arms of `equal_spend` spend the same on the same images, and its table is right."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_data import toy_data

from benchmarks import equal_spend, optuna_peer
from benchmarks.spend_arms import PLAN, Arm, Run, Shipped, epochs_of, widest
from benchmarks.spend_settings import SETTINGS, Bar, chosen, write_images
from benchmarks.spend_table import by_arm, differences, table
from kdsearch import data as datasets
from kdsearch.deploy.flops import count
from kdsearch.deploy.pricing import build_student
from kdsearch.spec import TrialRecord

pytestmark = pytest.mark.slow  # scripts, not the package
TINY = SETTINGS["tiny"]


def a_run(name, seed, test, *, spent=TINY.spend, data="images", mflops=0.2):
    shipped = Shipped(
        student="resnet d3",
        val=0.5,
        test=test,
        mflops=mflops,
        trained=spent,
        spent=spent,
        test_images=200,
        data=data,
    )
    flags = PLAN if name == "kdsearch" else ()
    arm = Arm(setting="tiny", name=name, seed=seed, flags=flags)
    return Run(arm=arm, shipped=shipped, cpu_s=1.0, wall_s=2.0)


OURS = [a_run("kdsearch", seed, test) for seed, test in enumerate((0.60, 0.64, 0.62))]
WIDEST = [a_run("widest", seed, test) for seed, test in enumerate((0.58, 0.60, 0.62))]


def test_differences_are_paired_by_seed_in_points():
    """60 - 58, 64 - 60, 62 - 62: mean 2, deviation 2, standard error 2 / sqrt(3)."""
    arms = by_arm([*OURS, *reversed(WIDEST), a_run("widest", 7, 0.1)])
    found = differences(arms["kdsearch"], arms["widest"])
    assert found.points == pytest.approx((2, 4, 0))
    assert (found.mean, found.error) == pytest.approx((2, 2 / math.sqrt(3)))
    # of two accuracies of .58 to .62 on 200 images, largest at .58: 1.96 sqrt(2 .58 .42 / 200)
    assert found.noise == pytest.approx(9.674, abs=1e-3)
    assert differences(arms["kdsearch"], {}) is None
    assert math.isnan(differences({0: OURS[0]}, {0: WIDEST[0]}).error)


def test_oracle_is_the_best_of_its_four_under_each_seed():
    others = {"resnet-muon": (0.5, 0.7), "mobilenet-sgd": (0.4, 0.4), "mobilenet-muon": (0.6, 0.6)}
    runs = [a_run(name, seed, t) for name, ts in others.items() for seed, t in enumerate(ts)]
    assert "oracle" not in by_arm(runs)
    oracle = by_arm([*runs, *WIDEST])["oracle"]
    assert {seed: run.arm.name for seed, run in oracle.items()} == {
        0: "mobilenet-muon",
        1: "resnet-muon",
    }


@pytest.mark.parametrize(
    ("bar", "is_kept"),
    [
        (Bar(peer="widest", least=2), True),
        (Bar(peer="widest", least=2.1), False),
        (Bar(peer="widest", least=-1, never_below=True), True),
        (Bar(peer="optuna", least=-50), False),  # not measured
    ],
)
def test_a_bar_is_kept_by_the_mean_and_only_if_it_was_measured(bar, is_kept):
    lines, kept = table("tiny", replace(TINY, bars=(bar,)), [*OURS, *WIDEST])
    assert kept is is_kept
    assert sum("FAIL" in line for line in lines) == (not is_kept)


def test_one_seed_far_below_misses_a_bar_of_each_seed():
    """60 - 58, 64 - 60, 40 - 62: the last is 22 points below, and noise is 9.7."""
    ours = [*OURS[:2], a_run("kdsearch", 2, 0.40)]
    bar = Bar(peer="widest", least=-10, never_below=True)
    lines, kept = table("tiny", replace(TINY, bars=(bar,)), [*ours, *WIDEST])
    (line,) = (line for line in lines if "kdsearch - widest" in line)
    assert line.split("  ")[-1] == "mean >= -10 PASS; each >= -9.7 FAIL"
    assert not kept


@pytest.mark.parametrize(
    ("name", "spent", "is_equal"),
    [("kdsearch", 23, True), ("kdsearch", 25, False), ("widest", 23, False), ("widest", 24, True)],
)
def test_the_command_may_spend_less_and_no_arm_more(name, spent, is_equal):
    lines, kept = table("tiny", TINY, [a_run(name, 3, 0.5, spent=spent)])
    assert kept is is_equal
    assert is_equal or f"but {name} {spent} under seed 3" in lines[-1]


def test_runs_of_other_images_make_no_table():
    with pytest.raises(ValueError, match="different images: images, others"):
        by_arm([OURS[0], a_run("widest", 0, 0.5, data="others")])


def test_trainings_that_were_reused_cost_no_epochs():
    records = [
        TrialRecord(number=0, state="complete", params={}, curve=(0.1, 0.2), epochs=2),
        TrialRecord(number=1, state="complete", params={}, curve=(0.1, 0.2), reused_from=0),
        TrialRecord(number=2, state="pruned", params={}, curve=(0.1,), epochs=2),
        TrialRecord(number=3, state="rejected", params={}),
        TrialRecord(number=4, state="complete", params={}, curve=(0.1, 0.3), control_of=0),
    ]
    assert epochs_of(records) == 5


def test_arms_read_the_images_that_were_chosen_and_no_split_shares_one(tmp_path):
    write_images(TINY, tmp_path / "tiny", None)
    source = datasets.load("digits", cache_dir=tmp_path / "source")
    wanted = chosen(TINY, source)
    read = datasets.load(str(tmp_path / "tiny"), cache_dir=tmp_path / "cache", seed=5)
    assert read.classes == source.classes
    for split in ("train", "val", "test"):
        images, labels = getattr(read, split).at(slice(None)), getattr(read, split).labels
        assert torch.equal(labels, wanted[split].labels)
        assert torch.equal(images, wanted[split].at(slice(None)).expand_as(images))
        assert len(labels) == getattr(TINY, split)
        assert labels.bincount().min() >= 0.09 * len(labels)  # stratified: the rarest is 9.7 %
    rows = torch.cat([images.rows for images in wanted.values()])
    assert len(rows.unique()) == TINY.train + TINY.val + TINY.test


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_widest_student_fits_and_a_wider_one_does_not(family):
    data, limit = toy_data(channels=3), 3e5
    spec, flops = widest(family, {"depth": 5}, data, limit=limit)
    assert 0.5 * limit < flops <= limit
    wider = spec.knobs["width"] * 1.002
    student = build_student(replace(spec, knobs={**spec.knobs, "width": wider}), data)
    assert count(student.network, input_shape=student.preprocess.input_shape)[0] > limit


def test_no_student_within_a_tiny_limit_is_an_error():
    with pytest.raises(ValueError, match="no resnet within 1e-06 MFLOPs"):
        widest("resnet", {"depth": 3}, toy_data(channels=3), limit=1)


class Teacher(nn.Module):
    """It knows the class of nothing, and counts the images that it is asked about."""

    asked = 0

    def forward(self, images):
        assert images.dtype == torch.uint8
        self.asked += len(images)
        return torch.zeros(len(images), 3)


def test_optuna_trains_what_fits_and_charges_nothing_for_what_does_not(monkeypatch):
    monkeypatch.setattr(optuna_peer, "BATCH", 16)
    data, teacher = toy_data(channels=3), Teacher()
    smallest = optuna_peer.ResNet(width=4, blocks=1, in_channels=3, num_classes=3, size=8)
    limit = 2 * optuna_peer.multiply_adds(smallest, data)
    found = optuna_peer.search(data, teacher, limit=limit, n_trials=3, epochs=2, seed=0)
    assert found.spent == 6
    assert teacher.asked == 6 * (len(data.train) // 16 * 16)
    assert 0 < found.flops <= limit
    assert 0 <= found.val <= 1
    monkeypatch.setattr(optuna_peer, "_DRAWS", 2)
    with pytest.raises(RuntimeError, match="6 draws hold less than 3 networks"):
        optuna_peer.search(data, teacher, limit=1, n_trials=3, epochs=2, seed=0)


def test_optunas_training_learns(monkeypatch):
    monkeypatch.setattr(optuna_peer, "BATCH", 16)
    torch.manual_seed(0)
    data = toy_data(channels=3)
    network = optuna_peer.ResNet(width=8, blocks=1, in_channels=3, num_classes=3, size=8)
    recipe = {"epochs": 8, "lr": 0.1, "temperature": 4.0, "alpha": 0.1}
    optuna_peer.train(network, data, Teacher(), **recipe)
    assert optuna_peer.accuracy(network, data.val, data) > 0.8


def test_views_of_the_optuna_peer_are_crops_of_the_padded_image():
    data = toy_data(channels=3)
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 3, 8, 8)
    views = optuna_peer.augmented(images, data)
    assert views.shape == images.shape
    rows = {tuple(view[0, 4].tolist()) for view in views}
    pad = data.augment.pad
    assert len(rows) == (2 * pad + 1) ** 2 * (1 + data.augment.flip)


@pytest.mark.parametrize("text", ["off", "=--stopping off", "widest=--seed 1", "oracle=--seed 1"])
def test_variant_needs_a_name_of_its_own(text):
    with pytest.raises(ValueError, match="--variant"):
        equal_spend.read_variant(text)
    name, flags = equal_spend.read_variant("front=--spend {spend}ep --explore 'front'")
    assert (name, flags) == ("front", ("--spend", "{spend}ep", "--explore", "front"))
    arm = Arm(setting="tiny", name=name, seed=0, flags=flags)
    assert arm.plan == ["--spend", f"{TINY.spend}ep", "--explore", "front"]


def test_finished_runs_are_kept_and_not_run_again(tmp_path, capsys):
    file = tmp_path / "runs.jsonl"
    for run in [*OURS, *WIDEST]:
        equal_spend.tell(run, file)
    assert equal_spend.read(file) == [*OURS, *WIDEST]
    arms = ["--arms", "kdsearch", "widest", "--json", str(file)]
    before = file.read_bytes()
    assert equal_spend.main(["tiny", *arms]) == 0
    assert file.read_bytes() == before
    assert "+2.00 +- 1.15 (+2.0 +4.0 +0.0)" in capsys.readouterr().out


def test_arms_spend_the_same_on_the_same_images(tmp_path):
    """End to end, in processes: the command, the widest and Optuna, as many epochs each."""
    file = tmp_path / "runs.jsonl"
    given = ["tiny", "--arms", "kdsearch", "widest", "optuna", "--seeds", "1", "--json", str(file)]
    assert equal_spend.main(given) == 0
    runs = {run.arm.name: run.shipped for run in equal_spend.read(file)}
    assert set(runs) == {"kdsearch", "widest", "optuna"}
    assert len({shipped.data for shipped in runs.values()}) == 1
    assert {shipped.test_images for shipped in runs.values()} == {TINY.test}
    assert [runs[name].spent for name in ("widest", "optuna")] == [TINY.spend] * 2
    assert runs["widest"].trained == TINY.spend
    assert runs["optuna"].trained == TINY.spend // 12
    assert 0 < runs["kdsearch"].trained <= runs["kdsearch"].spent <= TINY.spend
    assert all(0 < shipped.mflops <= TINY.mflops for shipped in runs.values())
    for shipped in runs.values():
        assert shipped.test * TINY.test == pytest.approx(round(shipped.test * TINY.test))


def test_a_failed_arm_is_an_exit_status_and_the_others_are_kept(tmp_path, capsys):
    file = tmp_path / "runs.jsonl"
    arms = ["--arms", "widest", "--variant", "wrong=--epochs zero", "--seeds", "0"]
    assert equal_spend.main(["tiny", *arms, "--json", str(file)]) == 2
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["arm"]["name"] == "widest"
    assert "--epochs" in capsys.readouterr().err
