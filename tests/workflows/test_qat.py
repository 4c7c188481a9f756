"""Layers round as the int8 file will, let gradients through, and are themselves again after."""

from __future__ import annotations

import torch
from torch import nn
from toy_data import CPU, tiny_model, toy_data

from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.spec import Budget, Candidate
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.validation import evaluate
from kdsearch.trials.trial import TrialContext
from kdsearch.workflows.qat import fake_quantised, fine_tune

DATA = toy_data()
CANDIDATE = {
    "student.family": "resnet",
    "method.name": "none",
    "train.lr": 0.5,
    "train.batch_size": 8,
}


def inputs() -> list[torch.Tensor]:
    shown = tiny_model().preprocess
    return [shown(DATA.train.at(slice(start, start + 16))) for start in (0, 16)]


def test_a_weight_keeps_its_largest_of_each_channel_and_255_levels() -> None:
    layer = nn.Linear(200, 2, bias=False)
    with torch.no_grad():
        layer.weight[1] *= 100

    with fake_quantised(nn.Sequential(layer), [torch.randn(4, 200)]):
        weight = layer.weight.detach()
        original = layer.parametrizations.weight.original.detach()  # type: ignore[union-attr]

    most = original.abs().amax(1)
    torch.testing.assert_close(weight.abs().amax(1), most)
    for row, largest in zip(weight, most, strict=True):
        steps = row / (largest / 127)
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    error = (weight - original).abs().amax(1)
    assert (error <= most / 254 * 1.001).all()
    assert (error > 0).all()


def test_what_a_layer_reads_is_rounded_between_the_ends_it_was_shown() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.tensor([[-1.0], [0.0], [0.3], [1.9], [9.0]], requires_grad=True)

    with fake_quantised(nn.Sequential(layer), [torch.tensor([[-0.55], [2.0]])]):
        y = nn.Sequential(layer)(x)
        y.sum().backward()

    # 256 levels of .01 from -.55 to 2: 0.3 is one of them, and what lies outside is cut off.
    torch.testing.assert_close(y.detach(), torch.tensor([[-0.55], [0.0], [0.3], [1.9], [2.0]]))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_the_network_is_itself_again() -> None:
    network = tiny_model().network
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images = inputs()[0]
    before = network.eval()(images)

    with fake_quantised(network, inputs()):
        during = network(images)

    assert not torch.equal(during, before)
    assert torch.equal(network(images), before)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_training_for_8_bits_leaves_the_student_and_learns(tmp_path) -> None:
    teacher = tiny_model(seed=1).freeze()
    context = TrialContext(
        data=DATA,
        teachers=(teacher,),
        outputs=(TeacherOutputs(teacher, Feed(DATA.train, CPU), view_seed=0),),
        budget=Budget(),
        latencies=LatencyCache(tmp_path),
        device_lock=DeviceLock(),
        seed=0,
        device=CPU,
    )
    student = tiny_model(seed=2).freeze()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    candidate = Candidate.from_params(CANDIDATE)

    tuned = fine_tune(student, candidate, context, inputs())

    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert tuned.state_dict().keys() == state.keys()
    with fake_quantised(tuned.network, inputs()):
        in_8_bits = evaluate(tuned, DATA.val, context.task, CPU)
    with fake_quantised(student.network, inputs()):
        untuned = evaluate(student, DATA.val, context.task, CPU)
    assert in_8_bits > 0.9 > untuned
