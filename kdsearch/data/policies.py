"""What an augmentation policy does to a batch of uint8 images, each with an operation of its own.

TrivialAugmentWide (Müller and Hutter, ICCV 2021, arXiv:2103.10158): one of 14 operations, at one
of 31 magnitudes. RandAugment (Cubuk et al., NeurIPS 2020, arXiv:1909.13719): two operations, at
magnitude 9 of 30. Operations and magnitudes are torchvision's, arithmetic is in integers, so that
every device answers with the same bits. What a warp shows from outside of the image is black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kdsearch.data.sizes import Size

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
BINS = 31
ROUNDS = {"plain": 0, "trivial": 1, "rand": 2}  # operations an image goes through
_RAND_BIN = 9
_SIGNED = OPERATIONS[1:10]
_WARPS = slice(1, 6)
_GREY = (19589, 38470, 7471)  # 0.2989, 0.587 and 0.114 of 2**16, rounded
_ONE = 16  # bits after the point of positions and strengths
_CACHED = 2**17  # pixels that a CPU works on at a time


def magnitude(policy: str, operation: str, number: int, *, size: int) -> float:
    """Return magnitude `number` of 0 to 30, unsigned, for images of so many pixels a side.

    It is a slope, pixels, degrees, a change of strength, bits to keep or a threshold in [0, 1];
    0 for operations without a magnitude.
    """
    share = number / (BINS - 1)
    is_wide = policy == "trivial"
    if operation == "posterize":
        return round(8 - (6 if is_wide else 4) * share)
    if operation == "solarize":
        return 1 - share
    if operation.startswith("shear"):
        return (0.99 if is_wide else 0.3) * share
    if operation.startswith("translate"):
        return (32 if is_wide else 150 / 331 * size) * share
    if operation == "rotate":
        return (135 if is_wide else 30) * share
    if operation in _SIGNED:
        return (0.99 if is_wide else 0.9) * share
    return 0.0


def perform(images: Tensor, bits: Sequence[Tensor], *, policy: str) -> Tensor:
    """Return uint8 [B, C, S, S] after the policy's operations, C being 1 or 3.

    bits: for each of the policy's rounds random int64 [B] in [0, 2**63), which decide.
    """
    for random in bits:
        operation, level = operations_of(random, policy=policy)
        images = operate(images, operation, level, policy=policy)
    return images


def move(masks: Tensor, bits: Sequence[Tensor], *, policy: str) -> Tensor:
    """Return masks uint8 [B, 1, H, W] after those of the policy's operations that move pixels.

    They move as those of the images do by the same bits; 0 comes in from outside.
    """
    for random in bits:
        operation, level = operations_of(random, policy=policy)
        masks = masks.clone()
        _move(masks, operation, level, policy=policy)
    return masks


def operations_of(bits: Tensor, *, policy: str) -> tuple[Tensor, Tensor]:
    """Return the operation and the level of each random number, for `operate`."""
    rest = bits // len(OPERATIONS)
    number = rest // 2 % BINS if policy == "trivial" else torch.full_like(rest, _RAND_BIN)
    return bits % len(OPERATIONS), 2 * number + rest % 2


def operate(images: Tensor, operation: Tensor, level: Tensor, *, policy: str) -> Tensor:
    """Return a copy of the images [B, C, S, S], each after its operation at its level.

    operation: int64 [B] indices into OPERATIONS. level: int64 [B], twice the magnitude's number,
    plus one where it is negative (of operations that have a sign).
    """
    value = _tables(policy, images.shape[2:], images.device)[1][operation, level]
    out = images.clone()
    _move(out, operation, level, policy=policy)
    for name, change in _CHANGES.items():
        _change(out, operation == OPERATIONS.index(name), change, value)
    return out


def _move(images: Tensor, operation: Tensor, level: Tensor, *, policy: str) -> None:
    """Warp the images in place whose operation is a warp."""
    matrix = _tables(policy, images.shape[2:], images.device)[0][operation, level]
    _change(images, (operation >= _WARPS.start) & (operation < _WARPS.stop), _warp, matrix)


def _change(
    images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], argument: Tensor
) -> None:
    """Change the chosen images in place.

    A CPU computes these alone, and few enough at a time to stay in its cache: a round of 'trivial'
    takes 1.6 ms for 128 x 3 x 32 x 32 on one core, where all images would take 11.5 ms, and 24
    ms for 64 x 3 x 224 x 224 instead of 465 ms (torchvision, image by image: 11.7 and 29 ms). A
    GPU computes all and keeps some: counting them would make it wait.
    """
    if images.device.type != "cpu":
        images.copy_(torch.where(chosen[:, None, None, None], change(images, argument), images))
        return
    rows = chosen.nonzero()[:, 0]
    for part in torch.split(rows, max(1, _CACHED // images[0].numel())):
        changed = change(images.index_select(0, part), argument[part])
        images.index_copy_(0, part, changed)


@lru_cache(maxsize=32)
def _tables(policy: str, size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return int64 [14, 62, 6] warps and [14, 62] strengths, masks and thresholds, by level."""
    levels = [
        [
            magnitude(policy, operation, number, size=size[operation.endswith("_x")])
            * (sign if operation in _SIGNED else 1)
            for number in range(BINS)
            for sign in (1, -1)
        ]
        for operation in OPERATIONS
    ]
    pairs = list(zip(OPERATIONS, levels, strict=True))
    matrices = [[_matrix(name, level, size) for level in row] for name, row in pairs]
    values = [[_value(name, level) for level in row] for name, row in pairs]
    return torch.tensor(matrices, device=device), torch.tensor(values, device=device)


