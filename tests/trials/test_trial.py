"""The order of a trial's steps, what it leaves on disk, and the folder that is shipped from it."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import yaml
from quick import quick
from toy_data import CPU, distiller_for, tiny_model
from toy_trial import DATA, PLAIN, SMALL, TRAIN, context

from kdsearch.data.feed import Feed
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.package import Package, pack
from kdsearch.deploy.pricing import StaticCosts, build_student, latency_of
from kdsearch.errors import ExportError
from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.spec import Budget, Candidate, Cost, DistillSpec, StudentSpec
from kdsearch.study.config import StudyConfig
from kdsearch.study.early_stopping import Rung
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.tasks.classification import Classification
from kdsearch.teachers.auto import _key
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.teacher_cache.key import key_of
from kdsearch.training.trainer import Epoch
from kdsearch.training.validation import evaluate
from kdsearch.trials import trial as trial_steps
from kdsearch.trials.trial import WEIGHTS, run_trial

TASK = Classification()


def student_of(candidate: Candidate, folder: Path) -> Model:
    student = build_student(candidate.student, DATA)
    fit_weights(bare(student.network), read_weights(folder / WEIGHTS), where="the test")
    return student.freeze()


def test_the_weights_on_disk_are_those_that_were_evaluated(tmp_path: Path) -> None:
    outcome = run_trial(PLAIN, context(tmp_path), tmp_path / "0")
    assert outcome.state == "complete"
    assert outcome.val == outcome.curve[-1]
    assert evaluate(student_of(PLAIN, tmp_path / "0"), DATA.val, TASK, CPU) == outcome.val
    lines = (tmp_path / "0" / "curve.csv").read_text().splitlines()
    assert len(lines) == 1 + PLAIN.train.epochs


def test_the_same_candidate_gives_the_same_weights_whatever_ran_before(tmp_path: Path) -> None:
    other = replace(PLAIN, distill=DistillSpec(method="kd", knobs={"temperature": 2.0}))
    shared = context(tmp_path)
    first = run_trial(other, shared, tmp_path / "0")
    run_trial(PLAIN, shared, tmp_path / "1")
    again = run_trial(other, context(tmp_path), tmp_path / "2")
    assert first.curve == again.curve
    one, two = (safetensors.torch.load_file(tmp_path / n / WEIGHTS) for n in ("0", "2"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("budget", "priced"),
    [(Budget(flops=1e3), False), (Budget(params=10), False), (Budget(latency_ms=1e-6), True)],
)
def test_over_budget_there_is_no_training(tmp_path: Path, budget: Budget, priced: bool) -> None:
    """And no latency is measured for a student that FLOPs or parameters reject."""
    outcome = run_trial(
        PLAIN, context(tmp_path, budget), tmp_path / "0", on_epoch=lambda *_: pytest.fail("trained")
    )
    assert outcome.state == "rejected"
    assert max(outcome.violations.values()) > 0
    assert outcome.cost is not None
    assert (outcome.cost.latency_ms is not None) == priced
    assert not (tmp_path / "0").exists()


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (replace(PLAIN, student=StudentSpec(family="resnet", knobs={"depth": 1})), "depth 1"),
        (replace(PLAIN, train=replace(TRAIN, lr=1e30)), "loss became"),
        (replace(PLAIN, distill=DistillSpec(method="at", mapping="9:9")), "9"),
    ],
    ids=["cannot be built", "diverges", "no such stage"],
)
def test_a_bad_candidate_fails_alone_with_the_reason(
    tmp_path: Path, candidate: Candidate, reason: str
) -> None:
    shared = context(tmp_path)
    outcome = run_trial(candidate, shared, tmp_path / "0")
    assert outcome.state == "failed"
    assert reason in outcome.reason
    assert run_trial(PLAIN, shared, tmp_path / "1").state == "complete"


def packed(path: Path, candidate: Candidate, outcome: TrialOutcome, folder: Path) -> Package:
    assert outcome.cost is not None
    return pack(
        path,
        student_of(candidate, folder),
        candidate,
        StudyConfig(seed=3),
        DATA,
        cost=outcome.cost,
        results={"validation": outcome.val or 0.0},
        teacher={"validation": 0.9},
        latencies=LatencyCache(folder),
    )


def test_the_shipped_file_is_the_student(tmp_path: Path) -> None:
    outcome = run_trial(PLAIN, context(tmp_path), tmp_path / "0")
    package = packed(tmp_path / "best", PLAIN, outcome, tmp_path / "0")
    assert package.agreement.same == 1.0
    assert package.agreement.n == len(DATA.val)
    assert package.val == pytest.approx(outcome.val)
    assert package.is_within(Budget(latency_ms=package.latency.high_ms))
    assert not package.is_within(Budget(latency_ms=package.latency.ms))  # within the spread of it
    assert not package.is_within(Budget(latency_ms=package.latency.ms / 2))
    session = onnxruntime.InferenceSession(tmp_path / "best" / "student.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]
    metrics = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert metrics["onnx"]["max_logit_difference"] == package.agreement.max_abs
    config = yaml.safe_load((tmp_path / "best" / "config.yaml").read_text())
    assert config["student"] == "resnet"
    assert config["set"]["student.width"] == 0.25
    assert config["seed"] == 3


def test_a_file_of_another_student_is_not_shipped(tmp_path: Path) -> None:
    """And what was shipped before stays whole."""
    outcome = run_trial(PLAIN, context(tmp_path), tmp_path / "0")
    packed(tmp_path / "best", PLAIN, outcome, tmp_path / "0")
    before = (tmp_path / "best" / "student.onnx").read_bytes()
    broken = student_of(PLAIN, tmp_path / "0")
    for parameter in broken.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(ExportError, match="disagrees"):
        pack(
            tmp_path / "best",
            broken,
            PLAIN,
            StudyConfig(),
            DATA,
            cost=Cost(flops=1, params=1),
            results={},
            teacher={},
            latencies=LatencyCache(tmp_path),
        )
    assert (tmp_path / "best" / "student.onnx").read_bytes() == before


def test_a_timm_student_keeps_timms_own_names(tmp_path: Path) -> None:
    """At a low rate its logits stay near one; at 0.05 twelve steps take them to 1e5."""
    name = "mobilenetv3_small_050"
    spec = StudentSpec(family=f"timm:{name}", resolution=32)
    candidate = replace(PLAIN, student=spec, train=replace(TRAIN, lr=0.001))
    outcome = run_trial(candidate, context(tmp_path), tmp_path / "0")
    with quick():
        packed(tmp_path / "best", candidate, outcome, tmp_path / "0")
    plain = timm.create_model(name, num_classes=3, in_chans=1).eval()
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "best" / "student.safetensors"))
    student = student_of(candidate, tmp_path / "0")
    images = student.preprocess(DATA.val.at(slice(None)))
    torch.testing.assert_close(plain(images), student.network(images))


def test_adapters_are_no_part_of_what_is_saved(tmp_path: Path) -> None:
    taught = replace(PLAIN, distill=DistillSpec(method="fitnet", mapping="0:1"))
    run_trial(taught, context(tmp_path), tmp_path / "0")
    own = build_student(SMALL, DATA)
    assert any(True for _ in distiller_for(taught.distill, own, tiny_model()).parameters())
    assert read_weights(tmp_path / "0" / WEIGHTS).keys() == own.network.state_dict().keys()


def test_a_latency_is_kept_by_architecture_not_by_name(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path)
    small, wide = tiny_model(), tiny_model(width=64)
    assert small.name == wide.name
    assert latency_of(small, cache) == latency_of(tiny_model(seed=1), cache)
    assert latency_of(small, cache) != latency_of(wide, cache)
    assert len(list((tmp_path / "latency").iterdir())) == 2


GREEDY = """
import torch
from kdsearch.methods.base import DistillLoss

