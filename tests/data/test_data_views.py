from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.data import views
from kdsearch.data.base import MIXES, POLICIES, Augment, ImageSet
from kdsearch.data.statistics import channel_statistics
from kdsearch.data.views import (
    ViewSeeds,
    counter_hash,
    partners,
    shown,
    to_input,
    view_seeds,
)
from kdsearch.errors import DataError
from kdsearch.tasks.classification import Classification

MASK = (1 << 64) - 1
CPU = torch.device("cpu")


def pixels(count: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def image_set(images: torch.Tensor) -> ImageSet:
    return ImageSet(images, torch.full((len(images),), -1, device=images.device))


def augmented(images: torch.Tensor, index: torch.Tensor, view: int, **how) -> torch.Tensor:
    return views.augmented(image_set(images), index, view, **how)


def crop_reference(image: torch.Tensor, pad: int, down: int, right: int, flip: bool):
    size = image.shape[1]
    padded = torch.zeros(image.shape[0], size + 2 * pad, size + 2 * pad, dtype=torch.uint8)
    padded[:, pad : pad + size, pad : pad + size] = image
    crop = padded[:, down : down + size, right : right + size]
    return crop.flip(2) if flip else crop


def all_crops(image: torch.Tensor, pad: int) -> dict[bytes, tuple[int, int, bool]]:
    offsets = range(2 * pad + 1)
    return {
        crop_reference(image, pad, down, right, flip).numpy().tobytes(): (down, right, flip)
        for down in offsets
        for right in offsets
        for flip in (False, True)
    }


def test_hash_equals_splitmix64_finaliser_in_plain_integers():
    start = int.from_bytes(blake2b(repr((3, 7)).encode(), digest_size=8).digest(), "little")
    expected = []
    for index in (0, 1, 2, 49_999, 2**40):
        z = (index * 0x9E3779B97F4A7C15 + start) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        expected.append((z ^ (z >> 31)) & (MASK >> 1))
    assert counter_hash(torch.tensor([0, 1, 2, 49_999, 2**40]), 3, 7).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(
    pad=st.integers(0, 5),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
    size=st.integers(1, 9),
    view=st.integers(0, 1000),
    seed=st.integers(-5, 2**63),
)
def test_view_is_a_crop_of_the_zero_padded_image(pad, flip, channels, size, view, seed):
    images = pixels(6, channels, size)
    out = augmented(images, torch.arange(6), view, seed=seed, augment=Augment(pad=pad, flip=flip))
    for image, seen in zip(images, out, strict=True):
        found = [
            mirrored
            for mirrored in (False, True)[: 1 + flip]
            for down in range(2 * pad + 1)
            for right in range(2 * pad + 1)
            if torch.equal(crop_reference(image, pad, down, right, mirrored), seen)
        ]
        assert found


def test_view_ignores_batch_size_and_order():
    images, augment = pixels(50, 3, 8), Augment(pad=2, flip=True)
    whole = augmented(images, torch.arange(50), 4, seed=1, augment=augment)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    parts = [augmented(images, part, 4, seed=1, augment=augment) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])


def test_view_repeats_an_index_that_is_repeated():
    images, augment = pixels(5, 1, 8), Augment(pad=2, flip=True)
    out = augmented(images, torch.tensor([3, 3]), 9, seed=0, augment=augment)
    assert torch.equal(out[0], out[1])


def test_view_without_pad_and_flip_is_the_image():
    images = pixels(9, 3, 5)
    index = torch.tensor([8, 0, 3])
    out = augmented(images, index, 5, seed=2, augment=Augment(pad=0, flip=False))
    assert torch.equal(out, images[index])


def test_views_are_uniform_over_crops_and_mirrors():
    # Every crop of this image differs, so each view names its parameters. 1,800 samples over
    # 5 x 5 x 2 = 50 views: 36 expected, chi-square of 49 degrees under 85.4 with p = 0.999.
    image = pixels(1, 1, 8)[0]
    known = all_crops(image, 2)
    assert len(known) == 50
    images = image.expand(1800, 1, 8, 8).contiguous()
    out = augmented(images, torch.arange(1800), 0, seed=0, augment=Augment(pad=2, flip=True))
    counts = dict.fromkeys(known.values(), 0)
    for seen in out:
        counts[known[seen.numpy().tobytes()]] += 1
    assert sum((n - 36) ** 2 / 36 for n in counts.values()) < 85.4


