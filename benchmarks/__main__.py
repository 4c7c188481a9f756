"""Run a benchmark by name, or list them all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeAlias

import benchmarks

Main: TypeAlias = Callable[[Sequence[str]], int]


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
    for name, _, run in known:
        if argv and argv[0] == name:
            return run(argv[1:])
    for name, text, _ in known:
        print(f"{name:20} {text}")
    if argv:
        print(f"there is no benchmark {argv[0]!r}", file=sys.stderr)
    return 2 if argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
