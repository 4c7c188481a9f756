from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.data.base import Augment
from kdsearch.data.views import augmented, channel_statistics, counter_hash, to_input
from kdsearch.errors import DataError

MASK = (1 << 64) - 1


def pixels(count: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_view_is_bit_equal_on_cuda():
    images, augment, index = pixels(64, 3, 32), Augment(pad=4, flip=True), torch.arange(64)
    here = augmented(images, index, 3, seed=5, augment=augment)
    there = augmented(images.cuda(), index.cuda(), 3, seed=5, augment=augment)
    assert torch.equal(here, there.cpu())


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
    mean, std = channel_statistics(images)
    x = images.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), x.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.tensor(std).double(), x.std(1, unbiased=False), atol=1e-6, rtol=0
    )


def test_constant_channel_can_be_divided_by():
    _, std = channel_statistics(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    assert std == (1 / 255,)