class Greedy(DistillLoss):
    need = "logits"

    def __init__(self, most: int = 8) -> None:
        super().__init__()
        self.most = most

    def forward(self, student, teacher, target):
        if len(student) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return (student - teacher).square().mean()
"""


@pytest.mark.parametrize(("most", "state"), [(16, "complete"), (8, "complete"), (4, "failed")])
def test_out_of_memory_splits_the_batch_once_then_fails_alone(
    tmp_path: Path, most: int, state: str
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    spec = DistillSpec(method=f"{tmp_path / 'greedy.py'}:Greedy", knobs={"most": most})
    candidate = replace(PLAIN, distill=spec)
    outcome = run_trial(candidate, context(tmp_path), tmp_path / "0")
    assert outcome.state == state
    if state == "failed":
        assert outcome.reason == (
            "out of memory, also in 2 parts of a batch; lower train.batch_size"
        )
    if most == 8:  # the second start is the first one: as if the user had split the batch
        split = replace(candidate, train=replace(TRAIN, accumulate=2))
        assert run_trial(split, context(tmp_path), tmp_path / "1").state == "complete"


@pytest.mark.parametrize("cause", [None, "cause", "context"])
def test_an_interrupt_of_an_import_is_no_failure_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str | None
) -> None:
    def importing(*_: Any, **__: Any) -> list[Epoch]:
        try:
            raise KeyError if cause is None else KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from (error if cause == "cause" else None)
        except KeyError as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(trial_steps, "train", importing)
    if cause is None:
        assert run_trial(PLAIN, context(tmp_path), tmp_path / "0").state == "failed"
        return
    with pytest.raises(KeyboardInterrupt):
        run_trial(PLAIN, context(tmp_path), tmp_path / "0")


def test_the_student_that_ran_out_of_memory_is_freed_before_the_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[weakref.ref[Model]] = []
    train = trial_steps.train

    def once_too_large(model: Model, *given: Any, **settings: Any) -> list[Epoch]:
        assert not any(earlier() for earlier in tries)
        tries.append(weakref.ref(model))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(model, *given, **settings)

    monkeypatch.setattr(trial_steps, "train", once_too_large)
    assert run_trial(PLAIN, context(tmp_path), tmp_path / "0").state == "complete"
    assert len(tries) == 2


def test_a_users_file_that_has_changed_is_another_network_to_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latency, its answers as a teacher and its fine-tuning, though nothing else differs."""
    keys: list[str] = []
    monkeypatch.setattr(LatencyCache, "latency_of", lambda _, key, *__: keys.append(key))
    model, file = tiny_model(), tmp_path / "own.py"
    model.name = f"{file}:Own"
    found = []
    for text in ("one", "other", "one"):
        file.write_text(text)
        latency_of(model, LatencyCache(tmp_path))
        outputs = key_of(model, Feed(DATA.train, CPU), view_seed=0, data_key="toy")
        found.append((keys[-1], outputs, _key(model, TRAIN, DATA, 0)))
    assert found[0] == found[2]
    assert all(one != other for one, other in zip(*found[:2], strict=True))


