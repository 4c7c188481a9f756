"""What a feed hands out does not depend on whether the images stay on the device."""

import threading
import time
from functools import partial

import pytest
import torch

from kdsearch.data import feed
from kdsearch.data.base import MIXES, Augment, ImageSet
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented, partners

CPU = torch.device("cpu")
COUNT = 40
BYTES = COUNT * 3 * 8 * 8


def some_of_a_store() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    rows = torch.randperm(60, generator=generator)[:COUNT]
    return ImageSet(stored, torch.arange(COUNT) % 5 - 1, rows)


IMAGES = some_of_a_store()
BATCHES = torch.split(torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)), 7)


def read_ahead(images: ImageSet = IMAGES, device: torch.device = CPU) -> Feed:
    return Feed(images, device, max_bytes=BYTES - 1)


def views_of(given: Feed, mix: str) -> list[torch.Tensor]:
    augment = Augment(pad=2, flip=True, mix=mix)
    also = None if mix == "none" else partial(partners, view=3, seed=1, count=COUNT)
    return [
        augmented(images, index, 3, seed=1, augment=augment).cpu()
        for index, images in given.batches(BATCHES, also=also)
    ]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_batches_are_the_same_however_far_they_are_read_ahead(monkeypatch, mix, ahead):
    monkeypatch.setattr(feed, "_AHEAD", ahead)
    resident, other = (views_of(Feed(IMAGES, CPU, max_bytes=b), mix) for b in (BYTES, BYTES - 1))
    assert [len(view) for view in resident] == [7, 7, 7, 7, 7, 5]
    for mine, theirs in zip(resident, other, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("max_bytes", [BYTES, BYTES - 1])
def test_batches_are_the_same_on_cuda(mix, max_bytes):
    there = views_of(Feed(IMAGES, torch.device("cuda"), max_bytes=max_bytes), mix)
    for mine, theirs in zip(views_of(Feed(IMAGES, CPU), mix), there, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("given", [Feed(IMAGES, CPU), read_ahead()], ids=["resident", "ahead"])
def test_batches_come_in_order_with_their_images_and_labels(given):
    for wanted, (index, images) in zip(BATCHES, given.batches(BATCHES), strict=True):
        assert torch.equal(index, wanted)
        assert torch.equal(images.at(index), IMAGES.at(wanted))
        assert torch.equal(images.labels, IMAGES.labels)
        assert len(images) == len(given) == COUNT


def test_what_fits_is_the_mapping_itself():
    ((_, images),) = Feed(IMAGES, CPU, max_bytes=BYTES).batches([torch.arange(2)])
    assert images is IMAGES
    ((_, images),) = Feed(IMAGES, CPU).batches([torch.arange(2)])
    assert images is IMAGES


def test_a_sample_of_another_batch_is_refused():
    for index, images in read_ahead().batches(BATCHES):
        absent = next(i for i in range(COUNT) if i not in index)
        with pytest.raises(IndexError):
            images.at(torch.tensor([absent]))


@pytest.fixture
def reads(monkeypatch) -> list[list[int]]:
    """List the samples of each read."""
    found = []
    at = ImageSet.at
    monkeypatch.setattr(ImageSet, "at", lambda self, i: [found.append(i.tolist()), at(self, i)][1])
    return found


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_the_next_batches_are_read_while_one_is_used_and_no_more(reads):
    indices = [torch.tensor([i]) for i in range(10)]
    for number, _ in enumerate(read_ahead().batches(indices)):
        last = min(10, number + 1 + feed._AHEAD)
        deadline = time.monotonic() + 20
        while len(reads) < last and time.monotonic() < deadline:
            time.sleep(0.001)
        assert reads == [[i] for i in range(last)]


def test_leaving_early_ends_the_reading(reads):
    indices = [torch.tensor([i]) for i in range(20)]
    for _ in read_ahead().batches(indices):
        assert readers()
        break
    assert not readers()
    with pytest.raises(ZeroDivisionError):
        fail_in(read_ahead(), indices)
    assert not readers()
    assert len(reads) <= 2 * (1 + feed._AHEAD)


def fail_in(given: Feed, indices: list[torch.Tensor]) -> None:
    for _ in given.batches(indices):
        raise ZeroDivisionError


def test_what_fails_in_the_thread_is_raised_where_the_batch_is_due():
    found = read_ahead().batches([torch.tensor([i]) for i in (0, 1, COUNT)])
    assert [next(found)[0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(IndexError):
        next(found)
    assert not readers()
