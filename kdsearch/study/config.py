"""The configuration that decides a study, its name and its file `study.yaml`. No torch.

A resumed study must have the same configuration. Importing this module is quick, since the command
line builds its flags from it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from kdsearch.data.sizes import FITS, MAX_MEGAPIXELS
from kdsearch.documents import MAX_BYTES, mistake_in, parse_mapping, read_text
from kdsearch.errors import SpaceError, SpecError, StudyError
from kdsearch.space import SearchSpace
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Budget
from kdsearch.study.budget_shares import LIMITS, Share, read_limit
from kdsearch.study.options import (
    ABOVE_0,
    COUNT,
    DATA,
    SEARCH,
    TARGET,
    Accepted,
    between,
    check_options,
    flag,
    one_of,
    option,
    options_of,
)

MAX_IMAGE_SIZE = 4096
MAX_SEED = 2**32 - 1
MAX_COUNT = 1024  # of threads, and of images in a measured batch
HALVING = "halving"
STOPPING = (HALVING, "off", "safe", "tight")
SAMPLERS = ("tpe", "random", "nsga2", "gp")
FLAT_SAMPLERS = ("nsga2", "gp")
EXPLORE = ("best", "front")
FLAT_SPACE = "resnet-kd"  # a built-in space that fits NSGA-II and GP
OBJECTIVE = "objective"  # the data of `kdsearch.search`, a function without flags
_ARGUMENTS = {
    "budget_ms": "budget['latency_ms']",
    "budget_mflops": "budget['flops']",
    "budget_mparams": "budget['params']",
    "name": "path",
}
_NO_FLAGS = {
    "data_key": "the images of --data",
    "weights_key": "the content of --teacher-weights",
    "pretrained_key": "the content of the pretrained weights",
    "nms_ms": "the time of the suppression of the teacher's boxes",
    "look_epochs": "the epochs of a first look",
    "left_out": "the methods that the teacher cannot teach",
    "without_weights": "the families without pretrained weights",
    "storage_study": "the name in --storage",
}
_parsed = lru_cache(maxsize=4)(partial(parse_space, source="space"))
FORMAT = 2  # of study.yaml; 2: a temperature is a knob of the method that has it
FRACTION = Accepted("a fraction between 0 and 1, as 0.9", lambda value: 0 < value < 1)
SUBSET = Accepted("a number of images, or 0 for all", lambda count: count >= 0)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _limit(text: str) -> Any:
    return option(None, text, TARGET, ABOVE_0, metavar="LIMIT", parse=read_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """The configuration of a study, as `study.yaml` holds it.

    budget_shares: the limits that the user gave as shares of the teacher's cost, by field; such a
    limit is None until the teacher is priced. nms_ms: milliseconds of `budget_ms` that suppression
    takes, known once the teacher is. look_epochs: after which a trial of `halving` pauses;
    None: it is trained in full. space: the YAML text itself. data_key, weights_key, pretrained_key:
    digests of the images, of the teacher's files and of the weights that students start from.
    left_out: methods that the teachers cannot teach. without_weights: options of a built-in space
    whose weights are missing, by dimension. storage: the URL of the database without its password,
    None for the study's own folder; storage_study: the study's name there, which no other has.

    Example: StudyConfig(data="digits", budget_mflops=1, stopping="safe")
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    data: str = option(
        "digits", "digits, a torchvision set by name, a folder (train/CLASS/*) or Parquet.", DATA
    )
    data_key: str = ""
    image_size: int | None = option(
        None, "Side of the stored images in pixels.", DATA, between(8, MAX_IMAGE_SIZE)
    )
    fit: str = option(
        FITS[0],
        "How an image becomes a square. crop: its centre; pad: all of it between black margins; "
        "squash: stretched.",
        DATA,
        one_of(FITS),
    )
    max_megapixels: float = option(
        MAX_MEGAPIXELS, "Leave out larger images as unreadable.", DATA, ABOVE_0
    )
    image_column: str | None = option(
        None, "Column of the images in Parquet.", DATA, default="img, image or their like"
    )
    label_column: str | None = option(
        None, "Column of the labels in Parquet.", DATA, default="label, labels or their like"
    )
    task: str | None = option(None, "Labels to read, where a folder has several kinds.", DATA)
    subset: int | None = option(
        None, "Train on so many images, stratified; 0: on all, also with a --config.", DATA, SUBSET
    )
    flip: bool | None = option(None, "Mirror half of the training views, or none.", DATA)
    metric: str | None = option(
        None,
        "Compare by accuracy, balanced_accuracy, top5 or macro_f1; masks: miou, pixel_accuracy.",
        DATA,
        default="accuracy, of masks miou",
    )
    teacher: str = option(
        "auto",
        "auto, cifar_resnet56, timm:NAME, torchvision:NAME, smp:ARCHITECTURE/ENCODER, "
        "open_clip:MODEL, study:FOLDER or FILE.py:FACTORY.",
        DATA,
    )
    teacher_weights: str | None = option(None, "The teacher's weights file.", DATA)
    teacher_epochs: int | None = option(
        None, "Fine-tune the teacher on the data for so many epochs.", DATA, COUNT
    )
    teacher_classes: str | None = option(
        None, "A file with the teacher's class names, in the order of its head.", DATA
    )
    weights_key: str | None = None
    pretrained_weights: str | None = option(
        None,
        "Files of pretrained weights by network, as timm:resnet18=FILE; separated by commas. "
        "Without: the hub's cache, or a download.",
        DATA,
    )
    student_weights: str | None = option(
        None, "The file that students start from with init pretrained, or FAMILY=FILE.", DATA
    )
    pretrained_key: str | None = None
    budget_ms: float | None = _limit(
        "Latency of the exported file on the --target, or 0.5x: half of the teacher's."
    )
    budget_mflops: float | None = _limit(
        "Millions of multiply-adds at batch 1, or a share of the teacher's."
    )
    budget_mparams: float | None = _limit("Millions of parameters, or a share of the teacher's.")
    budget_shares: Mapping[str, float] = field(default_factory=dict)
    budget_with_nms: bool = option(
        False,
        "Count the non-maximum suppression of a detector's boxes in --budget-ms, at first that of "
        "the teacher's.",
        TARGET,
    )
    nms_ms: float | None = None
    target: str = option(
        "cpu",
        "Measure latency on: cpu, torch, openvino, mnn, ncnn, cuda, tensorrt, or cmd:COMMAND, "
        "which gets the ONNX file and prints milliseconds.",
        TARGET,
    )
    threads: int = option(1, "Threads of the target.", TARGET, between(1, MAX_COUNT))
    batch: int = option(1, "Images in a batch on the target.", TARGET, between(1, MAX_COUNT))
    epochs: int | None = option(
        None, "Epochs of a training in full.", SEARCH, COUNT, default="of --space, or --spend"
    )
    look_epochs: int | None = None
    batch_size: int | None = option(
        None, "Images in a batch of a training.", SEARCH, COUNT, default="by the steps"
    )
    seed: int = option(
        0, "Seed of splits, views, order, weights and sampler.", SEARCH, between(0, MAX_SEED)
    )
    stopping: str = option(
        HALVING,
        "halving: first looks are short, and the best trainings resume; off: train each trial in "
        "full; safe or tight: end trials that cannot reach the front.",
        SEARCH,
        one_of(STOPPING),
    )
    sampler: str = option(
        "tpe",
        "Sample trials by tpe or random; by nsga2 or gp where no option owns dimensions, as in "
        "--space resnet-kd.",
        SEARCH,
        one_of(SAMPLERS),
    )
    explore: str = option(
        "best",
        "best: sample students that use most of the budget; front: of every cost.",
        SEARCH,
        one_of(EXPLORE),
    )
    min_accuracy: float | None = option(
        None, "Lowest validation metric, as 0.9, of an exported student.", SEARCH, FRACTION
    )
    from_study: str | None = option(
        None, "Name or folder of a study whose best recipes are tried first.", SEARCH
    )
    space: str = option("", "A built-in space or a YAML file.", SEARCH)
    left_out: tuple[str, ...] = ()
    without_weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    storage: str | None = None
    storage_study: str | None = None

    def __post_init__(self) -> None:
        check_options(self, self.flag)

    def flag(self, name: str) -> str:
        """Return the user's name of a field, or of the study's `name`: a flag or an argument."""
        if self.data == OBJECTIVE:
            return _ARGUMENTS.get(name, name)
        return _NO_FLAGS.get(name, flag(name))

    def value(self, name: str) -> object:
        """Return a field in the unit in which the user gave it."""
        value: object = getattr(self, name)
        if value is None and name in self.budget_shares:
            return Share(self.budget_shares[name])
        if self.data == OBJECTIVE and name in ("budget_mflops", "budget_mparams"):
            return getattr(self.budget, name.replace("budget_m", ""))
        return value

    def how_to_resume(self, path: Path) -> str:
        """Return how the user resumes the study at `path`, in words."""
        if self.data == OBJECTIVE:
            return "the same call resumes the study, where it has a path"
        return f"`{resume_command(path)}` resumes the study"

    @property
    def budget(self) -> Budget:
        """Return the limits in the units of Cost."""
        flops, params = self.budget_mflops, self.budget_mparams
        latency, nms = self.budget_ms, self.nms_ms
        return Budget(
            latency_ms=latency if latency is None or nms is None else latency - nms,
            flops=None if flops is None else flops * 1e6,
            params=None if params is None else params * 1e6,
        )

    @property
    def trains_teachers(self) -> bool:
        """Return whether every teacher is trained or fine-tuned here, on the training images."""
        names = [name.strip() for name in self.teacher.split(",")]
        return self.teacher_epochs is not None or all(name == "auto" for name in names)

    @property
    def is_wide(self) -> bool:
        """Return whether draws sample widths, never the share of the budget; see `study/width`.

        NSGA-II breeds students of every cost. What `kdsearch.search` calls a width is the user's.
        """
        is_by_share = self.explore == "best" and self.sampler not in FLAT_SAMPLERS
        return not is_by_share or self.data == OBJECTIVE

    def is_limited(self, name: str) -> bool:
        """Return whether a limit is set, as a number or as a share that is not resolved yet."""
        return getattr(self, name) is not None or name in self.budget_shares

    def axis(self) -> str:
        """Return the cost axis of the front; see `Budget.axis`."""
        return next((LIMITS[name][0] for name in LIMITS if self.is_limited(name)), "flops")

    def search_space(self) -> SearchSpace:
        """Return the space without what is left out; `epochs`, `batch_size` fixed where set."""
        space = _parsed(self.space)
        for name, options in {"method.name": self.left_out, **self.without_weights}.items():
            space = space.without(name, options)
        for name in ("epochs", "batch_size"):
            if (value := getattr(self, name)) is not None:
                space = space.fixed(f"train.{name}", value)
        return space

    @property
    def pruning(self) -> str:
        """Return how running trials are pruned: `safe`, `tight` or `off`."""
        return "off" if self.stopping == HALVING else self.stopping

    def controls(self, methods: Iterable[str]) -> list[str]:
        """Return the methods of controls that the teachers can teach."""
        return [method for method in methods if method not in self.left_out]

    def changes(self, other: StudyConfig) -> dict[str, tuple[object, object]]:
        """Return the fields that differ: name -> (here, there); a share goes with its limit."""
        names = (item.name for item in fields(self) if item.name != "budget_shares")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# The options that images and teacher, and the device of a latency, are made from.
