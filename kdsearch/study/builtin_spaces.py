"""Built-in search spaces, and checks of the families, methods and knobs that a space names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeAlias, TypeVar

from kdsearch.data.base import CLASSIFICATION
from kdsearch.errors import KDSearchError, SpaceError, did_you_mean
from kdsearch.models import heads, students
from kdsearch.space import Dim, Float, Int, SearchSpace, Value, options_in
from kdsearch.space_yaml import load_space, parse_space
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec, make
from kdsearch.study.config import read_config
from kdsearch.train_spec import OPTIMIZERS

_HERE = Path(__file__).parents[1]
# In a wheel the folder is inside the package; in a checkout, next to it.
_FOLDERS = (_HERE / "search_spaces", _HERE.parent / "search_spaces")
_SECTIONS = ("student", "method", "train")
_COMMON = tuple(item.name for item in fields(DistillSpec) if item.name not in ("method", "knobs"))
SMALL_IMAGE = 64  # px
FEW_IMAGES = 5000  # with fewer, pretrained networks alone are searched
KnobsOf: TypeAlias = Callable[[str], list[str]]
T = TypeVar("T")


def builtin() -> dict[str, Path]:
    """Return the files of the built-in spaces, by name."""
    return {file.stem: file for folder in _FOLDERS for file in sorted(folder.glob("*.yaml"))}


def is_builtin(text: str) -> bool:
    """Return whether a text is that of a built-in space."""
    return any(text == file.read_text(encoding="utf-8") for file in builtin().values())


def default_spaces(
    data: str, size: int, images: int, task: str = CLASSIFICATION
) -> tuple[str, ...]:
    """Return the names of the spaces for a data set, best first; the last needs no weights.

    A data set may have its own; else task, image size and number of training images decide.
    """
    if data in builtin():
        return (data,)
    if f"{task}-small" in builtin() and task != CLASSIFICATION:
        return (f"{task}-small",)
    if size < SMALL_IMAGE:
        return ("classification-small",)
    return (
        "transfer" if images < FEW_IMAGES else "classification-mobile",
        "classification-scratch",
    )


def find_space(name: str) -> SearchSpace:
    """Read and check a space: a built-in one, a YAML file, or the folder of a study.

    Raises SpaceError with every mistake in it.
    """
    known = builtin()
    path = known.get(name, Path(name))
    if path.is_dir() and (study := read_config(path)) is not None:
        return parse_space(study.space, source=str(path / "study.yaml"), check=check_space)
    if not path.is_file():
        hint = did_you_mean(name, known)
        raise SpaceError(
            f"--space {name!r} is neither a file, a study's folder nor a built-in space{hint}; "
            f"built in: {', '.join(known)}"
        )
    return load_space(path, check=check_space)


def check_space(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """Yield (dimension, mistake) for each unknown name and each value that cannot be used."""
    if "student.family" not in space.dims:
        yield "student", "the space has no 'student.family'"
    families = [*map(str, options_in(space.dims.get("student.family")))]
    methods = [*map(str, options_in(space.dims.get("method.name")))] or ["kd"]
    yield from _unknown_plugins(space, "student.family", families, _student_knobs)
    yield from _unknown_plugins(space, "method.name", methods, _method_knobs)
    for name, dim in space.all_dims():
        section, _, rest = name.partition(".")
        if section not in _SECTIONS:
            hint = did_you_mean(section, _SECTIONS)
            yield name, f"unknown section {section!r}{hint}; known: {', '.join(_SECTIONS)}"
        elif section == "train":
            yield from _check_train(name, rest, dim)
        elif section == "student" and rest.startswith(heads.PREFIX):
            yield from _check_head(name, rest.removeprefix(heads.PREFIX), dim)
        elif section == "student" and rest not in ("family", "resolution", "init"):
            yield from _check_owned(name, rest, families, _student_knobs, "family")
            yield from _check_student(name, rest, dim)
        elif section == "method" and rest != "name":
            yield from _check_owned(name, rest, methods, _method_knobs, "method")
            yield from _check_method(name, rest, methods, dim)


def _unknown_plugins(
    space: SearchSpace, name: str, options: Sequence[str], knobs_of: KnobsOf
) -> Iterator[tuple[str, str]]:
    for option in options:
        try:
            knobs_of(option)
        except KDSearchError as error:
            own = f"{name.partition('.')[0]}.{option}"
            yield own if own in space.lines else name, str(error)


def _student_knobs(family: str) -> list[str]:
    students.check(StudentSpec(family=family))
    return [*students.knobs_of(family), "resolution", "init"]


def _method_knobs(method: str) -> list[str]:
    from kdsearch.training import distiller

    return [*dict.fromkeys([*distiller.knobs_of(method), *_COMMON])]


def _check_owned(
    name: str, rest: str, options: Sequence[str], knobs_of: KnobsOf, what: str
) -> Iterator[tuple[str, str]]:
    """Check `<option>.<knob>`: the space has the option, and the option has the knob."""
    owner = next((option for option in options if rest.startswith(f"{option}.")), None)
    if owner is None:
        stem = rest.partition(".")[0]
        hint = did_you_mean(stem, [*options, what])
        if what == "method" and stem in _COMMON:
            hint = f"; write it under each method, as method.name.choice.{options[0]}.{stem}"
        yield name, f"{stem!r} is no {what} of this space{hint}; it has {', '.join(options)}"
        return
    knob = rest.removeprefix(f"{owner}.")
    try:
        known = knobs_of(owner)
    except KDSearchError:
        return  # the unknown option is reported by its own line
    if knob not in known:
        hint = did_you_mean(knob, known)
        yield name, f"unknown knob {knob!r} for {what} {owner!r}{hint}; known: {', '.join(known)}"


def _check_student(name: str, rest: str, dim: Dim) -> Iterator[tuple[str, str]]:
    """Check both ends of a knob's range against the family."""
    family, _, knob = rest.partition(".")

    def check(value: Value) -> None:
        students.check_values(StudentSpec(family=family, knobs={knob: value}))

    if family in students.FAMILIES.names() and knob in students.knobs_of(family):
        yield from _refused(name, check, _ends(dim))


