"""Views of four images: pixels and boxes move alike, the same on any batch, order and feed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdsearch.data import mosaic, zoom
from kdsearch.data.base import Augment, ImageSet
from kdsearch.data.boxes import PADDING
from kdsearch.data.feed import Feed
from kdsearch.data.moves import boxes_moved
from kdsearch.data.views import augmented, moved, partners, shown, tiles, view_seeds
from kdsearch.errors import DataError, SpecError
from kdsearch.tasks.classification import Classification
from kdsearch.train_spec import TrainSpec

CPU = torch.device("cpu")
COUNT, HEIGHT, WIDTH = 24, 48, 64
SIZE = (HEIGHT, WIDTH)
MOSAIC = Augment(pad=4, flip=True, scale=0.4, mosaic=1.0)
AUGMENTS = [MOSAIC, replace(MOSAIC, mosaic=0.5), Augment(pad=0, flip=False, mosaic=1.0)]


def scenes() -> ImageSet:
    """Return images of one grey value each, with one white rectangle, and its box."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(COUNT, 1, 2, generator=generator) * 0.5
    codes = (torch.arange(COUNT) % 3).float()[:, None, None]
    boxes = torch.cat([low, low + 0.4, codes], dim=2)
    images = (20 + 4 * torch.arange(COUNT)).byte()[:, None, None, None].repeat(1, 1, *SIZE)
    images[rasterised(boxes)[:, :1]] = 255
    return ImageSet(images, boxes)


def rasterised(boxes: Tensor) -> Tensor:
    """Return bool [B, M, H, W]: the pixels whose centres lie in each box."""
    y, x = ((torch.arange(side) + 0.5) / side for side in SIZE)
    across = (x > boxes[..., :1]) & (x < boxes[..., 2:3])
    down = (y > boxes[..., 1:2]) & (y < boxes[..., 3:4])
    return down[..., :, None] & across[..., None, :]


def both(index: Tensor, augment: Augment, view: int = 3) -> tuple[Tensor, Tensor]:
    data = scenes()
    seeds = view_seeds(view, seed=1, augment=augment, count=COUNT, device=CPU)
    pixels = augmented(data, index, view, seed=1, augment=augment)
    return pixels[:, 0], boxes_moved(data.labels, index, seeds, augment, SIZE)


@pytest.mark.parametrize("augment", AUGMENTS, ids=str)
def test_boxes_of_a_mosaic_lie_where_its_pixels_show_the_objects(augment: Augment) -> None:
    pixels, boxes = both(torch.arange(COUNT), augment)
    assert boxes.shape == (COUNT, 4, 5)
    wanted = rasterised(boxes).any(dim=1)
    inner, outer = (wanted & (pixels > 180)).sum(), (wanted | (pixels > 180)).sum()
    assert inner / outer > 0.93
    assert ((boxes[..., 4] != PADDING).sum(dim=1) > 1).any()


def test_a_mosaic_of_every_view_shows_no_outside_and_up_to_four_images() -> None:
    """Outside is black, and no image is: at 0.5 each the window lies within the four."""
    augment = Augment(pad=8, flip=True, scale=0.4, mosaic=1.0)
    pixels, _ = both(torch.arange(COUNT), augment)
    assert pixels.min() > 0
    data = scenes()
    plain = ImageSet(
        data.images.where(data.images < 255, data.images.amin((1, 2, 3), True)), data.labels
    )
    greys = augmented(plain, torch.arange(COUNT), 3, seed=1, augment=augment)
    counts = {len(set(view.flatten().tolist()) & set(range(20, 200, 4))) for view in greys}
    assert max(counts) >= 4
    sizes = (
        tiles(
            torch.arange(COUNT),
            view_seeds(3, seed=1, augment=augment, count=COUNT, device=CPU),
            augment,
            SIZE,
        )[1][:, 0].double()
        / zoom.ONE
    )
    assert 1 / 1.4 - 1e-4 <= sizes.min() < 1 < sizes.max() <= 2


def test_its_four_images_meet_without_overlap_or_gap() -> None:
    """Each pixel is that of the one image whose tile it lies in."""
    white = torch.full((COUNT, 1, *SIZE), 255, dtype=torch.uint8)
    index = torch.arange(COUNT)
    seeds = view_seeds(2, seed=0, augment=MOSAIC, count=COUNT, device=CPU)
    samples, moves, mirrored = tiles(index, seeds, MOSAIC, SIZE)
    parts = [
        zoom.shown(white, own, move, mirrored) for own, move in zip(samples, moves, strict=True)
    ]
    assert (torch.stack(parts).int().sum(dim=0) == 255).all()


@pytest.mark.parametrize("augment", AUGMENTS, ids=str)
def test_a_mosaic_depends_neither_on_the_batch_nor_on_its_order(augment: Augment) -> None:
    whole = both(torch.arange(COUNT), augment)
    index = torch.tensor([17, 2, 23, 2])
    for found, all_of_it in zip(both(index, augment), whole, strict=True):
        assert torch.equal(found, all_of_it[index])
    other, _ = both(torch.arange(COUNT), augment, view=4)
    assert not torch.equal(other, whole[0])


