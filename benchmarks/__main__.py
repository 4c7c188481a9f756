"""Run a benchmark by name, those of speed together as `all`, or list them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch

import benchmarks

Main: TypeAlias = Callable[[Sequence[str]], int]
# The bars of speed, none of which needs an argument, the quick ones first.
SPEED = (
    "input_share",
    "scheduling",
    "input_pipeline",
    "warm_start",
    "cached_kd",
    "reject",
    "live_teacher",
    "packing",
)
ON_GPU = ("graph_step", "packed_on_gpu")


def found() -> Iterator[tuple[str, str, Main]]:
    """Yield each benchmark, a module with `main(argv)`: name, first line of its text, main."""
    for info in iter_modules(benchmarks.__path__):
        if info.name != "__main__":
            module = import_module(f"benchmarks.{info.name}")
            if hasattr(module, "main"):
                yield info.name, (module.__doc__ or "").partition("\n")[0], module.main


def main(argv: Sequence[str]) -> int:
    """Return the exit status: that of the benchmark, 2 for a name that there is not."""
    known = list(found())
    if argv and argv[0] == "all":
        mains = {name: run for name, _, run in known}
        return together([mains[name] for name in (*SPEED, *_on_gpu())], argv[1:])
    for name, _, run in known:
        if argv and argv[0] == name:
            return run(argv[1:])
    for name, text, _ in known:
        print(f"{name:20} {text}")
    print(f"{'all':20} {', '.join(SPEED)}, with a GPU also {', '.join(ON_GPU)}; one JSON")
    if argv:
        print(f"there is no benchmark {argv[0]!r}", file=sys.stderr)
    return 2 if argv else 0


def _on_gpu() -> tuple[str, ...]:
    return ON_GPU if torch.cuda.is_available() else ()


def together(mains: Iterable[Main], argv: Sequence[str]) -> int:
    """Run benchmarks one after another; put their JSON into one list; return the worst status."""
    parser = argparse.ArgumentParser(prog="benchmarks all")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    told, statuses = [], [0]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "one.json"
        for run in mains:
            statuses.append(run(["--json", str(file)]))
            told.append(json.loads(file.read_text(encoding="utf-8")))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
