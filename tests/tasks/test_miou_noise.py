"""Noise of mean IoU and of the IoU a class: a bootstrap over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdsearch.data.base import VOID
from kdsearch.study.chance import by_class
from kdsearch.tasks._miou import MIOU, PIXEL_ACCURACY, MeanIoU
from kdsearch.tasks.base import ACCURACY, ClassScores, Details

CPU = torch.device("cpu")
CLASSES = 3


def scenes(count: int, *, size: int = 6, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predictions and masks; each image has its own share of wrong pixels."""
    generator = torch.Generator().manual_seed(count)
    masks = torch.randint(0, CLASSES, (count, size, size), generator=generator)
    is_wrong = torch.rand(masks.shape, generator=generator) < noise * 2 * torch.rand(
        count, 1, 1, generator=generator
    )
    found = torch.where(is_wrong, (masks + 1) % CLASSES, masks)
    return found.byte(), masks.byte()


def details_of(found: torch.Tensor, masks: torch.Tensor, batch: int = 64) -> Details:
    meter = MeanIoU(CPU, CLASSES)
    meter.keep_images(len(masks))
    for part in torch.arange(len(masks)).split(batch):
        meter.add(found[part], masks[part])
    return meter.details()


def parts(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return right, labelled and predicted pixels [3, K] of one image."""
    known = masks != VOID
    classes = np.arange(CLASSES)[:, None, None]
    hit, mine = (masks == classes), (found == classes) & known
    return np.stack([(hit & mine).sum((1, 2)), hit.sum((1, 2)), mine.sum((1, 2))])


def by_hand(found: torch.Tensor, masks: torch.Tensor, repeats: int) -> tuple[float, np.ndarray]:
    """Return the standard errors of mean IoU and of IoU a class."""
    each = np.stack([parts(f, m) for f, m in zip(found.numpy(), masks.numpy(), strict=True)])
    random, values = np.random.default_rng(5), []
    for _ in range(repeats):
        right, labelled, mine = each[random.integers(len(each), size=len(each))].sum(0)
        values.append(right / (labelled + mine - right))
    return np.mean(values, axis=1).std(), np.std(values, axis=0)


def test_noise_equals_that_of_a_bootstrap_by_hand() -> None:
    found, masks = scenes(40)
    details = details_of(found, masks)
    whole, classes = by_hand(found, masks, 4000)
    error = details.with_noise(MIOU).standard_error(details.metrics["miou"], 40)
    assert error == pytest.approx(whole, rel=0.08)
    assert details.scores is not None
    assert details.scores.errors == pytest.approx(classes, rel=0.1)


def test_noise_predicts_how_a_metric_spreads_over_other_images() -> None:
    found, masks = scenes(2000)
    values = [details_of(found[i : i + 50], masks[i : i + 50]) for i in range(0, 2000, 50)]
    spread = np.std([each.metrics["miou"] for each in values])
    stated = [each.with_noise(MIOU).standard_error(0.7, 50) for each in values]
    assert np.mean(stated) == pytest.approx(spread, rel=0.3)


def test_images_of_one_pixel_have_the_noise_of_a_right_or_wrong_answer() -> None:
    masks = torch.zeros(400, 1, 1, dtype=torch.uint8)
    found = (torch.arange(400) % 4 == 0).byte().view(400, 1, 1)
    metric = details_of(found, masks).with_noise(PIXEL_ACCURACY)
    assert metric.image_variance == pytest.approx(0.25 * 0.75, rel=0.1)
    assert metric.standard_error(0.75, 400) == pytest.approx(
        ACCURACY.standard_error(0.75, 400), rel=0.05
    )


def test_noise_falls_with_images_and_equal_images_keep_a_little() -> None:
    found, masks = scenes(30)
    once = details_of(found, masks).with_noise(MIOU)
    more = details_of(found.repeat(4, 1, 1), masks.repeat(4, 1, 1)).with_noise(MIOU)
    ratio = once.standard_error(0.7, 30) / more.standard_error(0.7, 120)
    assert ratio == pytest.approx(2, rel=0.1)
    same = details_of(found[:1].repeat(9, 1, 1), masks[:1].repeat(9, 1, 1)).with_noise(MIOU)
    assert same.standard_error(0.7, 100) == pytest.approx(0.001)


def test_noise_is_the_same_in_any_batches_and_void_images_do_no_harm() -> None:
    found, masks = scenes(21)
    masks[::5] = VOID
    assert details_of(found, masks, 4) == details_of(found, masks, 21)
    assert details_of(found, masks).image_variances["miou"] > 0


def test_a_class_without_pixels_has_neither_score_nor_noise() -> None:
    found, masks = scenes(10)
    masks[masks == 2] = VOID
    scores = details_of(found, masks).scores
    assert scores is not None
    assert scores.values[2] is None
    assert scores.errors[2] is None
    assert scores.shares[2] == 0
    assert sum(scores.shares) == pytest.approx(1)


def test_without_images_kept_or_with_one_alone_no_noise_is_stated() -> None:
    found, masks = scenes(5)
    meter = MeanIoU(CPU, CLASSES)
    meter.add(found, masks)
    assert meter.details().with_noise(MIOU) == MIOU
    assert meter.details().metrics == details_of(found, masks).metrics
    assert details_of(found[:1], masks[:1]).with_noise(MIOU) == MIOU


def test_a_reset_forgets_the_images_that_were_kept() -> None:
    found, masks = scenes(12)
    meter = MeanIoU(CPU, CLASSES)
    meter.keep_images(12)
    for _ in range(2):
        meter.reset()
        meter.add(found, masks)
    assert meter.details() == details_of(found, masks)


def test_the_sentence_on_classes_states_the_lowest_scores_with_their_noise() -> None:
    scores = ClassScores(
        label="IoU",
        values=(0.9, 0.412, None),
        errors=(None, 0.031, None),
        shares=(0.5, 0.5, 0.0),
    )
    assert by_class(Details(scores=scores), ["road", "pole", "sky"], "test") == (
        "By class on test: lowest IoU: pole (41.2 \u00b1 3.1 %), road (90.0 %); "
        "1 of 3 classes are not there."
    )
