"""From stored pixels to network input: augmented views, their targets, normalising, resizing.

A view's crop, mirror, operations and what is mixed into it are a hash of (seed, sample, view),
never of a generator's state: equal on every device, in every batch size and order, and after a
resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data import mosaic, policies, resized_crops, zoom
from kdsearch.data.base import VOID, Augment, ImageSet
from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import DataError

_SMALL = 64  # px
_WEIGHT_BITS = 17  # after the point of a mixing weight

Start: TypeAlias = int | Tensor
Stream: TypeAlias = Literal["place", "zoom", "shift", "weight", "box", "mosaic", "window"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


def counter_hash(index: Tensor, *key: int | str) -> Tensor:
    """Return int64 values, uniform in [0, 2**63), that depend on each index and on `key` alone."""
    return _walk(index, _start(*key))


def _start(*key: int | str) -> int:
    """Return where the stream of a key begins: its digest."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _walk(index: Tensor, start: Start) -> Tensor:
    """Walk a splitmix64 stream (Steele et al., OOPSLA 2014) to each index."""
    z = index * -0x61C8864680B583EB + start
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return (z ^ _shift(z, 31)) & 0x7FFF_FFFF_FFFF_FFFF


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign, which int64's own shift would repeat."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True)
class ViewSeeds:
    """Random streams of one view of all samples: where each begins, and which samples mix in.

    A stream begins at a number, or at a 0-d int64 tensor: a captured step reads those, and the
    next view overwrites them. starts: of STREAMS, then of each round of the policy. partners:
    int64 [n, N], n samples that are shown with each; None for none.
    """

    starts: Sequence[Start]
    partners: Tensor | None = None

    def bits(self, index: Tensor, stream: Stream) -> Tensor:
        """Return random int64 [B] in [0, 2**63) of a stream."""
        return _walk(index, self.starts[STREAMS.index(stream)])

    def policy(self, index: Tensor) -> list[Tensor]:
        """Return random int64 [B] in [0, 2**63) of each round of the policy."""
        return [_walk(index, start) for start in self.starts[len(STREAMS) :]]


def view_seeds(
    view: int, *, seed: int, augment: Augment, count: int, device: torch.device
) -> ViewSeeds:
    """Return the seeds of view number `view` of `count` samples: hashes of (seed, view)."""
    starts = [_start(seed, view), *(_start(seed, view, stream) for stream in STREAMS[1:])]
    rounds = range(policies.ROUNDS[augment.policy])
    starts += [_start(seed, view, "policy", number) for number in rounds]
    each = augment.partners
    return ViewSeeds(starts, _permutations(view, seed, count, device, each) if each else None)


def augmented(images: ImageSet, index: Tensor, view: int, *, seed: int, augment: Augment) -> Tensor:
    """Return view number `view` of the samples at `index`: uint8 [B, C, H, W], padded with zeros.

    index: int64 [B], on the images' device. A sample's number decides its view, never the row where
    its image lies. A pad of p offers (2p + 1)^2 crops, a flip twice as many views; an area gives
    random resized crops, a scale changes of size. The policy's operations come next; then mixup
    (Zhang et al., ICLR 2018, arXiv:1710.09412) or cutmix (Yun et al., ICCV 2019, arXiv:1905.04899)
    with the same view of another sample.
    """
    device = images.images.device
    seeds = view_seeds(view, seed=seed, augment=augment, count=len(images), device=device)
    return shown(images, index, seeds, augment)


def shown(images: ImageSet, index: Tensor, seeds: ViewSeeds, augment: Augment) -> Tensor:
    """Return the view that the seeds give of the samples at `index`; see `augmented`."""
    if augment.mix == "none" or seeds.partners is None:
        return _unmixed(images, index, seeds, augment)
    both = _unmixed(images, torch.cat([index, seeds.partners[0, index]]), seeds, augment)
    own, other = both.chunk(2)
    if augment.mix == "cutmix":
        rows, columns = _box(index, seeds, images.shape[2:])
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], other, own)
    weight = _weight(index, seeds).int()[:, None, None, None]
    blend = own.int().mul_(weight).add_(other.int().mul_((1 << _WEIGHT_BITS) - weight))
    return blend.add_(1 << (_WEIGHT_BITS - 1)).bitwise_right_shift_(_WEIGHT_BITS).byte()


def mixed_with(index: Tensor, seeds: ViewSeeds) -> Tensor | None:
    """Return the samples, int64 [B], that are mixed into those at `index`; None without a mix.

    Raises DataError for a mosaic, whose images have no one class.
    """
    if seeds.partners is None:
        return None
    if len(seeds.partners) > 1:
        raise DataError("augment.mosaic: a mosaic shows the boxes of four images; use mix")
    return seeds.partners[0, index]


def own_share(index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size) -> Tensor:
    """Return the share [B] of a mixed view that shows the sample itself. size: its (H, W)."""
    if augment.mix == "cutmix":
        rows, columns = _box(index, seeds, size)
        return 1 - rows.sum(1) * columns.sum(1) / (size[0] * size[1])
    return _weight(index, seeds) / (1 << _WEIGHT_BITS)


