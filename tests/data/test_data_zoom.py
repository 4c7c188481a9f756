"""Views with a change of scale: images and masks move alike, the same on any batch and order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdsearch.data import zoom
from kdsearch.data.base import VOID, Augment, ImageSet
from kdsearch.data.views import augmented, moved, view_seeds
from kdsearch.errors import DataError

COUNT, HEIGHT, WIDTH = 40, 24, 40
AUGMENTS = [
    Augment(pad=0, flip=False),
    Augment(pad=3, flip=True),
    Augment(pad=3, flip=True, policy="trivial"),
    Augment(pad=2, flip=True, scale=1.0),
    Augment(pad=0, flip=True, scale=0.5, mix="cutmix"),
    Augment(pad=2, flip=True, scale=1.0, policy="rand", mix="cutmix"),
]


def scenes() -> ImageSet:
    """Return images whose three channels are 40 + 50 * class, and their masks of 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 4, (COUNT, 1, 3, 5), generator=generator).float()
    masks = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH)).byte()[:, 0]
    return ImageSet((40 + 50 * masks)[:, None].expand(-1, 3, -1, -1).contiguous(), masks)


def both(index: torch.Tensor, augment: Augment, view: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    images, device = scenes(), torch.device("cpu")
    seeds = view_seeds(view, seed=5, augment=augment, count=COUNT, device=device)
    shown = augmented(images, index, view, seed=5, augment=augment)
    return shown, moved(images.labels, index, seeds, augment)


@pytest.mark.parametrize("augment", [a for a in AUGMENTS if a.policy == "plain"], ids=str)
def test_the_mask_of_a_view_is_that_of_its_pixels(augment: Augment) -> None:
    shown, masks = both(torch.arange(COUNT), augment)
    void = masks == VOID
    assert not shown[:, 0][void].any()  # black and void are the same pixels
    wanted = torch.where(void, 0, 40 + 50 * (masks % 4).int())
    is_equal = shown[:, 0].int() == wanted
    assert is_equal.all() if not augment.scale else is_equal.float().mean() > 0.8  # blended edges
    near = (shown[:, 0].int() - wanted).abs() <= 25
    assert near.float().mean() > (0.95 if augment.scale else 0.9999)


@pytest.mark.parametrize("augment", AUGMENTS, ids=str)
def test_a_view_depends_neither_on_the_batch_nor_on_its_order(augment: Augment) -> None:
    whole = both(torch.arange(COUNT), augment, view=3)
    index = torch.tensor([17, 2, 39])
    for found, all_of_it in zip(both(index, augment, view=3), whole, strict=True):
        assert torch.equal(found, all_of_it[index])


def test_a_view_without_movement_is_the_stored_image() -> None:
    shown, masks = both(torch.arange(COUNT), Augment(pad=0, flip=False))
    assert torch.equal(shown, scenes().images)
    assert torch.equal(masks, scenes().labels)


def test_a_policy_moves_masks_by_its_warps_alone() -> None:
    plain = both(torch.arange(COUNT), AUGMENTS[1])[1]
    warped = both(torch.arange(COUNT), AUGMENTS[2])[1]
    is_same = (plain == warped).flatten(1).all(1)
    assert 0 < is_same.sum() < COUNT
    assert set(warped.unique().tolist()) <= {0, 1, 2, 3, VOID}


def test_zooms_are_even_and_stay_in_their_range() -> None:
    bits = torch.arange(zoom.LEVELS)
    more = torch.full_like(bits, 1 << 39)
    step, down, right = zoom.drawn(bits, more, size=(HEIGHT, WIDTH), scale=1.0, pad=0)
    zooms = zoom.ONE / step.double().numpy()
    assert zooms[[0, zoom.LEVELS // 2, -1]].tolist() == pytest.approx([0.5, 1, 2], rel=1e-4)
    assert np.diff(np.log(zooms)) == pytest.approx([np.log(4) / 64] * 64, abs=1e-4)
    for side, offset in ((HEIGHT, down), (WIDTH, right)):
        low, high = (side * (zoom.ONE - step)).clamp(max=0), (side * (zoom.ONE - step)).clamp(min=0)
        assert ((low <= offset) & (offset <= high)).all()


def test_enlarging_twice_shows_each_pixel_four_times() -> None:
    masks = torch.randint(0, 4, (1, 1, 6, 8), dtype=torch.uint8)
    moves = torch.tensor([[zoom.ONE // 2], [0], [0]])
    rows = torch.zeros(1, dtype=torch.int64)
    for mirrored in (0, 1):
        found = zoom.shown(masks, rows, moves, torch.tensor([mirrored]), is_smooth=False)
        doubled = masks[:, :, :3, :4].repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert torch.equal(found, doubled.flip(3) if mirrored else doubled)


def test_reducing_by_half_leaves_three_quarters_empty() -> None:
    images = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    moves = torch.tensor([[2 * zoom.ONE], [-4 * zoom.ONE], [-8 * zoom.ONE]])
    found = zoom.shown(images, torch.zeros(1, dtype=torch.int64), moves, torch.zeros(1))
    wanted = torch.zeros(8, 8, dtype=torch.uint8)
    wanted[2:6, 4:] = 200
    assert torch.equal(found[0, 0], wanted)


def test_mixup_of_masks_is_refused() -> None:
    with pytest.raises(DataError, match="cutmix"):
        both(torch.arange(4), Augment(pad=0, flip=True, mix="mixup"))