def _matrix(operation: str, level: float, size: Size) -> list[int]:
    """Return the six numbers that take a position in the view to one in the image.

    Positions are in pixels from the upper left corner, where shears have their centre.
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if operation == "shear_x":
        b = level
    elif operation == "shear_y":
        d = level
    elif operation == "translate_x":
        c = -math.trunc(level)
    elif operation == "translate_y":
        f = -math.trunc(level)
    elif operation == "rotate":
        turn = math.radians(level)
        a = e = math.cos(turn)
        d = math.sin(turn)
        b = -d
        height, width = size
        c = ((1 - a) * width - b * height) / 2
        f = ((1 - e) * height - d * width) / 2
    return [round(value * (1 << _ONE)) for value in (a, b, c, d, e, f)]


def _value(operation: str, level: float) -> int:
    if operation == "posterize":
        return 0xFF00 >> int(level) & 0xFF  # so many of the highest bits
    if operation == "solarize":
        return math.ceil(round(255 * level, 6))
    return round(level * (1 << _ONE))


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Show at each pixel the one that its centre falls into."""
    height, width = images.shape[2:]
    across, down = (  # half pixels
        2 * torch.arange(length, dtype=torch.int32, device=images.device) + 1
        for length in (width, height)
    )
    a, b, c, d, e, f = matrix.int()[:, :, None, None].unbind(1)
    x = (a * across + (b * down[:, None] + 2 * c)) >> (_ONE + 1)
    y = (d * across + (e * down[:, None] + 2 * f)) >> (_ONE + 1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y * width + x).mul_(inside).long().flatten(1)[:, None]
    shown = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)
    return shown.mul_(inside[:, None])


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _away(images, torch.zeros_like(strength), strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _away(images, _grey(images).mul_(_spread(strength)), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    grey = _grey(images)
    return _away(
        images, grey.sum((1, 2, 3)) * strength // (grey.shape[2] * grey.shape[3]), strength
    )


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Move pixels away from the mean of the 3 x 3 around them, the middle weighing 5 of 13."""
    if min(images.shape[2:]) <= 2:
        return images
    x = images.int()
    inner = x[:, :, 1:-1, 1:-1]
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    inner.copy_((total + 6) * 5042 >> 16)  # a 13th, rounded; exact up to 5461
    return _away(images, x.mul_(_spread(strength)), strength)


def _grey(images: Tensor) -> Tensor:
    """Return int32 [B, 1, S, S], rounded down."""
    x = images.int()
    if images.shape[1] == 1:
        return x
    red, green, blue = (x[:, i : i + 1] * weight for i, weight in enumerate(_GREY))
    return red.add_(green).add_(blue).bitwise_right_shift_(16)


def _away(images: Tensor, base: Tensor, strength: Tensor) -> Tensor:
    """Return images + strength * (images - base), rounded down, within 0 to 255.

    strength: int64 [B], -1 to 1 in fixed point. base: times the strength, [B] or as the images.
    """
    out = images.int().mul_(_spread(strength + (1 << _ONE)))
    out -= base if base.ndim > 1 else _spread(base)
    return out.bitwise_right_shift_(_ONE).clamp_(0, 255).byte()


def _spread(values: Tensor) -> Tensor:
    """Return int32 [B, 1, 1, 1] of [B]."""
    return values.int()[:, None, None, None]


def _posterize(images: Tensor, mask: Tensor) -> Tensor:
    return images & _spread(mask).byte()


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    bright = images >= _spread(threshold).byte()
    return images ^ bright.byte().mul_(255)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255, rounded down."""
    low = images.amin((2, 3), keepdim=True)
    span = images.amax((2, 3), keepdim=True) - low
    low, span = low.where(span > 0, 0), span.where(span > 0, 255)
    # A quotient of such numbers is an integer in float32 where it is one, and is below it if not.
    return images.float().sub_(low).mul_(255).div_(span).byte()


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Give each channel a flat histogram, as far as whole levels can be moved (Pillow's rule)."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, pixels, counts.new_ones(()).expand_as(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255).byte()
    table = table.where(step > 0, torch.arange(256, dtype=torch.uint8, device=images.device))
    return table.gather(2, pixels).view_as(images)


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
