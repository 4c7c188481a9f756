from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.errors import DataError
from kdsearch.models.features import Outputs
from kdsearch.tasks.classification import ClassCounts, Classification
from kdsearch.training.validation import measured

CPU = torch.device("cpu")


def task_loss(logits: torch.Tensor, target: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return Classification().loss(Outputs(logits, logits), target, smoothing=smoothing)


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    loss = task_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    assert loss.item() == pytest.approx(math.log(7))


def test_label_smoothing_moves_mass_to_every_class():
    # by hand: log-softmax of (log 3, 0) is (log 3/4, log 1/4); target 0 smoothed by 0.2: (.9, .1)
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    by_hand = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    loss = task_loss(logits, torch.tensor([0]), 0.2)
    assert loss.item() == pytest.approx(by_hand)


rows = st.lists(st.integers(0, 4), min_size=1, max_size=9)


def logits_for(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


@given(classes=rows, smoothing=st.sampled_from([0.0, 0.1]))
def test_loss_of_labelled_images_is_torchs(classes, smoothing):
    logits, target = logits_for(len(classes)), torch.tensor(classes)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    for given_as in (target, F.one_hot(target, 5).double()):
        loss = task_loss(logits, given_as, smoothing)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))
        expected = F.cross_entropy(logits, target, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unlabelled_images_count_for_nothing(smoothing):
    logits = logits_for(4)
    expected = F.cross_entropy(
        logits[[0, 2]], torch.tensor([4, 1]), label_smoothing=smoothing
    ).detach()
    target = torch.tensor([4, -1, 1, -1])
    shares = F.one_hot(target.clamp(min=0), 5).double() * (target >= 0)[:, None]
    for given_as in (target, shares):
        loss = task_loss(logits, given_as, smoothing)
        torch.testing.assert_close(loss, expected)
        slope = gradient(loss, logits)
        assert slope[[1, 3]].count_nonzero() == 0
        assert slope[[0, 2]].count_nonzero() == 10


def test_mixed_image_with_an_unlabelled_part_weighs_its_labelled_share():
    # by hand: log-softmax of (log 3, 0) is (log 3/4, log 1/4). Row 0 is half unlabelled, half of
    # class 0, row 1 a quarter of class 0 and the rest of class 1: mass 1.5, (.75, .75) of it.
    logits = torch.tensor([[math.log(3), 0.0]] * 2, dtype=torch.float64)
    shares = torch.tensor([[0.5, 0.0], [0.25, 0.75]], dtype=torch.float64)
    by_hand = -(0.75 * math.log(3 / 4) + 0.75 * math.log(1 / 4)) / 1.5
    assert task_loss(logits, shares).item() == pytest.approx(by_hand)


def test_smoothing_moves_a_part_of_the_labelled_share_alone():
    # (.5, 0) and (1, 0) smoothed by .2 are (.45, .05) and (.9, .1): mass 1.5, (1.35, .15) of it.
    logits = torch.tensor([[math.log(3), 0.0]] * 2, dtype=torch.float64)
    shares = torch.tensor([[0.5, 0.0], [1.0, 0.0]], dtype=torch.float64)
    by_hand = -(1.35 * math.log(3 / 4) + 0.15 * math.log(1 / 4)) / 1.5
    assert task_loss(logits, shares, 0.2).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("target", [torch.full((3,), -1), torch.zeros(3, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_label_at_all_is_no_loss_and_no_gradient(target, smoothing):
    logits = logits_for(3)
    loss = task_loss(logits, target, smoothing)
    assert loss.item() == 0
    assert gradient(loss, logits).count_nonzero() == 0


def test_accuracy_weighs_images_not_batches():
    def one_hot(classes):
        return torch.eye(4)[classes]

    batches = [
        (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])),  # 3 of 3
        (torch.tensor([3]), torch.tensor([0])),  # 0 of 1
    ]
    assert measured(one_hot, batches, ClassCounts(4, "accuracy", CPU)) == 0.75


def test_evaluation_records_no_gradient():
    weight = torch.eye(2, requires_grad=True)
    seen = []

    def predict(images):
        seen.append(images @ weight)
        return seen[-1]

    measured(predict, [(torch.eye(2), torch.tensor([0, 1]))], ClassCounts(2, "accuracy", CPU))
    assert not seen[0].requires_grad


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        measured(torch.nn.Identity(), [], ClassCounts(2, "accuracy", CPU))
