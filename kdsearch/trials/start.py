"""Find the weights that the students of a study start from, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.inherit.source import joined, key_of, read_files
from kdsearch.models.inherit.start import weights_file
from kdsearch.models.model import Model
from kdsearch.report import words
from kdsearch.space import Choice, Constant, Dim, SearchSpace
from kdsearch.study.config import StudyConfig

_STUDENT_WEIGHTS = "--student-weights"


def families_of(space: SearchSpace, init: str | None = None) -> list[str]:
    """Return the families of a space, in its order, whose students may start so; None: all."""
    dims = dict(space.all_dims())
    families = [str(value) for value in _values(dims.get("student.family"))]
    if init is None:
        return families
    is_common = init in _values(dims.get("student.init"))

    def may(family: str) -> bool:
        own = dims.get(f"student.{family}.init")
        return is_common if own is None else init in _values(own)

    return [family for family in families if may(family)]


def _values(dim: Dim | None) -> Sequence[object]:
    if isinstance(dim, Choice):
        return dim.options
    return (dim.value,) if isinstance(dim, Constant) else ()


def without_missing(config: StudyConfig) -> tuple[StudyConfig, list[str]]:
    """Return the configuration without the starts whose weights cannot be had, and lines on these.

    The last line has the reasons. Only a family's own `init` counts. Raises SpecError where no
    family is left.
    """
    space, files = config.search_space(), files_of(config)
    dims = dict(space.all_dims())
    missing: dict[str, SpecError] = {}
    for family in families_of(space, "pretrained"):
        if f"student.{family}.init" in dims:
            try:
                weights_file(family, files)
            except SpecError as error:
                missing[family] = error
    if not missing:
        return config, []
    others = {*families_of(space, "scratch"), *families_of(space, "teacher")}
    lost = tuple(family for family in missing if family not in others)
    if {*lost} == {*families_of(space)}:
        raise joined(missing.values())
    kept = tuple(family for family in missing if family in others)
    without: dict[str, tuple[str, ...]] = {
        f"student.{family}.init": ("pretrained",) for family in kept
    }
    if lost:
        without["student.family"] = lost
    names = {"start from scratch": kept, "are left out": lost}
    lines = [
        f"Pretrained weights are missing; these families {what}: {', '.join(families)}"
        for what, families in names.items()
        if families
    ]
    unused = [(name, did_you_mean(name, missing)) for name in files]
    lines += [f"{name} is no family of this space{hint}" for name, hint in unused if hint]
    lines.append(words.sentence(str(joined(missing.values()))))
    return replace(config, without_weights=without), lines


def with_weights(config: StudyConfig, families: Sequence[str], *, sole: str | None) -> StudyConfig:
    """Return the configuration with the digest of the weights that these families start from.

    sole: the one family of a study, which a --student-weights without a name is for. Missing files
    are downloaded. Raises one SpecError that names everything that cannot be had.
    """
    given = read_files(config.student_weights, _STUDENT_WEIGHTS, sole=sole)
    if given and not families:
        raise SpecError(
            f"{_STUDENT_WEIGHTS}: no student starts from it; give student.init pretrained"
        )
    named = ",".join(f"{name}={file}" for name, file in given.items()) or None
    config = replace(config, student_weights=named)
    files = files_of(config)
    keys, missing = [], []
    for family in families:
        try:
            keys.append(f"{family}={key_of(weights_file(family, files))}")
        except SpecError as error:
            missing.append(error)
    if missing:
        raise joined(missing)
    return replace(config, pretrained_key=",".join(keys) or None)


def files_of(config: StudyConfig) -> dict[str, Path]:
    """Return the user's files of pretrained weights, by the name of a network or a family."""
    pretrained = read_files(config.pretrained_weights)
    return pretrained | read_files(config.student_weights, _STUDENT_WEIGHTS)


def require_teacher(families: Sequence[str], teachers: Sequence[Model]) -> None:
    """Raise SpecError for a family that no teacher has the architecture of."""
    found = [t.architecture.family for t in teachers if t.architecture is not None]
    if others := [family for family in families if family not in found]:
        theirs = " or ".join(found) or "no student family"
        raise SpecError(
            f"student.init teacher: {', '.join(others)}: the architecture of the teacher is "
            f"{theirs}; give that family, or another init"
        )