@pytest.mark.parametrize(("seed", "view"), [(0, 1), (1, 0)])
def test_another_view_or_seed_changes_most_samples(seed, view):
    # Two independent draws of 50 views agree once in 50 samples.
    images, augment = pixels(200, 1, 8), Augment(pad=2, flip=True)
    index = torch.arange(200)
    first = augmented(images, index, 0, seed=0, augment=augment)
    other = augmented(images, index, view, seed=seed, augment=augment)
    assert 0 < (first == other).flatten(1).all(1).sum() < 20


def recipes() -> list[Augment]:
    return [Augment(pad=2, flip=True, policy=p, mix=m) for p in POLICIES for m in MIXES]


def shares_of(labels, index, view, augment, *, seed=1, num_classes=4, size=8):
    seeds = view_seeds(view, seed=seed, augment=augment, count=len(labels), device=labels.device)
    return Classification(range(num_classes)).target(labels, index, seeds, augment, (size, size))


@pytest.mark.parametrize("augment", recipes(), ids=str)
def test_any_view_and_its_targets_ignore_batch_size_and_order(augment):
    images, labels = pixels(50, 3, 8), torch.arange(50) % 5 - 1
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    whole = augmented(images, torch.arange(50), 4, seed=1, augment=augment)
    parts = [augmented(images, part, 4, seed=1, augment=augment) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    shares = shares_of(labels, torch.arange(50), 4, augment)
    parts = [shares_of(labels, part, 4, augment) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), shares[order])


@pytest.mark.parametrize("size", [8, 65])  # both kinds of crop
@pytest.mark.parametrize("augment", recipes(), ids=str)
def test_a_view_is_of_the_sample_wherever_its_image_lies(augment, size):
    images, index = pixels(20, 3, size), torch.tensor([3, 19, 3, 0])
    rows = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:20]
    among_others = 255 - torch.zeros(30, 3, size, size, dtype=torch.uint8)
    among_others[rows] = images
    scattered = ImageSet(among_others, torch.zeros(20).long(), rows)
    seen = views.augmented(scattered, index, 4, seed=1, augment=augment)
    assert torch.equal(seen, augmented(images, index, 4, seed=1, augment=augment))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", recipes(), ids=str)
