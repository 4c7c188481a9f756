"""Load the weights that a student starts from into the network that was built.

`pretrained` takes those of the library's network, `teacher` those of a teacher of the same
architecture. A library's network is filled whole and loses the same parts as the student; a family
takes the blocks and channels that fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from kdsearch.data.base import ImageSet
from kdsearch.errors import SpecError
from kdsearch.models import heads, students
from kdsearch.models.dense import OverTimm
from kdsearch.models.features import Tapped, bare
from kdsearch.models.inherit.cut import Cut
from kdsearch.models.inherit.drop import LEAST_CHANGE
from kdsearch.models.inherit.library import (
    Statistics,
    pretrained_network,
    statistics_in,
    statistics_of,
)
from kdsearch.models.inherit.select import fitted
from kdsearch.models.inherit.source import file_of, locate
from kdsearch.models.model import Model
from kdsearch.models.students._library import Shape
from kdsearch.models.weights import read_weights
from kdsearch.space import Params
from kdsearch.spec import StudentSpec

_LOOKED_AT = 64  # images, by the rule `least_change`


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """Share of a student's parameters that hold another network's weights, and their digest."""

    share: float
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Tensors by the names of a whole network, the pixels they expect, and their origin."""

    state: Mapping[str, Tensor]
    statistics: Statistics | None
    where: str
    has_classes: bool = False  # the head knows the classes of the data
    knobs: Params | None = None  # of a teacher's architecture


def weights_file(family: str, files: Mapping[str, Path]) -> Path:
    """Return the file of pretrained weights of a family. Raises SpecError where there is none."""
    name = family if students.is_library(family) else students.get(family).pretrained or family
    return file_of(family, files) or locate([name], files)[name]


def inherit(
    student: Model,
    spec: StudentSpec,
    *,
    files: Mapping[str, Path],
    teachers: Sequence[Model],
    images: ImageSet | None = None,
) -> Inherited | None:
    """Load the first weights of a student in place, None from scratch; set `inherited`.

    The mean and standard deviation of its preprocessing become those of the weights. files: of
    pretrained weights, by name. images: for training; on some of these the rule `least_change`
    looks at the blocks, and without it is `even`. Raises SpecError where nothing can be inherited.
    """
    if spec.init == "scratch":
        return None
    start = _of_teacher(spec, teachers) if spec.init == "teacher" else _pretrained(spec, files)
    network = bare(student.network)
    if start.statistics is not None:
        shown = start.statistics.for_channels(student.preprocess.channels)
        student.preprocess = replace(student.preprocess, mean=shown.mean, std=shown.std)
    own, head = network.state_dict(), _head(student, network)
    given = start.state
    if students.is_library(spec.family):
        given = _cut_down(spec, start, student, images)
    found = fitted(own, given)
    if students.is_library(spec.family) and (missing := own.keys() - found.keys() - head):
        raise SpecError(f"{start.where} lacks {sorted(missing)[0]!r} of the student {spec.family}")
    is_head_whole = all(name in found and given[name].shape == own[name].shape for name in head)
    if not (start.has_classes and is_head_whole):
        found = {name: value for name, value in found.items() if name not in head}
    named = dict(network.named_parameters())
    taken = sum(named[n].numel() for n in found if n in named)
    if not taken:
        raise SpecError(f"student.init: nothing of {start.where} fits the student {spec.family}")
    network.load_state_dict(found, strict=False)
    prefix = "" if network is student.network else "module."
    student.inherited = frozenset(f"{prefix}{n}" for n in found if n in named)
    share = taken / sum(parameter.numel() for parameter in named.values())
    return Inherited(share=share, key=_digest(found))


def _pretrained(spec: StudentSpec, files: Mapping[str, Path]) -> _Start:
    file = weights_file(spec.family, files)
    state = read_weights(file)
    if students.is_library(spec.family):
        statistics: Statistics | None = statistics_of(spec.family)
    else:
        family = students.get(spec.family)
        is_renamed = family.pretrained and family.renamed(state).keys() != state.keys()
        statistics = statistics_of(family.pretrained) if is_renamed else statistics_in(file)
        state = family.renamed(state) if is_renamed else state
    return _Start(state=state, statistics=statistics, where=str(file))


def _of_teacher(spec: StudentSpec, teachers: Sequence[Model]) -> _Start:
    teacher = next((t for t in teachers if _family(t) == spec.family), None)
    if teacher is None:
        known = ", ".join(f"{t.name} ({_family(t) or 'of no student family'})" for t in teachers)
        raise SpecError(
            f"student.init teacher: the family {spec.family!r} is not the architecture of the "
            f"teacher: {known or 'there is none'}"
        )
    shape = teacher.preprocess
    return _Start(
        state={n: v.detach().cpu() for n, v in bare(teacher.network).state_dict().items()},
        statistics=Statistics(mean=shape.mean, std=shape.std),
        where=f"the teacher {teacher.name}",
        has_classes=True,
        knobs=None if teacher.architecture is None else teacher.architecture.knobs,
    )


def _family(teacher: Model) -> str:
    return "" if teacher.architecture is None else teacher.architecture.family


def _cut_down(
    spec: StudentSpec, start: _Start, student: Model, images: ImageSet | None
) -> Mapping[str, Tensor]:
    """Return the tensors of a library's network without the blocks that the student lacks.

    They have the names of the student's.
    """
    shown, network = student.preprocess, bare(student.network)
    own, _ = heads.split(spec.knobs)
    if start.knobs is not None:  # a teacher whose body was cut, or that has a head of its own
        theirs, _ = heads.split(start.knobs)
        if theirs == own and (own or _is_dense(network)):
            return start.state
        if theirs or _is_dense(network):
            raise SpecError(
                f"student.init teacher: the body of {start.where} has {_shown(theirs)}, that of "
                f"the student {spec.family} has {_shown(own)}. Give the student the same knobs, or "
                "student.init pretrained or scratch"
            )
    whole = pretrained_network(
        spec.family,
        start.state,
        where=start.where,
        in_channels=shown.channels,
        resolution=shown.resolution,
    )
    form, inputs = Shape.of(spec.family, own), None
    if images is not None and form.drop == LEAST_CHANGE:
        inputs = shown(images.some(_LOOKED_AT))
    state = form.dropped(whole, shown.input_shape, inputs).state_dict()
    prefix = "body." if isinstance(network, Cut) or _is_dense(network) else ""
    return {f"{prefix}{name}": value for name, value in state.items()}


def _shown(knobs: Params) -> str:
    return ", ".join(f"{name} {value}" for name, value in knobs.items()) or "no knobs"


def _is_dense(network: nn.Module) -> bool:
    return isinstance(network, OverTimm)


def _head(student: Model, network: nn.Module) -> frozenset[str]:
    """Return the names of the tensors of the layers that answer."""
    if _is_dense(network):
        return frozenset(n for n in network.state_dict() if n.startswith(heads.PREFIX))
    names = {name for name, part in network.named_children() if isinstance(part, nn.Linear)}
    if isinstance(student.network, Tapped) and student.network.head is not None:
        names.add(student.network.head.name)
    return frozenset(n for n in network.state_dict() if n.rpartition(".")[0] in names)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(name.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
