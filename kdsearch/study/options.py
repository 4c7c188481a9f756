"""How a study is run: options that decide none of its candidates. No torch, and quick to import.

Each option of a command or function is declared once, here or in `StudyConfig`: a field with its
default, help text and parser. The command line builds its flags from these fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from kdsearch.errors import SpecError, did_you_mean

ENGINES = ("local", "ray")
AUTO = "auto"
SEARCH, DATA, TARGET = "Search", "Data and teacher", "Budget and target"
REFIT, PLACE, OUTPUT = "After the search", "Where trials run", "Output"
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COUNT = re.compile(r"[1-9][0-9]{0,3}")
_RAY_ONLY = ("gpus_per_trial", "ray_address")
_REFIT_ONLY = ("refit_epochs", "seeds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line shows of a field. parse: reads (text, flag), where the type does not.

    default: shown in the help text where the field's own default is None.
    """

    help: str
    panel: str
    metavar: str | None = None
    parse: Callable[[str, str], object] | None = None
    default: str | None = None


def option(value: object, help_text: str, panel: str, **shown: Any) -> Any:
    """Return a dataclass field with a default that is also a flag of the command line."""
    return field(default=value, metadata={"option": Option(help=help_text, panel=panel, **shown)})


def options_of(cls: type) -> dict[str, Option]:
    """Return the fields of a dataclass that are options, by name."""
    found = {item.name: item.metadata.get("option") for item in fields(cls)}
    return {name: each for name, each in found.items() if each is not None}


def flag(name: str) -> str:
    """Return the flag of a field: `--budget-ms` for `budget_ms`."""
    return f"--{name.replace('_', '-')}"


def read_duration(text: str, name: str) -> float:
    """Read seconds, or a number with a unit: `90`, `90s`, `30m`, `2h`, `1.5d`. Raises SpecError."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not seconds > 0:
        raise SpecError(f"{name} {text!r}: expected seconds above 0, or a time as 90s, 30m, 2h, 1d")
    return seconds


def read_workers(text: str, name: str) -> int | str:
    """Read a number of workers, or `auto`. Raises SpecError."""
    if text == AUTO:
        return text
    if not _COUNT.fullmatch(text):
        raise SpecError(f"{name} {text!r}: expected a number above 0, or auto")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a study is run. A later run of the same study may choose other options.

    time_limit, trial_timeout: seconds. workers: one runs in this process; several run in
    processes on a CPU and in threads on a GPU. trials, flat_after, refit: None takes the value of
    the study's last run. Raises SpecError for a value that cannot be used.
    """

    trials: int | None = option(
        None, "Trials in all, those of earlier runs included.", SEARCH, default="20"
    )
    time_limit: float | None = option(
        None,
        "Start no further trial after this time: 2h, 30m, 90s or seconds.",
        SEARCH,
        metavar="TIME",
        parse=read_duration,
    )
    flat_after: int | None = option(
        None,
        "End the search after so many complete trials that left the front unchanged; 0: never.",
        SEARCH,
    )
    refit: int | None = option(
        None,
        "Retrain so many candidates of the front, and their controls, under several seeds.",
        REFIT,
        default="0",
    )
    seeds: int | None = option(
        None, "Seeds of each retrained candidate; needs --refit.", REFIT, default="3"
    )
    refit_epochs: int | None = option(
        None, "Epochs of each retraining; needs --refit.", REFIT, default="as in the search"
    )
    device: str = option(AUTO, "auto, cpu, cuda or cuda:N.", PLACE)
    workers: int | str = option(
        1,
        "Trials at a time; auto: one a core, or the fastest number on a GPU.",
        PLACE,
        metavar="N",
        parse=read_workers,
    )
    engine: str = option(
        "local", "Where trials run: local, or ray (pip install kdsearch\\[ray]).", PLACE
    )
    ray_address: str | None = option(
        None,
        "none: start a Ray on this machine; auto or HOST:PORT: use a cluster.",
        PLACE,
        default="none",
    )
    gpus_per_trial: float | None = option(
        None, "Share of a GPU that each trial on Ray gets.", PLACE, default="1"
    )
    trial_timeout: float | None = option(
        None,
        "Fail a trial, alone, after this time: 2h, 30m, 90s or seconds. Trials then run in "
        "processes, which can be ended; on a GPU they run one at a time, which is slower.",
        PLACE,
        metavar="TIME",
        parse=read_duration,
    )
    storage: str | None = option(
        None,
        "Where trials are kept: an SQLAlchemy URL, as postgresql://user@host/database. Put the "
        "password into PGPASSWORD.",
        PLACE,
        default="study.db (SQLite) in the study's folder",
    )
    log: tuple[str, ...] = option(
        (), "tensorboard, mlflow, wandb or FILE.py:CLASS; repeatable.", OUTPUT
    )
    callback: str | None = option(
        None, "MODULE:FUNCTION or FILE.py:FUNCTION, called with (study, record).", OUTPUT
    )

    def __post_init__(self) -> None:
        for name in ("trials", "time_limit", "trial_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise SpecError(f"{flag(name)} {value:g}: expected a number above 0")
        if self.workers != AUTO and not (isinstance(self.workers, int) and self.workers > 0):
            raise SpecError(f"--workers {self.workers!r}: expected a number above 0, or auto")
        if self.flat_after is not None and self.flat_after < 0:
            raise SpecError(
                f"--flat-after {self.flat_after}: expected a number of trials, or 0 for never"
            )
        if self.engine not in ENGINES:
            hint = did_you_mean(self.engine, ENGINES)
            raise SpecError(f"--engine {self.engine!r}{hint}: expected {' or '.join(ENGINES)}")
        if self.engine != "ray":
            self._refuse(_RAY_ONLY, "trials on Ray", "--engine ray")
        if not self.refit:
            self._refuse(_REFIT_ONLY, "refits", "--refit 3")

    def _refuse(self, names: tuple[str, ...], what: str, advice: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None:
                shown = f"{flag(name)} {value}"
                raise SpecError(f"{shown} is for {what}: give {advice} too, or leave it out")