def _check_head(name: str, rest: str, dim: Dim) -> Iterator[tuple[str, str]]:
    """Check a head's kinds, or a knob that some head has."""
    owner, _, knob = rest.rpartition(".")
    kinds = [*map(str, options_in(dim))] if rest == "kind" else [owner] if owner else []
    if mistakes := [*_refused(name, heads.knobs_of, kinds)]:
        yield from mistakes
        return
    known = {known for kind in kinds or heads.names() for known in heads.knobs_of(kind)}
    if rest != "kind" and knob not in known:
        hint = did_you_mean(knob, known)
        yield name, f"no head has the knob {knob!r}{hint}; known: kind, {', '.join(sorted(known))}"
    if knob == "output_stride":
        yield from _refused(name, lambda value: heads.output_stride_of({knob: value}), _ends(dim))


def _check_method(
    name: str, rest: str, methods: Sequence[str], dim: Dim
) -> Iterator[tuple[str, str]]:
    """Resolve the recipe with both ends of a range, all other settings at their defaults."""
    from kdsearch.training import distiller

    method = next((method for method in methods if rest.startswith(f"{method}.")), "")

    def check(value: Value) -> None:
        params = {"student.family": "resnet", "method.name": method, name: value}
        distiller.check(Candidate.from_params(params).distill)

    try:
        is_known = rest.removeprefix(f"{method}.") in _method_knobs(method)
    except KDSearchError:
        is_known = False  # what is unknown is reported by `_check_owned`
    if is_known:
        yield from _refused(name, check, _ends(dim))


def _check_train(name: str, key: str, dim: Dim) -> Iterator[tuple[str, str]]:
    owner, _, owned = key.rpartition(".")
    known = [item.name for item in fields(TrainSpec)]
    if owned not in known or owner not in ("", *OPTIMIZERS):
        yield name, f"unknown key {key!r}{did_you_mean(key, known)}; known: {', '.join(known)}"
        return
    yield from _refused(name, lambda value: make(TrainSpec, **{owned: value}), _ends(dim))


def _refused(
    name: str, check: Callable[[T], object], values: Iterable[T]
) -> Iterator[tuple[str, str]]:
    """Yield (name, mistake) for the first value that `check` refuses."""
    for value in values:
        try:
            check(value)
        except KDSearchError as error:
            yield name, str(error)
            return


def _ends(dim: Dim) -> tuple[Value, ...]:
    """Return both ends of a range, or every option."""
    return (dim.low, dim.high) if isinstance(dim, Float | Int) else options_in(dim)
