"""Operations and magnitudes are torchvision's, which change one image at a time."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TV

from kdsearch.data.policies import (
    BINS,
    OPERATIONS,
    ROUNDS,
    magnitude,
    operate,
    operations_of,
    perform,
)
from kdsearch.data.views import counter_hash

PEERS = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
WARPS = OPERATIONS[1:6]
STRENGTHS = OPERATIONS[6:10]
TORCHVISION = {
    "brightness": TV.adjust_brightness,
    "color": TV.adjust_saturation,
    "contrast": TV.adjust_contrast,
    "sharpness": TV.adjust_sharpness,
}


def pixels(count: int, channels: int, size: int) -> Tensor:
    """Return noise, smooth ramps and flat images."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    noise = torch.randint(0, 256, shape, generator=generator)
    line = torch.arange(size) * 200 // size
    noise[1::4] = line + line[:, None] // 4 + 3
    noise[2::4] = 50 + noise[2::4] // 3
    noise[3::4] = 77
    return noise.byte()


def changed(images: Tensor, operation: str, number: int, sign: int, policy: str = "trivial"):
    count = len(images)
    index = torch.full((count,), OPERATIONS.index(operation))
    level = torch.full((count,), 2 * number + (sign < 0))
    return operate(images, index, level, policy=policy)


def levels_apart(ours: Tensor, theirs: Tensor) -> int:
    return int((ours.int() - theirs.int()).abs().max())


@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_magnitudes_are_torchvisions(policy, size):
    space = PEERS[policy]._AUGMENTATION_SPACE
    assert tuple(space) == tuple(
        {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
        for name in OPERATIONS
    )
    for name, (values, _) in zip(OPERATIONS, space.values(), strict=True):
        theirs = values(BINS, size, size)
        theirs = [0.0] * BINS if theirs is None else theirs.tolist()
        ours = [magnitude(policy, name, number, size=size) for number in range(BINS)]
        assert ours == pytest.approx(theirs, abs=1e-5), name


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("number", [0, 1, 9, 17, 30])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STRENGTHS)
def test_strengths_are_torchvisions_to_one_level(name, channels, number, sign):
    images = pixels(8, channels, 16)
    strength = sign * magnitude("trivial", name, number, size=16)
    ours = changed(images, name, number, sign)
    assert levels_apart(ours, TORCHVISION[name](images, 1 + strength)) <= 1
    assert number == 0 or (name, channels) == ("color", 1) or not torch.equal(ours, images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(BINS))
def test_posterize_and_solarize_are_torchvisions_exactly(number, channels):
    images = pixels(4, channels, 16)
    bits = int(magnitude("trivial", "posterize", number, size=16))
    assert torch.equal(changed(images, "posterize", number, 1), TV.posterize(images, bits))
    threshold = round(255 * magnitude("trivial", "solarize", number, size=16), 6)
    theirs = TV.solarize(images, threshold)
    assert torch.equal(changed(images, "solarize", number, -1), theirs)


@pytest.mark.parametrize("size", [3, 16, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_and_equalize_are_torchvisions(channels, size):
    images = pixels(8, channels, size)
    assert levels_apart(changed(images, "autocontrast", 0, 1), TV.autocontrast(images)) <= 1
    assert torch.equal(changed(images, "equalize", 0, 1), TV.equalize(images))


def source_positions(name: str, level: float, size: int) -> tuple[Tensor, Tensor]:
    """Return where in the image each pixel of a warp comes from, by the textbook, in float64."""
    x, y = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) + 0.5] * 2, indexing="xy")
    if name == "shear_x":
        return x + level * y, y
    if name == "shear_y":
        return x, y + level * x
    if name == "translate_x":
        return x - math.trunc(level), y
    if name == "translate_y":
        return x, y - math.trunc(level)
    turn, u, v = math.radians(level), x - size / 2, y - size / 2
    return (
        math.cos(turn) * u - math.sin(turn) * v + size / 2,
        math.sin(turn) * u + math.cos(turn) * v + size / 2,
    )