def partners(index: Tensor, view: int, *, seed: int, count: int, each: int = 1) -> Tensor:
    """Return int64 [each * B]: the samples, of `count`, that a view shows with those at `index`.

    In each view they are a permutation of all samples, so that each is shown once more; it is
    uniform, itself included, and a hash of (seed, view) decides it. each: so many permutations.
    """
    return _permutations(view, seed, count, index.device, each)[:, index].flatten()


@lru_cache(maxsize=4)
def _permutations(view: int, seed: int, count: int, device: torch.device, each: int) -> Tensor:
    """Sort all samples by hashes; kept for the batches of a view (4 ms for 50,000 samples)."""
    samples = torch.arange(count, device=device)
    keys = [(), *((number,) for number in range(1, each))]
    hashes = [counter_hash(samples, seed, view, "partner", *key) for key in keys]
    found = torch.stack([values.argsort(stable=True) for values in hashes])
    if device.type == "cuda":  # trials on other streams may read it from now on
        torch.cuda.current_stream(device).synchronize()
    return found


def _weight(index: Tensor, seeds: ViewSeeds) -> Tensor:
    """Return a sample's own weight, int64 [B]: uniform in (0, 1), which is Beta(1, 1)."""
    return seeds.bits(index, "weight") % (1 << (_WEIGHT_BITS - 1)) * 2 + 1