def test_images_that_are_read_ahead_give_the_same_mosaics() -> None:
    data, order = scenes(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    seeds = view_seeds(3, seed=1, augment=MOSAIC, count=COUNT, device=CPU)
    whole, _ = both(torch.arange(COUNT), MOSAIC)

    def also(index: Tensor) -> Tensor:
        return partners(index, 3, seed=1, count=COUNT, each=MOSAIC.partners)

    for index, images in Feed(data, CPU, max_bytes=0).batches(order.split(5), also=also):
        assert torch.equal(shown(images, index, seeds, MOSAIC)[:, 0], whole[index])


@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_what_is_no_mosaic_is_the_plain_view_bit_for_bit(scale: float) -> None:
    index = torch.arange(COUNT)
    some = Augment(pad=4, flip=True, scale=scale, mosaic=0.5)
    pixels, boxes = both(index, some)
    plain, own = both(index, replace(some, mosaic=0.0))
    seeds = view_seeds(3, seed=1, augment=some, count=COUNT, device=CPU)
    moves = tiles(index, seeds, some, SIZE)[1]
    is_plain = moves[1, 1] == 8 * HEIGHT * zoom.ONE
    assert 0 < int(is_plain.sum()) < COUNT
    assert torch.equal(pixels[is_plain], plain[is_plain])
    torch.testing.assert_close(boxes[is_plain, :1], own[is_plain])
    assert (boxes[is_plain, 1:] == torch.tensor([0.0, 0, 0, 0, PADDING])).all()
    assert (pixels[~is_plain] != plain[~is_plain]).flatten(1).any(dim=1).all()


def test_the_share_of_mosaics_is_the_one_given() -> None:
    bits = torch.randint(0, 2**62, (20_000,), generator=torch.Generator().manual_seed(0))
    own = torch.zeros(3, len(bits), dtype=torch.int64)
    for share in (0.0, 0.25, 1.0):
        moves = mosaic.drawn(own, bits, bits, size=SIZE, scale=0.0, share=share)
        assert float((moves[0, 0] > 0).double().mean()) == pytest.approx(share, abs=0.015)


def test_each_image_is_as_often_in_each_place() -> None:
    found = partners(torch.arange(COUNT), 1, seed=0, count=COUNT, each=3).view(3, COUNT)
    for row in found:
        assert sorted(row.tolist()) == list(range(COUNT))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], partners(torch.arange(COUNT), 1, seed=0, count=COUNT))


def test_an_unlabelled_image_makes_the_views_that_show_it_unlabelled_and_no_others() -> None:
    data, index = scenes(), torch.arange(COUNT)
    labels = data.labels.clone()
    labels[COUNT // 2 :] = float("nan")
    seeds = view_seeds(3, seed=1, augment=AUGMENTS[1], count=COUNT, device=CPU)
    samples, moves, _ = tiles(index, seeds, AUGMENTS[1], SIZE)
    unknown = boxes_moved(labels, index, seeds, AUGMENTS[1], SIZE).isnan().flatten(1).any(dim=1)
    step, down, right = moves.unbind(1)
    is_seen = (down < HEIGHT * zoom.ONE) & (-down < HEIGHT * step)
    is_seen &= (right < WIDTH * zoom.ONE) & (-right < WIDTH * step)
    assert torch.equal(unknown, (is_seen & (samples >= COUNT // 2)).any(dim=0))
    assert 0 < int(unknown.sum()) < COUNT


def test_boxes_of_a_teacher_move_with_their_scores() -> None:
    data, index = scenes(), torch.arange(COUNT)
    seeds = view_seeds(3, seed=1, augment=MOSAIC, count=COUNT, device=CPU)
    scores = torch.linspace(0.1, 0.9, COUNT)[:, None, None]
    scored = torch.cat([data.labels[..., :4], scores, data.labels[..., 4:]], dim=2)
    found = boxes_moved(scored, index, seeds, MOSAIC, SIZE)
    true = boxes_moved(data.labels, index, seeds, MOSAIC, SIZE)
    assert torch.equal(found[..., [0, 1, 2, 3, 5]], true)
    samples = tiles(index, seeds, MOSAIC, SIZE)[0]
    assert torch.equal(found[..., 4], scores[samples.T, 0, 0])


def test_what_cannot_follow_a_mosaic_is_refused() -> None:
    with pytest.raises(DataError, match="it excludes mix and resized crops"):
        Augment(pad=0, flip=False, mosaic=0.5, mix="cutmix")
    with pytest.raises(DataError, match=r"1\.5 is not a share from 0 to 1"):
        Augment(pad=0, flip=False, mosaic=1.5)
    with pytest.raises(SpecError, match=r"train\.mosaic: 2\.0 .*mosaic in \[0, 1\]"):
        TrainSpec(mosaic=2.0)
    index = torch.arange(COUNT)
    seeds = view_seeds(1, seed=0, augment=MOSAIC, count=COUNT, device=CPU)
    with pytest.raises(DataError, match="it moves boxes, and no masks"):
        moved(torch.zeros(COUNT, *SIZE, dtype=torch.uint8), index, seeds, MOSAIC)
    with pytest.raises(DataError, match="a mosaic shows the boxes of four images"):
        Classification(("a", "b")).target(index, index, seeds, MOSAIC, SIZE)