def test_view_and_targets_are_bit_equal_on_cuda(augment):
    images, index = pixels(300, 3, 32), torch.arange(300)
    here = augmented(images, index, 3, seed=5, augment=augment)
    there = augmented(images.cuda(), index.cuda(), 3, seed=5, augment=augment)
    assert torch.equal(here, there.cpu())
    labels = index % 5 - 1
    mine = shares_of(labels, index, 3, augment, size=32)
    theirs = shares_of(labels.cuda(), index.cuda(), 3, augment, size=32)
    assert torch.equal(mine, theirs.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", recipes(), ids=str)
def test_view_never_waits_for_the_gpu(augment):
    images, index = pixels(64, 3, 32).cuda(), torch.arange(64).cuda()
    labels = index % 4
    for view, mode in enumerate(("default", "error")):  # once to fill the tables
        torch.cuda.set_sync_debug_mode(mode)
        try:
            augmented(images, index, view, seed=1, augment=augment)
            shares_of(labels, index, view, augment, size=32)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("augment", recipes(), ids=str)
def test_streams_may_begin_at_tensors_that_the_next_view_overwrites(augment):
    images, index = pixels(40, 3, 8), torch.arange(40)
    whole = image_set(images)
    both = [view_seeds(v, seed=1, augment=augment, count=40, device=CPU) for v in (2, 3)]
    starts = torch.tensor(both[0].starts)
    held = ViewSeeds(starts.unbind(), None if augment.mix == "none" else torch.arange(40)[None])
    for view, seeds in zip((2, 3), both, strict=True):
        starts.copy_(torch.tensor(seeds.starts))
        if held.partners is not None:
            held.partners.copy_(seeds.partners)
        expected = augmented(images, index, view, seed=1, augment=augment)
        assert torch.equal(shown(whole, index, held, augment), expected)
        found = Classification(range(4)).target(index % 4, index, held, augment, (8, 8))
        assert torch.equal(found, shares_of(index % 4, index, view, augment))


@given(count=st.integers(1, 400), view=st.integers(0, 10**6), seed=st.integers(0, 2**63))
def test_partners_are_a_permutation(count, view, seed):
    found = partners(torch.arange(count), view, seed=seed, count=count)
    assert sorted(found.tolist()) == list(range(count))


def test_partners_are_uniform_over_views_and_seeds():
    # 12,000 views of 12 samples: 1,000 expected of each of 144 pairs; each sample's chi-square of
    # 11 degrees is under 37 with p = 0.9999; so are the 11 distances between two partners.
    for keys in ([(v, 0) for v in range(12_000)], [(0, s) for s in range(12_000)]):
        found = torch.stack([partners(torch.arange(12), v, seed=s, count=12) for v, s in keys])
        counts = torch.stack([torch.bincount(own, minlength=12) for own in found.T])
        assert ((counts - 1000) ** 2 / 1000).sum(1).max() < 37
        apart = torch.bincount((found[:, 1] - found[:, 0]) % 12, minlength=12)
        assert apart[0] == 0
        assert ((apart[1:] - 12_000 / 11) ** 2 / (12_000 / 11)).sum() < 36


def plain_views(images, index, view, *, policy="plain", seed=1):
    augment = Augment(pad=2, flip=True, policy=policy)
    return augmented(images, index, view, seed=seed, augment=augment)


@pytest.mark.parametrize("policy", POLICIES)
def test_mixup_blends_both_views_by_the_share_of_their_labels(policy):
    images, index = pixels(40, 3, 8), torch.arange(40)
    partner = partners(index, 6, seed=1, count=40)
    augment = Augment(pad=2, flip=True, policy=policy, mix="mixup")
    # Every sample is a class of its own, so that its target tells its share.
    shares = shares_of(index, index, 6, augment, num_classes=40)
    own = shares[index, index].double()
    apart = partner != index
    torch.testing.assert_close(shares.sum(1), torch.ones(40))
    assert (shares[index, partner].double() - (1 - own))[apart].abs().max() < 1e-6
    weight = own[:, None, None, None]
    views = plain_views(images, index, 6, policy=policy).double()
    blend = views * weight + plain_views(images, partner, 6, policy=policy) * (1 - weight)
    seen = augmented(images, index, 6, seed=1, augment=augment)
    assert (seen.double() - blend)[apart].abs().max() < 0.5001
    assert torch.equal(seen[~apart].double(), views[~apart])


@pytest.mark.parametrize("policy", POLICIES)
def test_cutmix_pastes_one_box_whose_area_is_the_share_of_its_label(policy):
    images, index = pixels(40, 3, 8), torch.arange(40)
    partner = partners(index, 6, seed=1, count=40)
    augment = Augment(pad=2, flip=True, policy=policy, mix="cutmix")
    shares = shares_of(index, index, 6, augment, num_classes=40)
    seen = augmented(images, index, 6, seed=1, augment=augment)
    own, other = (plain_views(images, i, 6, policy=policy) for i in (index, partner))
    areas = set()
    for i in index[partner != index].tolist():
        differs = (seen[i] != own[i]).any(0)
        pasted = round(64 * shares[i, partner[i]].item())
        areas.add(pasted)
        assert shares[i].sum() == 1
        assert not differs.any() or pasted
        fits = [
            (top, left)
            for height in range(1, 9)
            if pasted % height == 0 and pasted // height <= 8
            for top in range(9 - height)
            for left in range(9 - pasted // height)
            if torch.equal(
                seen[i], pasted_by_hand(own[i], other[i], top, left, height, pasted // height)
            )
        ]
        assert fits or (pasted == 0 and torch.equal(seen[i], own[i]))
    assert len(areas) > 10


def pasted_by_hand(own, other, top, left, height, width):
    box = slice(None), slice(top, top + height), slice(left, left + width)
    out = own.clone()
    out[box] = other[box]
    return out


def test_shares_are_uniform_and_cutmix_keeps_more_where_the_border_clips():
    # Mean 1/2, variance 1/12 of 20,000 shares: four standard errors are .0082 and .0021. Without
    # clipping, cutmix would have these too; of a box of side s in the unit square with a uniform
    # centre (1 - s/4)^2 is left: E[s^2 (1 - s/4)^2] = 1/2 - 1/5 + 1/48 = .3208 for s^2 uniform.
    index = torch.arange(20_000)
    own = {}
    for mix in ("mixup", "cutmix"):
        augment = Augment(pad=0, flip=False, mix=mix)
        halves = shares_of(index % 2 - 1, index, 0, augment, num_classes=1, size=224)
        even = halves[1::2, 0].double()
        apart = partners(index, 0, seed=1, count=20_000)[1::2] % 2 == 0
        own[mix] = even[apart]
    assert own["mixup"].mean().item() == pytest.approx(0.5, abs=0.012)
    assert own["mixup"].var().item() == pytest.approx(1 / 12, abs=0.004)
    assert 1 - own["cutmix"].mean().item() == pytest.approx(0.3208, abs=0.012)


def test_shares_change_with_view_and_seed():
    augment, index = Augment(pad=0, flip=False, mix="mixup"), torch.arange(100)
    found = [
        shares_of(index, index, view, augment, seed=seed, num_classes=100)
        for view, seed in ((0, 0), (0, 1), (1, 0))
    ]
    own = torch.stack([shares.diagonal() for shares in found])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (own[one] == own[other]).sum() < 5


def test_targets_without_a_mix_are_the_labels():
    labels = torch.tensor([3, -1, 2, 0])
    found = shares_of(labels, torch.tensor([2, 1]), 0, Augment(pad=1, flip=True, policy="rand"))
    assert found.tolist() == [2, -1]


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_unlabelled_images_leave_their_share_empty(mix):
    labels = torch.arange(60) % 4 - 1
    index, augment = torch.arange(60), Augment(pad=0, flip=False, mix=mix)
    shares = shares_of(labels, index, 2, augment, num_classes=3)
    # The same mix, where what has no label is a class of its own.
    whole = shares_of(labels % 4, index, 2, augment, num_classes=4)
    torch.testing.assert_close(whole.sum(1), torch.ones(60))
    assert torch.equal(shares, whole[:, :3])
    assert shares.dtype == torch.float32
    both_unlabelled = (labels == -1) & (labels[partners(index, 2, seed=1, count=60)] == -1)
    assert both_unlabelled.any()
    assert shares[both_unlabelled].count_nonzero() == 0


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Return images whose first channel is 3 times the column, the second 3 times the row."""
    across = 3 * torch.arange(width).expand(height, width)
    down = 3 * torch.arange(height)[:, None].expand(height, width)
    return torch.stack([across, down]).byte().expand(count, 2, height, width).contiguous()


def box_along(line: torch.Tensor) -> tuple[int, int]:
    """Return where a box begins and its side, from a ramp of 3 a pixel that it shows.

    Pixel i shows 3 * (start + (i + 1/2) side / n - 1/2), within the box's first and last pixel.
    """
    count, line = len(line), line.double() / 3
    start, side = int(line[0]), int(line[-1] - line[0]) + 1
    place = start + (torch.arange(count) + 0.5) * side / count - 0.5
    assert (line - place.clamp(start, start + side - 1)).abs().max() < 0.5
    return start, side


@pytest.mark.parametrize(("height", "width", "least"), [(64, 64, 0.35), (66, 80, 0.1), (64, 72, 1)])
def test_a_resized_crop_is_a_box_of_the_image_stretched_over_all_of_it(height, width, least):
    augment = Augment(pad=0, flip=True, area=least)
    out = augmented(ramps(200, height, width), torch.arange(200), 3, seed=1, augment=augment)
    areas, ratios, mirrored = [], [], 0
    for across, down in out:
        assert torch.equal(across, across[:1].expand_as(across))
        assert torch.equal(down, down[:, :1].expand_as(down))
        is_mirrored = bool(across[0, 0] > across[0, -1])
        mirrored += is_mirrored
        left, wide = box_along(across[0].flip(0) if is_mirrored else across[0])
        top, tall = box_along(down[:, 0])
        assert 0 <= left <= width - wide
        assert 0 <= top <= height - tall
        areas.append(tall * wide / (height * width))
        ratios.append(wide * height / (tall * width))
    assert 0.7 * least <= min(areas)
    assert 0.7 < min(ratios) < 0.9 < 1.1 < max(ratios) < 1.4
    assert 70 < mirrored < 130
    if least < 1:  # uniform but for the sides that the image cuts off
        assert sum(areas) / 200 == pytest.approx((1 + least) / 2, abs=0.06)


def test_a_resized_crop_ignores_batch_and_order_and_keeps_a_plain_image():
    images, augment = pixels(12, 3, 64), Augment(pad=0, flip=True, area=0.2)
    whole = augmented(images, torch.arange(12), 4, seed=1, augment=augment)
    order = torch.tensor([7, 2, 11, 2])
    assert torch.equal(augmented(images, order, 4, seed=1, augment=augment), whole[order])
    assert blake2b(whole.numpy().tobytes(), digest_size=8).hexdigest() == "b9f1202e226f54fb"
    plain = torch.full((12, 3, 64, 64), 255, dtype=torch.uint8)
    assert torch.equal(augmented(plain, order, 4, seed=1, augment=augment), plain[order])


def test_views_of_today_are_those_of_yesterday():
    # Crops and mirrors of the first release: their hash keys must not change.
    images = pixels(5, 1, 8)
    out = augmented(images, torch.arange(5), 7, seed=3, augment=Augment(pad=2, flip=True))
    assert blake2b(out.numpy().tobytes(), digest_size=8).hexdigest() == "3e426ec8454f78f7"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"policy": "trivail"},
            r"policy: unknown 'trivail' \(did you mean 'trivial'\?\); known: pl",
        ),
        (
            {"mix": "Mixup"},
            r"mix: unknown 'Mixup' \(did you mean 'mixup'\?\); known: none, mixup, ",
        ),
    ],
)
def test_unknown_augmentation_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        Augment(pad=1, flip=True, **fields)


def test_input_is_scaled_and_normalised():
    # (51 / 255 - 0.1) / 0.5 = 0.2; (255 / 255 - 0.2) / 0.4 = 2; (0 - 0.3) / 0.3 = -1
    batch = torch.tensor([51, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    x = to_input(batch, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3), resolution=4, channels=3)
    expected = torch.tensor([0.2, 2.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)


def test_input_halved_averages_with_the_triangle_filter():
    # Antialiased bilinear at scale 1/2 weighs four pixels 1/8, 3/8, 3/8, 1/8 away from the border;
    # a step from 0 to 255 between columns 3 and 4 lands at 1/8 and 7/8.
    batch = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    batch[..., 4:] = 255
    x = to_input(batch, mean=(0.0,), std=(1.0,), resolution=4, channels=1)
    expected = torch.tensor([0, 1 / 8, 7 / 8, 1]).expand(1, 1, 4, 4)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)


def test_grey_is_repeated_for_a_colour_network():
    batch = pixels(2, 1, 4)
    grey = to_input(batch, mean=(0.3,), std=(0.2,), resolution=6, channels=1)
    colour = to_input(batch, mean=(0.3,), std=(0.2,), resolution=6, channels=3)
    assert torch.equal(colour, grey.repeat(1, 3, 1, 1))


def test_colour_is_refused_by_a_grey_network():
    batch = pixels(2, 3, 4)
    with pytest.raises(DataError, match=r"reads 1 channels.*have 3"):
        to_input(batch, mean=(0.3,) * 3, std=(0.2,) * 3, resolution=4, channels=1)


def test_statistics_equal_the_definition_over_more_than_one_chunk():
    images = pixels(1100, 3, 2)
    mean, std = channel_statistics(image_set(images))
    x = images.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), x.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.tensor(std).double(), x.std(1, unbiased=False), atol=1e-6, rtol=0
    )


def test_constant_channel_can_be_divided_by():
    _, std = channel_statistics(image_set(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)))
    assert std == (1 / 255,)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_crop_of_small_and_of_large_images_are_one(pad: int, flip: bool, channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, channels, 8, 8), generator=random, dtype=torch.uint8)
    index = torch.tensor([3, 3, 0, 8, 5, 1])
    place = counter_hash(index, "any")
    moves = [place % (2 * pad + 1), place // 7 % (2 * pad + 1), place // 49 % 2 * flip]
    small, large = (
        crop(images, index, *moves, pad) for crop in (views._crop_windows, views._crop_pixels)
    )
    assert torch.equal(small, large)