DATA_FIELDS = tuple(name for name, it in options_of(StudyConfig).items() if it.panel == DATA)
TARGET_FIELDS = ("target", "threads", "batch")


def study_path(out: Path, name: str) -> Path:
    """Return the study's directory. Raises StudyError for a name that is not one path segment."""
    if not _NAME.fullmatch(name):
        raise StudyError(
            f"--name {name!r}: a study's name starts with a letter or a digit; letters, digits, "
            "'.', '_' or '-' may follow, 100 at most"
        )
    path = out / name
    if path.is_symlink():
        raise StudyError(f"{path} is a symbolic link; a study is a directory of its own")
    return path


def free_name(out: Path, stem: str) -> str:
    """Return `stem-1`, or the next number that no study under `out` has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "study"
    taken = {path.name for path in out.glob(f"{stem}-*")} if out.is_dir() else set()
    return next(name for n in count(1) if (name := f"{stem}-{n}") not in taken)


def resume_command(path: Path) -> str:
    """Return the command that resumes the study at `path`."""
    out = "" if path.parent == Path("results") else f" --out {shlex.quote(str(path.parent))}"
    return f"kdsearch run --name {path.name}{out}"


def read_config(path: Path) -> StudyConfig | None:
    """Return what `study.yaml` holds, None where there is none yet.

    Raises StudyError where it is damaged or of another format.
    """
    file = path / "study.yaml"
    if not file.exists():
        return None
    from pydantic import TypeAdapter  # 0.1 s, which `--help` has not

    try:
        kept = parse_mapping(read_text(file, 4 * MAX_BYTES))
        kept.pop("versions")
        found = kept.pop("format", 1)
        if found != FORMAT:
            raise StudyError(
                f"{file} has format {found}, and this kdsearch reads format {FORMAT}; open it "
                "with the kdsearch that made it, or start another study"
            )
        config = TypeAdapter(StudyConfig).validate_json(json.dumps(kept), strict=True)
        _parsed(config.space)
    except (OSError, ValueError, KeyError, SpecError, SpaceError) as error:
        raise StudyError(
            f"{file} is damaged ({mistake_in(error)}); restore it, or start another study"
        ) from error
    return config


def config_of(given: Mapping[str, object], start: StudyConfig | None = None) -> StudyConfig:
    """Return `start`, or the defaults, with the user's fields; a subset of 0 is None.

    A limit may be a Share.
    """
    start = start or StudyConfig()
    if given.get("subset") == 0:
        given = {**given, "subset": None}
    return replace(start, **_with_shares(given, start))  # type: ignore[arg-type]


def _with_shares(given: Mapping[str, object], start: StudyConfig) -> dict[str, object]:
    """Return the user's fields with each Share moved to `budget_shares`.

    Its limit is that of `start` where the share is the same; else None, to be resolved.
    """
    fields, shares = dict(given), dict(start.budget_shares)
    for name in (name for name in LIMITS if name in given):
        limit = given[name]
        if isinstance(limit, Share):
            is_kept = shares.get(name) == limit.of_teacher
            fields[name] = getattr(start, name) if is_kept else None
            shares[name] = limit.of_teacher
        elif limit != getattr(start, name):
            shares.pop(name, None)
    return fields if shares == start.budget_shares else {**fields, "budget_shares": shares}
