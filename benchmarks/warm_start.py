"""Loading a data set that kdsearch has decoded before, beside loading it for the first time.

Both are the same call, first with an empty cache, then with the one that it left: the source's
files are listed and found as they were, the store is mapped, the splits laid out. Files younger
than two seconds are hashed again, so both loads wait until theirs are older, as a user's are. Wall
time with a thread a core, which decoding has anyhow; the files are in the page cache. Without
--data the images are JPEGs made on the spot: a Parquet file of 32 px, and a folder of 512 px
decoded to 224.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from benchmarks import bars, trials
from benchmarks.paired import quartiles
from kdsearch import data as datasets
from kdsearch.data import folder, parquet
from kdsearch.data.seen import TICK_NS
from kdsearch.data.sizes import Decoding
from kdsearch.data.store import open_store

BAR = 50.0
_BLOCKS = 3


def rows(given: str | None = None) -> bars.Rows:
    """Return a row for the data that is given, or for each that is made."""
    if given is not None:
        return [row(given, f"{Path(given).name}, as given")]
    with TemporaryDirectory() as below:
        return [row(str(path), case) for path, case in made(Path(below))]


def made(below: Path, *, small: int = 20_000, large: int = 600) -> Iterator[tuple[Path, str]]:
    """Write data sets and yield each with what it is. small, large: how many images they have."""
    file = below / "train.parquet"
    images = [{"bytes": encoded} for encoded in jpegs(small, size=trials.SIZE)]
    labels = [place % trials.CLASSES for place in range(small)]
    pq.write_table(pa.table({"img": images, "label": labels}), file)
    yield file, f"{small} JPEGs of 32 px, Parquet"
    root = below / "pictures"
    for place, encoded in enumerate(jpegs(large, size=512)):
        path = root / "train" / f"class{place % trials.CLASSES}" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    yield root, f"{large} JPEGs of 512 px, folder"


def jpegs(count: int, *, size: int) -> Iterator[bytes]:
    """Yield encoded pictures."""
    for start in range(0, count, 100):
        yield from encoded(trials.pictures(min(100, count - start), size=size, seed=start))


def encoded(images: Tensor) -> Iterator[bytes]:
    """Yield each of uint8 [N, 3, S, S] as a JPEG."""
    for pixels in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        yield file.getvalue()


def row(source: str, case: str) -> bars.Row:
    """Return the ratio of a first load to a second one."""
    first, second, store = np.array([_seconds(source) for _ in range(_BLOCKS)]).T
    return bars.Row(
        case=case,
        measured=quartiles(first / second),
        unit="x",
        bar=BAR,
        is_floor=True,
        facts={
            "first_s": quartiles(first).median,
            "warm_s": quartiles(second).median,
            "of_it_opening_the_store_s": quartiles(store).median,
        },
    )


def _seconds(source: str) -> tuple[float, float, float]:
    """Return those of a load into an empty store, of one after it, of opening the store alone."""
    read = folder.read if Path(source, "train").is_dir() else parquet.read
    with TemporaryDirectory() as cache:
        load = partial(datasets.load, source, cache_dir=Path(cache))
        found = read(Path(source))
        times = []
        for call in (
            load,
            load,
            lambda: open_store(found, cache_dir=Path(cache), decoding=Decoding()),
        ):
            time.sleep(1.1 * TICK_NS / 1e9)
            times.append(_timed(call))
        return times[0], times[1], times[2]


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a warm start is not quick enough."""
    parser = bars.parser("warm_start", __doc__)
    parser.add_argument("--data", help="a folder or Parquet file, as `kdsearch run` takes it")
    given = parser.parse_args(argv)
    measure = partial(rows, given.data)
    return bars.tell("warm_start", __doc__, measure, given.json, threads=os.cpu_count() or 1)
