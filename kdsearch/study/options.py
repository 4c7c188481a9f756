"""How a study is run: options that decide none of its candidates. No torch, and quick to import.

Each option of a command or function is declared once, here or in `StudyConfig`: a field with its
default, help text and parser. The command line builds its flags from these fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from typing import Any

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.train_spec import MAX_COUNT

ENGINES = ("local", "ray")
AUTO = "auto"
SEARCH, DATA, TARGET = "Search", "Data and teacher", "Budget and target"
REFIT, PLACE, OUTPUT = "After the search", "Where trials run", "Output"
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|d)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COUNT = re.compile(r"[1-9][0-9]{0,3}")
_EPOCHS = re.compile(r"[1-9][0-9]{0,8}")
_RAY_ONLY = ("gpus_per_trial", "ray_address")
_REFIT_ONLY = ("refit_epochs", "seeds")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The values that an option accepts, in words, and a test of a value. known: them by name."""

    words: str
    test: Callable[[Any], bool]
    known: tuple[str, ...] = ()

    def refusal(self, value: object) -> str:
        """Return what is wrong with a value and what is accepted; '' for an accepted one."""
        with suppress(TypeError):  # a text for a number
            if self.test(value):
                return ""
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        return f"{shown}{did_you_mean(str(value), self.known)}: expected {self.words}"


def between(least: int, most: int) -> Accepted:
    """Return the numbers from `least` to `most`."""
    return Accepted(f"{least} to {most}", lambda value: least <= value <= most)


AT_MOST = Accepted(f"at most {MAX_COUNT}", lambda value: value <= MAX_COUNT)
COUNT = between(1, MAX_COUNT)


def one_of(known: tuple[str, ...]) -> Accepted:
    """Return the known names."""
    return Accepted(", ".join(known), known.__contains__, known)


ANY = Accepted("anything", lambda value: True)
ABOVE_0 = Accepted("a number above 0", lambda value: 0 < value < inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line shows of a field, and the values it accepts; None is always one.

    parse: reads (text, flag), where the type does not. default: shown where the field's is None.
    """

    help: str
    panel: str
    accepted: Accepted = ANY
    metavar: str | None = None
    parse: Callable[[str, str], object] | None = None
    default: str | None = None


def option(value: object, text: str, panel: str, accepted: Accepted = ANY, **shown: Any) -> Any:
    """Return a dataclass field with a default and a help text, which is also a flag."""
    declared = Option(help=text, panel=panel, accepted=accepted, **shown)
    return field(default=value, metadata={"option": declared})


def check_options(configuration: Any, name_of: Callable[[str], str]) -> None:
    """Raise SpecError for the first option of a dataclass with a value that it does not accept.

    name_of: returns the user's name of a field.
    """
    for name, declared in options_of(type(configuration)).items():
        value = getattr(configuration, name)
        if value is not None and (refusal := declared.accepted.refusal(value)):
            raise SpecError(f"{name_of(name)} {refusal}")


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


def read_epochs(text: str, name: str) -> int:
    """Read a number of epochs: `200ep`, or `200`. Raises SpecError."""
    number = text.strip().removesuffix("ep")
    if not _EPOCHS.fullmatch(number):
        raise SpecError(f"{name} {text!r}: expected a number of epochs above 0, as 200ep")
    return int(number)


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
    processes on a CPU and in threads on a GPU. trials, spend, flat_after, until, refit: None takes
    the value of the study's last run. Raises SpecError for a value that cannot be used.
    """

    trials: int | None = option(
        None, "Trials in all, those of earlier runs included.", SEARCH, COUNT, default="20"
    )
    spend: int | None = option(
        None,
        "Epochs of all trainings together, as 200ep; the student that ships gets most of them.",
        SEARCH,
        COUNT,
        metavar="EPOCHS",
        parse=read_epochs,
    )
    time_limit: float | None = option(
        None,
        "Start no further trial after this time: 2h, 30m, 90s or seconds. A quarter of it is for "
        "first looks; trainings that it ends are resumed by the next run.",
        SEARCH,
        ABOVE_0,
        metavar="TIME",
        parse=read_duration,
    )
    flat_after: int | None = option(
        None,
        "End the search after so many complete trials that left the front unchanged; 0: never.",
        SEARCH,
        Accepted("a number of trials, or 0 for never", lambda count: 0 <= count <= MAX_COUNT),
    )
    until: float | None = option(
        None,
        "End the search once the best student reaches this validation metric, as 0.95, beyond its "
        "noise; 0: never.",
        SEARCH,
        Accepted("a value of the metric, as 0.95, or 0 for never", isfinite),
    )
    refit: int | None = option(
        None,
        "Retrain so many candidates of the front, and their controls, under several seeds.",
        REFIT,
        AT_MOST,
        default="0",
    )
    seeds: int | None = option(
        None, "Seeds of each retrained candidate; needs --refit.", REFIT, AT_MOST, default="3"
    )
    refit_epochs: int | None = option(
        None,
        "Epochs of each retraining; needs --refit.",
        REFIT,
        AT_MOST,
        default="as in the search",
    )
    baselines: bool = option(
        False,
        "Show FLOPs and parameters of common timm networks in the report.",
        REFIT,
    )
    device: str = option(AUTO, "auto, cpu, cuda or cuda:N.", PLACE)
    workers: int | str = option(
        1,
        "Trials at a time; auto: one a core, or the fastest number on a GPU.",
        PLACE,
        Accepted("a number above 0, or auto", lambda count: count == AUTO or count > 0),
        metavar="N",
        parse=read_workers,
    )
    engine: str = option(
        "local",
        "Where trials run: local, or ray.",
        PLACE,
        Accepted("local or ray", ENGINES.__contains__, ENGINES),
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
        ABOVE_0,
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
        check_options(self, flag)
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