OWN = """
import torch
from torch import nn
from kdsearch.models.students.base import ConvStudent, conv_norm

class Own(ConvStudent):
    def __init__(self, *, in_channels, num_classes, resolution):
        super().__init__(
            stem=nn.Sequential(conv_norm(in_channels, WIDTH, 3), nn.ReLU()),
            stages=[conv_norm(WIDTH, 8, 3, stride=2)], embedding=8, num_classes=num_classes,
        )

    def features(self, x):
        return super().features(x * SCALE)
"""


@pytest.mark.parametrize(("width", "scale"), [(4, 1.0), (8, -0.5)])
def test_a_student_whose_file_has_changed_starts_its_training_anew(
    tmp_path: Path, width: int, scale: float
) -> None:
    """With other shapes the checkpoint does not fit; with other lines it is of another network."""

    def curve(where: str, width: int, scale: float, pause_at: int | None) -> tuple[float, ...]:
        text = OWN.replace("WIDTH", str(width)).replace("SCALE", str(scale))
        (tmp_path / "own.py").write_text(text)
        shared = replace(context(tmp_path), unfinished=tmp_path / where)
        outcome = run_trial(candidate, shared, tmp_path / where, pause_at=pause_at)
        assert outcome.state == "complete", outcome.reason
        return outcome.curve

    family = f"{tmp_path / 'own.py'}:Own"
    candidate = Candidate(student=StudentSpec(family=family), train=replace(TRAIN, epochs=3))
    curve("changed", 8, 1.0, 2)
    assert len(list((tmp_path / "changed").glob("*.pt"))) == 1
    assert curve("changed", width, scale, None) == curve("new", width, scale, None)


def test_a_trial_records_its_seconds_of_teacher_outputs(tmp_path: Path) -> None:
    shared = context(tmp_path)
    kd = replace(PLAIN, distill=DistillSpec(method="kd"))
    first = run_trial(kd, shared, tmp_path / "0")
    again = run_trial(kd, shared, tmp_path / "1")
    alone = run_trial(PLAIN, shared, tmp_path / "2")
    assert 0 < first.teacher_seconds < first.seconds
    assert again.teacher_seconds < first.teacher_seconds
    assert alone.teacher_seconds == 0