def torchvision_warp(images: Tensor, name: str, level: float) -> Tensor:
    if name == "rotate":
        return TV.rotate(images, level)
    along = name.endswith("_x")
    if name.startswith("shear"):
        degrees = math.degrees(math.atan(level))
        shear = [degrees, 0.0] if along else [0.0, degrees]
        return TV.affine(images, 0.0, [0, 0], 1.0, shear, center=[0, 0])
    shift = [int(level), 0] if along else [0, int(level)]
    return TV.affine(images, 0.0, shift, 1.0, [0.0, 0.0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("number", [0, 1, 4, 10, 20, 30])
@pytest.mark.parametrize("size", [8, 31, 96])
@pytest.mark.parametrize("name", WARPS)
def test_warps_are_torchvisions_but_for_pixels_on_an_edge_between_two(name, size, number, sign):
    images = pixels(4, 3, size)
    level = sign * magnitude("trivial", name, number, size=size)
    x, y = source_positions(name, level, size)
    on_edge = ((x - x.round()).abs() < 2e-3) | ((y - y.round()).abs() < 2e-3)
    ours = changed(images, name, number, sign)
    differs = (ours != torchvision_warp(images, name, level)).any(1).any(0)
    assert not (differs & ~on_edge).any()
    assert on_edge.sum() <= 2 * size  # both diagonals at 45 degrees; else fewer


def test_warps_of_the_other_policy_have_its_magnitudes():
    images = pixels(4, 1, 331)  # translates by up to 150 pixels; 9 of 30 are 45
    shown = changed(images, "translate_x", 9, 1, policy="rand")
    assert torch.equal(shown[..., 45:], images[..., :-45])
    assert shown[..., :45].count_nonzero() == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_each_image_gets_its_own_operation_whatever_its_neighbours(size, channels):
    every = [(o, n) for o in range(len(OPERATIONS)) for n in (0, 7, 18, 60, 61)]
    operation, level = torch.tensor(every).T
    images = pixels(len(every), channels, size)
    together = operate(images, operation, level, policy="trivial")
    for i in range(len(every)):
        alone = operate(images[i : i + 1], operation[i : i + 1], level[i : i + 1], policy="trivial")
        assert torch.equal(alone[0], together[i]), (OPERATIONS[operation[i]], level[i])
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        operate(images[order], operation[order], level[order], policy="trivial"), together[order]
    )


def test_operating_leaves_the_images_alone():
    images = pixels(28, 3, 8)
    before = images.clone()
    operate(images, torch.arange(28) % 14, torch.full((28,), 40), policy="trivial")
    assert torch.equal(images, before)


def test_trivial_draws_every_operation_magnitude_and_sign_alike():
    # 86,800 draws of 868: 100 expected, chi-square of 867 degrees under 1000 with p = 0.999.
    operation, level = operations_of(counter_hash(torch.arange(86_800), 0), policy="trivial")
    counts = torch.bincount(operation * 2 * BINS + level, minlength=868)
    assert len(counts) == 868
    assert ((counts - 100) ** 2 / 100).sum() < 1000


def test_rand_draws_every_operation_at_magnitude_nine():
    # 2,800 draws of 28: 100 expected, chi-square of 27 degrees under 55.5 with p = 0.999.
    operation, level = operations_of(counter_hash(torch.arange(2_800), 0), policy="rand")
    assert level.unique().tolist() == [18, 19]
    counts = torch.bincount(2 * operation + level - 18, minlength=28)
    assert ((counts - 100) ** 2 / 100).sum() < 55.5


@pytest.mark.parametrize("policy", list(ROUNDS))
def test_operations_follow_one_another(policy):
    images = pixels(64, 3, 16)
    bits = [counter_hash(torch.arange(64), number) for number in range(ROUNDS[policy])]
    expected = images
    for random in bits:
        expected = operate(expected, *operations_of(random, policy=policy), policy=policy)
    assert torch.equal(perform(images, bits, policy=policy), expected)
    assert torch.equal(expected, images) == (policy == "plain")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 32, 97])
def test_operations_are_bit_equal_on_cuda(size, channels):
    every = [(o, n) for o in range(len(OPERATIONS)) for n in range(2 * BINS)]
    operation, level = torch.tensor(every).T
    images = pixels(len(every), channels, size)
    here = operate(images, operation, level, policy="trivial")
    there = operate(images.cuda(), operation.cuda(), level.cuda(), policy="trivial")
    assert torch.equal(here, there.cpu())
