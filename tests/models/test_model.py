"""A model returns the features that are needed; a frozen one returns gradients as well."""

from __future__ import annotations

import torch
from toy_data import images, tiny_model

from kdsearch.models.model import Preprocess

IMAGES = images(6).images
GRADIENT = frozenset({"gradient"})


def test_gradient_is_that_of_the_largest_logits_in_the_deepest_stage() -> None:
    teacher = tiny_model().freeze()
    with torch.no_grad():
        outputs = teacher.features(IMAGES, need=GRADIENT)
    # Behind the deepest stage [B, 16, 2, 2] there is a Flatten and the Linear alone.
    weight, bias = teacher.head
    deepest = outputs.stages[-1]
    torch.testing.assert_close(outputs.logits, deepest.flatten(1) @ weight.T + bias)
    by_hand = weight[outputs.logits.argmax(1)].view_as(deepest)
    torch.testing.assert_close(outputs.gradient, by_hand)


def test_outputs_with_a_gradient_are_detached() -> None:
    outputs = tiny_model().features(IMAGES, need=GRADIENT)
    tensors = [outputs.logits, outputs.embedding, *outputs.stages, outputs.gradient]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_without_one_the_graph_reaches_the_weights() -> None:
    model = tiny_model()
    outputs = model.features(IMAGES)
    assert outputs.gradient is None
    outputs.stages[-1].sum().backward()
    assert all(p.grad is not None for p in model.network.module[0].parameters())


def test_example_has_the_needed_parts_in_evaluation_mode() -> None:
    model = tiny_model().train()
    outputs = model.example(IMAGES, need=GRADIENT)
    assert model.training
    assert outputs.gradient is not None
    assert outputs.logits.shape == (2, 3)
    torch.testing.assert_close(outputs.logits, model.eval()(IMAGES[:2]))


def test_a_square_is_known_by_its_side_however_it_is_given() -> None:
    both = [Preprocess(mean=(0.5,), std=(0.5,), resolution=r, channels=1) for r in (8, (8, 8))]
    assert both[0] == both[1]
    assert repr(both[0]) == repr(both[1])
    assert Preprocess(mean=(0.5,), std=(0.5,), resolution=(8, 12), channels=1).size == (8, 12)
