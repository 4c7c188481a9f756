"""What was measured, beside the bar that it must keep: as a table, as JSON, as an exit status."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from benchmarks.paired import Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case. The median must be at most the bar, or at least where `is_floor`.

    facts: what stands beside it, by names that end in their unit. series: what only the JSON has.
    """

    case: str
    measured: Ratio
    unit: str
    bar: float
    is_floor: bool = False
    facts: Mapping[str, float | str] = field(default_factory=dict)
    series: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        """Whether the median keeps the bar."""
        value = self.measured.median
        return value >= self.bar if self.is_floor else value <= self.bar

    def __str__(self) -> str:
        sign = ">=" if self.is_floor else "<="
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        verdict = "met" if self.is_met else "MISSED"
        bar = f"{sign} {self.bar:g} {self.unit}"
        return f"{self.case:30} {self.measured!s:>26} {bar:>12} {verdict:7} {facts}"


Rows: TypeAlias = Sequence[Row]


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows `--json`."""
    made = argparse.ArgumentParser(prog=f"benchmarks {name}", description=text)
    made.add_argument("--json", type=Path, help="write there what is printed")
    return made


def tell(
    name: str,
    text: str | None,
    measure: Callable[[], Rows],
    file: Path | None,
    *,
    threads: int = 1,
) -> int:
    """Measure, print a table, write JSON where asked; return 1 for a missed bar, else 0."""
    before, usual = _load(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = measure()
    finally:
        torch.set_num_threads(usual)
    load = [before, _load()]
    print(f"{name}: {(text or '').partition(chr(10))[0]}")
    for row in rows:
        print(f"  {row}")
    print(f"  load {load[0]} to {load[1]} on {os.cpu_count()} cores", flush=True)
    if file:
        told = {
            "benchmark": name,
            "what": (text or "").strip(),
            "machine": machine(),
            "load": load,
            "rows": [asdict(row) | {"is_met": row.is_met} for row in rows],
        }
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.is_met for row in rows) else 1


def on_gpu(run: Callable[[], int]) -> int:
    """Return what `run` returns, or 2 and a word on a machine without a GPU."""
    if torch.cuda.is_available():
        return run()
    print("this benchmark needs a CUDA device, and there is none", file=sys.stderr)
    return 2


def machine() -> str:
    """Return the processor's kind, the number of cores, the GPU and the version of torch."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{gpu}{kind}, {os.cpu_count()} cores, torch {torch.__version__}"


def _load() -> float:
    return round(os.getloadavg()[0], 1)