def _box(index: Tensor, seeds: ViewSeeds, size: Size) -> tuple[Tensor, Tensor]:
    """Return the rows [B, H] and the columns [B, W], bool, of the box that shows the partner.

    Its area is the partner's weight; its centre is uniform, and what is outside is clipped.
    """
    other = 1 - _weight(index, seeds).double() / (1 << _WEIGHT_BITS)
    height, width = size
    bits = seeds.bits(index, "box")
    rows = _within(height, bits % height, other)
    return rows, _within(width, bits // height % width, other)


def _within(length: int, centre: Tensor, area: Tensor) -> Tensor:
    """Return bool [B, length]: the positions in a box of a share of the area, by its centre."""
    side = (area.sqrt() * length).round().long()[:, None]
    start = centre[:, None] - side // 2
    line = torch.arange(length, device=centre.device)
    return (line >= start) & (line < start + side)


def moved(masks: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment) -> Tensor:
    """Return masks of the samples at `index`, uint8 [B, H, W], moved as `shown` moves images.

    masks: uint8 [N, H, W]. What a view shows from outside of the image is VOID. Raises DataError
    for mixup, which shows two classes at a pixel.
    """
    if augment.mix == "mixup":
        raise DataError("augment.mix: mixup shows two classes at a pixel; use cutmix for masks")
    if augment.area is not None:
        raise DataError("augment.area: masks follow no resized crops; use scale")
    if augment.mosaic:
        raise DataError("augment.mosaic: it moves boxes, and no masks; use mix cutmix")
    own = _unmixed_masks(masks, index, seeds, augment)
    if seeds.partners is None:
        return own
    other = _unmixed_masks(masks, seeds.partners[0, index], seeds, augment)
    rows, columns = _box(index, seeds, (masks.shape[1], masks.shape[2]))
    return torch.where(rows[:, :, None] & columns[:, None, :], other, own)


def _unmixed_masks(masks: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment) -> Tensor:
    """Return the masks of unmixed views; within, 0 is void, as black is outside of an image."""
    shifted = masks.index_select(0, index)[:, None] - VOID
    rows = torch.arange(len(index), device=index.device)
    out = _of_one(shifted, rows, index, seeds, augment, is_smooth=False)
    return policies.move(out, seeds.policy(index), policy=augment.policy)[:, 0] + VOID


def _unmixed(images: ImageSet, index: Tensor, seeds: ViewSeeds, augment: Augment) -> Tensor:
    """Return the views, cropped, mirrored and through the policy's operations."""
    out = _cropped(images, index, seeds, augment)
    return policies.perform(out, seeds.policy(index), policy=augment.policy)


def _cropped(images: ImageSet, index: Tensor, seeds: ViewSeeds, augment: Augment) -> Tensor:
    rows = index if images.rows is None else images.rows.index_select(0, index)
    if augment.area is not None:
        place = seeds.bits(index, "place")
        return resized_crops.shown(images.images, rows, place, augment.area, flip=augment.flip)
    if augment.mosaic:
        samples, moves, mirrored = tiles(index, seeds, augment, images.shape[2:])
        places = samples if images.rows is None else images.rows[samples]
        return mosaic.shown(images.images, places, moves, mirrored)
    return _of_one(images.images, rows, index, seeds, augment)


def _of_one(
    images: Tensor,
    rows: Tensor,
    index: Tensor,
    seeds: ViewSeeds,
    augment: Augment,
    *,
    is_smooth: bool = True,
) -> Tensor:
    """Return the images at `rows`, each scaled or cropped, and mirrored."""
    down, right, mirrored = placed(index, seeds, augment)
    if augment.scale:
        moves = zoomed(index, seeds, augment, images.shape[2:])
        return zoom.shown(images, rows, moves, mirrored, is_smooth=is_smooth)
    crop = _crop_windows if max(images.shape[2:]) <= _SMALL else _crop_pixels
    return crop(images, rows, down, right, mirrored, augment.pad)


def placed(index: Tensor, seeds: ViewSeeds, augment: Augment) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows and columns that a crop skips, and 1 where a view is mirrored, int64 [B]."""
    offsets = 2 * augment.pad + 1
    place = seeds.bits(index, "place")
    mirrored = place // offsets**2 % 2 * augment.flip
    return place % offsets, place // offsets % offsets, mirrored


def zoomed(index: Tensor, seeds: ViewSeeds, augment: Augment, size: Sequence[int]) -> Tensor:
    """Return (step, offset down, offset right) of images of (H, W), see `zoom.drawn`."""
    height, width = size
    bits, more = seeds.bits(index, "zoom"), seeds.bits(index, "shift")
    return zoom.drawn(bits, more, size=(height, width), scale=augment.scale, pad=augment.pad)


def tiles(
    index: Tensor, seeds: ViewSeeds, augment: Augment, size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images that a view of (H, W) shows: samples int64 [n, B], moves [n, 3, B].

    Moves are (step, offset down, offset right), see `zoom.drawn`; n is 1, or 4 with a mosaic.
    Third: int64 [B], 1 where the view is mirrored.
    """
    down, right, mirrored = placed(index, seeds, augment)
    crop = [torch.ones_like(down), down - augment.pad, right - augment.pad]
    own = zoom.ONE * torch.stack(crop)
    if augment.scale:
        own = zoomed(index, seeds, augment, size)
    if not augment.mosaic or seeds.partners is None:
        return index[None], own[None], mirrored
    height, width = size
    bits, more = seeds.bits(index, "mosaic"), seeds.bits(index, "window")
    moves = mosaic.drawn(
        own, bits, more, size=(height, width), scale=augment.scale, share=augment.mosaic
    )
    return torch.cat([index[None], seeds.partners[:, index]]), moves, mirrored


def _crop_windows(
    images: Tensor, index: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, pad: int
) -> Tensor:
    """Pad, take each row's window in one gather over all windows, mirror: for small images.

    128 x 3 x 32 x 32 on one core: 0.3 ms, where `_crop_pixels` takes 0.6; at 224 px twice as long.
    """
    count, (channels, height, width) = len(index), images.shape[1:]
    high, wide = height + 2 * pad, width + 2 * pad
    padded = F.pad(images.index_select(0, index), (pad, pad, pad, pad))
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    plane = torch.arange(count * channels, device=images.device).view(count, channels, 1) * high
    row = torch.arange(height, device=images.device) + down[:, None]
    start = (plane + row[:, None, :]) * wide + right[:, None, None]
    out = windows.index_select(0, start.flatten()).view(count, channels, height, width)
    # Both kinds of all, then one of each: a where on bytes takes longer than the whole crop.
    both = torch.cat([out, out.flip(3)])
    return both.index_select(0, torch.arange(count, device=images.device) + mirrored * count)


def _crop_pixels(
    images: Tensor, index: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, pad: int
) -> Tensor:
    """Take whole rows, then pixels along them: for large images.

    64 x 3 x 224 x 224 on one core: 8 ms, where a single gather by pixel took 66.
    """
    count, (channels, height, width) = len(index), images.shape[1:]
    y = torch.arange(height, device=images.device) - pad + down[:, None]
    x = torch.arange(width, device=images.device) - pad + right[:, None]
    x = torch.where(mirrored[:, None] == 1, x.flip(1), x)
    plane = index[:, None] * channels + torch.arange(channels, device=images.device)
    row = plane[:, :, None] * height + y.clamp(0, height - 1)[:, None, :]
    rows = images.reshape(-1, width).index_select(0, row.flatten())
    rows = rows.view(count, channels, height, width)
    column = x.clamp(0, width - 1)[:, None, None, :].expand(rows.shape)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    return rows.gather(3, column).mul_(inside[:, None])


def to_input(
    batch: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    resolution: int | Size,
    channels: int,
) -> Tensor:
    """Return float32 [B, channels, *resolution]: (x / 255 - mean) / std, resized with antialiasing.

    batch: uint8 [B, C, H, W]. resolution: (H, W) or a square's side. Raises DataError unless
    channels is C, or C is 1.
    """
    found = batch.shape[1]
    if channels != found and found != 1:
        raise DataError(f"the network reads {channels} channels, the images have {found}")
    scale, shift = _affine(mean, std, batch.device)
    x = torch.addcmul(shift, batch.float(), scale)
    size = as_size(resolution)
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return x if channels == found else x.expand(-1, channels, -1, -1)


@lru_cache(maxsize=32)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift [C, 1, 1]; kept, since a copy to a GPU stalls every step."""
    m, s = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (255 * s)).float().to(device), (-m / s).float().to(device)
