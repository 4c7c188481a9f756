"""What decides a study: its request, name and file. A resumed study must ask for the same."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import ConfigDict, TypeAdapter

from kdsearch.errors import SpecError, StudyError, did_you_mean
from kdsearch.hpo.stopping import MODES
from kdsearch.space import Choice, Constant, SearchSpace, parse_space
from kdsearch.spec import Budget, digest_of

MAX_IMAGE_SIZE = 4096
MAX_SEED = 2**32 - 1
MAX_COUNT = 1024  # of threads, and of images in a measured batch
SAMPLERS = ("tpe", "random", "nsga2", "gp")
FLAT_SPACE = "resnet-kd"  # a built-in one that NSGA-II and GP draw
OBJECTIVE = "objective"  # the data of `kdsearch.search`, which is called and has no flags
_ARGUMENTS = {
    "budget_ms": "budget['latency_ms']",
    "budget_mflops": "budget['flops']",
    "budget_mparams": "budget['params']",
    "name": "path",
}
_NOT_TYPED = {
    "data_key": "the images of --data",
    "weights_key": "the content of --teacher-weights",
    "storage_study": "the name in --storage",
}
FORMAT = 2  # of study.yaml; 2: a temperature is a knob of the method that has it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """What decides a study, as `study.yaml` holds it; a resumed study must ask for the same.

    space: the YAML text itself. data_key, weights_key: digests of the images and of the teacher's
    weights file. min_accuracy: what a student must reach on validation to be shipped. from_study:
    where the first trials come from. storage: the URL of the database without its password, None
    for the study's own folder; storage_study: the study's name there, which no other has. How many
    trials to run is no part of it: a study can go on.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    data: str = "digits"
    data_key: str = ""
    image_size: int | None = None
    subset: int | None = None
    flip: bool | None = None
    teacher: str = "auto"
    teacher_weights: str | None = None
    teacher_epochs: int | None = None
    weights_key: str | None = None
    budget_ms: float | None = None
    budget_mflops: float | None = None
    budget_mparams: float | None = None
    target: str = "cpu"
    threads: int = 1
    batch: int = 1
    epochs: int | None = None
    seed: int = 0
    stopping: str = "off"
    sampler: str = "tpe"
    min_accuracy: float | None = None
    from_study: str | None = None
    space: str = ""
    storage: str | None = None
    storage_study: str | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise SpecError(f"--epochs {self.epochs}: expected at least 1")
        if self.subset is not None and self.subset < 0:
            raise SpecError(f"--subset {self.subset}: expected a number of images, or 0 for all")
        if self.image_size is not None and not 8 <= self.image_size <= MAX_IMAGE_SIZE:
            raise SpecError(
                f"--image-size {self.image_size}: expected 8 to {MAX_IMAGE_SIZE} pixels"
            )
        for name, least, most in (
            ("threads", 1, MAX_COUNT),
            ("batch", 1, MAX_COUNT),
            ("seed", 0, MAX_SEED),
        ):
            if not least <= getattr(self, name) <= most:
                told = f"{self.typed(name)} {getattr(self, name)}"
                raise SpecError(f"{told}: expected {least} to {most}")
        self._require_one_of("stopping", MODES)
        self._require_one_of("sampler", SAMPLERS)
        if self.min_accuracy is not None and not 0 < self.min_accuracy < 1:
            raise SpecError(
                f"--min-accuracy {self.min_accuracy:g}: expected a fraction between 0 and 1, as 0.9"
            )
        for flag in ("budget_ms", "budget_mflops", "budget_mparams"):
            limit = getattr(self, flag)
            if limit is not None and not 0 < limit < float("inf"):
                raise SpecError(f"{self.typed(flag)} {limit:g}: expected a number above 0")

    def _require_one_of(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            told = f"{self.typed(name)} {value!r}{did_you_mean(value, known)}"
            raise SpecError(f"{told}: expected {', '.join(known)}")

    def typed(self, name: str) -> str:
        """Return how the user calls a field, or the study's name: a flag, or an argument."""
        if self.data == OBJECTIVE:
            return _ARGUMENTS.get(name, name)
        return _NOT_TYPED.get(name, f"--{name.replace('_', '-')}")

    def value(self, name: str) -> object:
        """Return a field in the unit in which the user gave it."""
        value: object = getattr(self, name)
        if self.data == OBJECTIVE and name in ("budget_mflops", "budget_mparams"):
            return getattr(self.budget, name.replace("budget_m", ""))
        return value

    def goes_on(self, path: Path) -> str:
        """Return in words how the study at `path` goes on."""
        if self.data == OBJECTIVE:
            return "the same call goes on, where it has a path"
        return f"`{resume_command(path)}` goes on"

    @property
    def budget(self) -> Budget:
        """Return the limits in the units of Cost."""
        flops, params = self.budget_mflops, self.budget_mparams
        return Budget(
            latency_ms=self.budget_ms,
            flops=None if flops is None else flops * 1e6,
            params=None if params is None else params * 1e6,
        )

    def search_space(self) -> SearchSpace:
        """Return the space, its number of epochs fixed when the request says one."""
        space = parse_space(self.space)
        return space if self.epochs is None else space.fixed("train.epochs", self.epochs)

    def changes(self, other: StudyConfig) -> dict[str, tuple[object, object]]:
        """Return what differs: name -> (here, there)."""
        names = (item.name for item in fields(self))
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def study_path(out: Path, name: str) -> Path:
    """Return the study's directory. Raises StudyError for a name that is not one path segment."""
    if not _NAME.fullmatch(name):
        raise StudyError(
            f"--name {name!r}: a study's name starts with a letter or a digit and goes on with "
            "letters, digits, '.', '_' or '-', 100 at most"
        )
    path = out / name
    if path.is_symlink():
        raise StudyError(f"{path} is a symbolic link; a study is a directory of its own")
    return path


def free_name(out: Path, stem: str) -> str:
    """Return `stem-1`, or the next number that no study under `out` has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "study"
    taken = {path.name for path in out.glob(f"{stem}-*")} if out.is_dir() else set()
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def resume_command(path: Path) -> str:
    """Return what to type to go on with the study at `path`."""
    out = "" if path.parent == Path("results") else f" --out {shlex.quote(str(path.parent))}"
    return f"kdsearch run --name {path.name}{out}"


def read_config(path: Path) -> StudyConfig | None:
    """Return what `study.yaml` holds, None where there is none yet.

    Raises StudyError where it is damaged or of another format.
    """
    file = path / "study.yaml"
    if not file.exists():
        return None
    try:
        kept = yaml.safe_load(file.read_text(encoding="utf-8"))
        kept.pop("versions")
        found = kept.pop("format", 1)
        if found != FORMAT:
            raise StudyError(
                f"{file} has format {found}, and this kdsearch reads format {FORMAT}; open the "
                "study with the kdsearch that made it, or start another one"
            )
        return TypeAdapter(StudyConfig).validate_json(json.dumps(kept), strict=True)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(
            f"{file} is damaged ({reason}); restore it, or start another study"
        ) from error


def config_of(given: Mapping[str, object], start: StudyConfig | None = None) -> StudyConfig:
    """Return `start`, or the default request, with what the user gave; a subset of 0 is none."""
    if given.get("subset") == 0:
        given = {**given, "subset": None}
    return replace(start or StudyConfig(), **given)  # type: ignore[arg-type]


def refuse_changes(name: str, old: StudyConfig, new: StudyConfig) -> None:
    """Raise StudyError, showing the differences, unless both requests are the same."""
    changed = old.changes(new)
    if changed:
        lines = "\n".join(
            f"  {new.typed(key)}: {_short(old.value(key))} -> {_short(new.value(key))}"
            for key in changed
        )
        advice = "Leave these flags out to go on with it, or give another --name."
        if new.data == OBJECTIVE:
            advice = "Ask for the same to go on with it, or give another path."
        raise StudyError(f"the study {name!r} was started with another request:\n{lines}\n{advice}")


def refuse_sampler(config: StudyConfig) -> None:
    """Raise SpecError where the sampler of a request would not see what it must learn from.

    NSGA-II and GP ignore trials that Optuna calls pruned: pruned and rejected ones; and every
    dimension that not all trials have. GP proposes rejected candidates again.
    """
    name, budget = config.sampler, config.budget
    if name not in ("nsga2", "gp"):
        return
    limits = [] if budget.latency_ms is None else ["budget_ms"]
    if name == "gp":
        limits += ["budget_mflops"] if budget.flops is not None else []
        limits += ["budget_mparams"] if budget.params is not None else []
    over = "it learns nothing from what is over"
    reasons = [f"{over} {config.typed(limit)}" for limit in limits]
    if config.stopping != "off":
        ended = f"{config.typed('stopping')} {config.stopping}"
        reasons.append(f"it learns nothing from trials that {ended} ends")
    owners = [n for n, dim in config.search_space().all_dims() if _owns_dims(dim)]
    if owners:
        shown = ", ".join(owners[:3]) + (", …" if owners[3:] else "")
        flat = "" if config.data == OBJECTIVE else f", as --space {FLAT_SPACE}"
        reasons.append(
            f"it draws what the options of {shown} own at random: it needs a space in which no "
            f"option owns dimensions{flat}"
        )
    if reasons:
        sampler = config.typed("sampler")
        raise SpecError(
            f"{sampler} {name} does not fit this study: {'; '.join(reasons)}. Leave {sampler} out "
            "for tpe, or change that"
        )


def _owns_dims(dim: object) -> bool:
    owned = dim.owned.values() if isinstance(dim, Choice) else ()
    return any(not isinstance(child, Constant) for group in owned for child in group.values())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({digest_of(value)})"