def test_an_interrupted_trial_resumes_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every_seconds", 0.0)
    shared = replace(context(tmp_path), unfinished=tmp_path / "unfinished")
    candidate = replace(PLAIN, train=replace(TRAIN, epochs=4))
    seen: list[int] = []

    def stop(epoch: Epoch, _: int) -> None:
        seen.append(epoch.number)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(candidate, shared, tmp_path / "0", on_epoch=stop)
    again = run_trial(candidate, shared, tmp_path / "1", on_epoch=stop)
    assert seen == [1, 2, 3, 1, 2, 3, 4]  # what was on disk is reported again, the rest is trained
    whole = run_trial(candidate, context(tmp_path), tmp_path / "2")
    assert again.curve == whole.curve
    one, other = (read_weights(tmp_path / name / WEIGHTS) for name in ("1", "2"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert not list((tmp_path / "unfinished").iterdir())


def test_a_trial_that_is_stopped_leaves_its_curve_cost_and_reason_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every_seconds", 0.0)
    shared = replace(context(tmp_path), unfinished=tmp_path / "unfinished")
    candidate = replace(PLAIN, train=replace(TRAIN, epochs=5))
    rungs: list[Rung] = []

    def on_rung(rung: Rung) -> str | None:
        rungs.append(rung)
        return "hopeless" if len(rung.curve) == 2 else None

    outcome = run_trial(candidate, shared, tmp_path / "0", on_rung=on_rung)
    assert (outcome.state, outcome.reason, outcome.val) == ("pruned", "hopeless", None)
    whole = run_trial(candidate, context(tmp_path), tmp_path / "1")
    assert outcome.curve == whole.curve[:2]
    assert outcome.cost is not None
    assert [(rung.curve, rung.epochs, rung.cost) for rung in rungs] == [
        (whole.curve[:n], 5, outcome.cost) for n in (1, 2)
    ]
    assert not (tmp_path / "0").exists()
    assert not list((tmp_path / "unfinished").iterdir())


def test_a_resumed_trial_visits_only_the_rungs_it_had_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule receives the accuracies from before the interruption."""
    monkeypatch.setattr(Checkpoint, "every_seconds", 0.0)
    shared = replace(context(tmp_path), unfinished=tmp_path / "unfinished")
    candidate = replace(PLAIN, train=replace(TRAIN, epochs=5))
    seen: list[tuple[float, ...]] = []

    def interrupt(epoch: Epoch, _: int) -> None:
        if epoch.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(candidate, shared, tmp_path / "0", on_epoch=interrupt)
    run_trial(candidate, shared, tmp_path / "0", on_rung=lambda rung: seen.append(rung.curve))
    whole = run_trial(candidate, context(tmp_path), tmp_path / "1")
    assert seen == [whole.curve[:4]]


def test_a_price_before_the_trial_is_the_trials_own(tmp_path: Path) -> None:
    params = {
        "student.family": "resnet",
        "student.resnet.width": 0.25,
        "student.resnet.depth": 3,
        "method.name": "none",
        "train.epochs": 1,
    }
    outcome = run_trial(Candidate.from_params(params), context(tmp_path), tmp_path / "trial")
    price = StaticCosts(DATA)(params)
    assert price is not None
    assert outcome.cost is not None
    assert (price.flops, price.params) == (outcome.cost.flops, outcome.cost.params)
    assert price.latency_ms is None


def test_an_architecture_is_priced_once_whatever_its_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prices, built = StaticCosts(DATA), []

    def counted(*args: object, **kwargs: object) -> Model:
        built.append(args)
        return build_student(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("kdsearch.deploy.pricing.build_student", counted)
    family = {"student.family": "resnet"}
    found = [prices({**family, "method.name": name}) for name in ("none", "kd")]
    assert found[0] == found[1]
    assert len(built) == 1
    prices({**family, "student.resnet.width": 0.25})
    assert len(built) == 2


def test_what_cannot_be_built_has_no_price_and_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert StaticCosts(DATA)({"student.family": "resnet", "student.resnet.depth": -1}) is None
    assert caplog.messages == []
