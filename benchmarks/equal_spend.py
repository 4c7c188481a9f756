"""Test accuracy of what `kdsearch run` ships, against peers that train as many images.

Spend is counted in images x epochs, all trainings of an arm together. All arms of a setting read
the same training, validation and test images and the same teacher, choose on validation, run on one
thread, and are paired by seed: of weights, order, views and draws.

A variant is the command once more, with other flags in place of `--spend {spend}ep`:
  --variant front='--spend {spend}ep --explore front'
  --variant off='--stopping off --epochs 4 --trials 9'

Each run is a line of JSON as soon as it ends. `--json FILE` keeps these lines, and skips the runs
that it has already, for the code that made them: give another FILE for other code.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from pydantic import TypeAdapter

from benchmarks.spend_arms import (
    KDSEARCH,
    ONE_THREAD,
    ORACLE_NAME,
    PEERS,
    PLAN,
    Arm,
    Run,
    prepare,
    run,
)
from benchmarks.spend_settings import SETTINGS, write_images
from benchmarks.spend_table import table

_RUN = TypeAdapter(Run)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a bar is missed, 2 when an arm failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="benchmarks equal_spend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arms = [KDSEARCH, *PEERS]
    parser.add_argument(
        "settings", nargs="+", choices=SETTINGS, metavar="SETTING", help=", ".join(SETTINGS)
    )
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/ and trashnet/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--arms", nargs="+", choices=arms, default=arms, metavar="ARM", help=", ".join(arms)
    )
    parser.add_argument("--variant", action="append", default=[], metavar="NAME='FLAGS'")
    parser.add_argument("--workers", type=int, default=1, help="arms at a time, one thread each")
    parser.add_argument("--json", type=Path, help="append finished runs, skip those it has")
    given = parser.parse_args(argv)
    try:
        variants = dict(read_variant(text) for text in given.variant)
    except ValueError as error:
        parser.error(str(error))
    if given.data is None and any(SETTINGS[name].needs_files for name in given.settings):
        parser.error("these settings read files: give --data FOLDER")
    own = {KDSEARCH: PLAN} if KDSEARCH in given.arms else {}
    wanted = [
        Arm(setting=setting, name=name, seed=seed, flags=flags)
        for setting in given.settings
        for seed in given.seeds
        for name, flags in (dict.fromkeys(given.arms, ()) | own | variants).items()
    ]
    finished = {one.arm: one for one in read(given.json)}
    failed = 0
    for arm, found in measure(
        [arm for arm in wanted if arm not in finished], given.data, given.workers
    ):
        if isinstance(found, Run):
            finished[arm] = found
            tell(found, given.json)
        else:
            failed += 1
            print(f"{arm} failed:", file=sys.stderr)
            traceback.print_exception(found)
    is_kept = True
    for name in given.settings:
        runs = [finished[arm] for arm in wanted if arm.setting == name and arm in finished]
        lines, is_met = table(name, SETTINGS[name], runs)
        print(*lines, sep="\n", flush=True)
        is_kept &= is_met
    return 2 if failed else int(not is_kept)


def read_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the flags in `NAME=FLAGS`. Raises ValueError."""
    name, equals, flags = text.partition("=")
    if not (name and equals) or name in (KDSEARCH, ORACLE_NAME, *PEERS):
        raise ValueError(f"--variant {text!r}: expected NAME='FLAGS', no arm's NAME")
    return name, tuple(shlex.split(flags))


def read(file: Path | None) -> list[Run]:
    """Return the runs that a file holds, none where there is no file."""
    if file is None or not file.exists():
        return []
    return [_RUN.validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tell(run: Run, file: Path | None) -> None:
    """Print a run as a line of JSON, and append it to the file."""
    line = json.dumps(asdict(run))
    print(line, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")


def measure(
    arms: Sequence[Arm], below: Path | None, workers: int
) -> Iterator[tuple[Arm, Run | BaseException]]:
    """Run each arm in a process of its own; yield it as it ends with what it found or raised."""
    with (
        TemporaryDirectory() as name,
        patch.dict(os.environ, ONE_THREAD),
        ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), max_tasks_per_child=1
        ) as pool,
    ):
        folders = {setting: Path(name) / setting for setting in {arm.setting for arm in arms}}
        for setting, folder in folders.items():
            write_images(SETTINGS[setting], folder, below)
        for setting, seed in dict.fromkeys((arm.setting, arm.seed) for arm in arms):
            prepare(SETTINGS[setting], folders[setting], below, seed)
        running = {pool.submit(run, arm, folders[arm.setting], below): arm for arm in arms}
        for future in as_completed(running):
            yield running[future], future.exception() or future.result()
