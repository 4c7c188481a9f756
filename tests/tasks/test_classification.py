from __future__ import annotations

import math

import pytest
import torch

from kdsearch.errors import DataError
from kdsearch.tasks.classification import evaluate, task_loss


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    loss = task_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    assert loss.item() == pytest.approx(math.log(7))


def test_label_smoothing_moves_mass_to_every_class():
    # by hand: log-softmax of (log 3, 0) is (log 3/4, log 1/4); target 0 smoothed by 0.2: (.9, .1)
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    by_hand = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    loss = task_loss(logits, torch.tensor([0]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(by_hand)


def test_accuracy_weighs_images_not_batches():
    def one_hot(classes):
        return torch.eye(4)[classes]

    batches = [
        (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])),  # 3 of 3
        (torch.tensor([3]), torch.tensor([0])),  # 0 of 1
    ]
    assert evaluate(one_hot, batches) == 0.75


def test_evaluation_records_no_gradient():
    weight = torch.eye(2, requires_grad=True)
    seen = []

    def predict(images):
        seen.append(images @ weight)
        return seen[-1]

    evaluate(predict, [(torch.eye(2), torch.tensor([0, 1]))])
    assert not seen[0].requires_grad


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        evaluate(torch.nn.Identity(), [])
