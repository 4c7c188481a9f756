"""A method between a student and one teacher: pairs of stages, adapters, and the loss on them.

Adapters belong to the training: they learn with the student and are saved for resume, but count
neither in its cost nor in its exported file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.methods.base import Align, Need, Setting, Signal, resized
from kdsearch.models.features import Outputs
from kdsearch.spec import ALL_PAIRS
from kdsearch.training.distiller.coverage import Classes
from kdsearch.training.distiller.recipe import TermSpec
from kdsearch.training.pairing import Pairs, pair_stages

_KEY_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The shapes of a student or a teacher, which adapters are built for.

    outputs: on a few images, in eval mode. resolution: (H, W) of the input in pixels,
    or a square's side. head: (weight
    [K, D], bias [K] or None) of the linear layer on the embedding, None where there is none.
    classes: those of the data that a teacher's logits are of, None for all. teaches: the parts
    that a teacher gives, None for all that its network has.
    """

    outputs: Outputs
    resolution: int | Size
    head: tuple[Tensor, Tensor | None] | None = None
    classes: Classes = None
    teaches: frozenset[str] | None = None

    @property
    def gives_logits(self) -> bool:
        """Return whether the outputs have logits."""
        return self.teaches is None or "logits" in self.teaches

    def strides(self, need: Need) -> list[float]:
        """Return the stride of each map."""
        longer = max(as_size(self.resolution))
        return [longer / max(found.shape[2:]) for found in maps_of(self.outputs, need)]


def maps_of(outputs: Outputs, need: Need) -> tuple[Tensor, ...]:
    """Return the stages, or their attention; without attention, each stage three times."""
    if need == "attention":
        return outputs.attention or tuple(maps.repeat(1, 3, 1, 1) for maps in outputs.stages)
    return outputs.stages


def pairs_of(term: TermSpec, student: Side, teacher: Side | None) -> Pairs:
    """Return the pairs of stages that a term compares; none where it compares something else."""
    need = term.method.need
    if need not in ("stages", "attention") or teacher is None:
        return []
    sides = {"student": student, "teacher": teacher}
    if term.is_on_logits:
        _require_positions(term, sides)
        return pair_stages(term.mapping, [1.0], [1.0])
    if without := [name for name, side in sides.items() if not side.outputs.stages]:
        needs = {other: METHODS.get(other).need for other in METHODS.names()}
        free = [other for other, need in needs.items() if need not in ("stages", "attention")]
        raise SpecError(
            f"method {term.name!r} compares stages, but the {' and the '.join(without)} has none; "
            f"methods that need none: {', '.join(free)}"
        )
    return pair_stages(term.mapping, student.strides(need), teacher.strides(need))


def _require_positions(term: TermSpec, sides: Mapping[str, Side]) -> None:
    """Raise SpecError unless both sides have logits [B, K, h, w] of all classes."""
    for who, side in sides.items():
        if side.outputs.logits.ndim != 4 or side.classes is not None:
            raise SpecError(
                f"method {term.name!r}: mapping 'logits' compares logits of all classes at each "
                f"position, and the {who} gives none; use a mapping of stages, as 'last'"
            )


class AdaptedLoss(nn.Module):
    """A method with its adapters, on given pairs of stages or on other outputs of two networks.

    shared: the classes that logits are compared on, where the teacher does not know all.
    """

    shared: Tensor | None

    def __init__(
        self, term: TermSpec, pairs: Pairs, student: Side, teacher: Side | None, setting: Setting
    ) -> None:
        super().__init__()
        self.need = term.method.need
        self.is_on_logits = term.is_on_logits
        self.pairs = pairs
        classes = None if teacher is None or self.need != "logits" else teacher.classes
        shared = None if classes is None else torch.tensor(classes)
        self.register_buffer("shared", shared, persistent=False)
        self.loss = term.loss()
        outputs = None if teacher is None else teacher.outputs
        self.adapters = nn.ModuleList(self._adapters(term, student.outputs, outputs))
        self.to(student.outputs.logits.device)
        self.eval()
        with torch.no_grad():
            signals = self._signals(student.outputs, outputs)
        head = None if teacher is None else teacher.head
        known = None if teacher is None else teacher.classes
        self.loss.prepare(*signals, replace(setting, teacher_head=head, teacher_classes=known))
        self.train()

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> Tensor:
        """Return the unweighted loss."""
        value: Tensor = self.loss(*self._signals(student, teacher), target)
        return value

    def _adapters(
        self, term: TermSpec, student: Outputs, teacher: Outputs | None
    ) -> list[nn.Module]:
        align = term.method.align
        if teacher is None:
            return []
        if self.need == "embedding" and "channels" in align:
            width, goal = student.embedding.shape[1], teacher.embedding.shape[1]
            return [nn.Identity() if width == goal else nn.Linear(width, goal)]
        mine, theirs = (self._maps_of(outputs) for outputs in (student, teacher))
        return [MapAdapter(align, mine[s].shape[1], theirs[t].shape[1]) for s, t in self.pairs]

    def _maps_of(self, outputs: Outputs) -> tuple[Tensor, ...]:
        return (outputs.logits,) if self.is_on_logits else maps_of(outputs, self.need)

    def _signals(self, student: Outputs, teacher: Outputs | None) -> tuple[Signal, Signal | None]:
        if self.need == "outputs":
            return student, teacher
        if self.need == "logits":
            mine = student.logits
            if self.shared is not None:  # the softmax is over the classes that both know
                mine = mine.index_select(1, self.shared)
            return mine, None if teacher is None else teacher.logits
        assert teacher is not None
        if self.need == "embedding":
            embedding = student.embedding
            for adapter in self.adapters:
                embedding = adapter(embedding)
            return embedding, teacher.embedding
        maps, theirs = (self._maps_of(outputs) for outputs in (student, teacher))
        goals = [theirs[t] for _, t in self.pairs]
        adapted = [
            adapter(maps[s], goal.shape[2:])
            for (s, _), adapter, goal in zip(self.pairs, self.adapters, goals, strict=True)
        ]
        return adapted, goals


class AllPairs(nn.Module):
    """A method on every stage of the student with every stage of the teacher, at learned weights.

    After SemCKD (Chen et al., AAAI 2021, 2012.03236): the weights of a student's stage are the
    softmax of query times key / 8 over the teacher's stages; query and key are linear maps of the
    averaged maps to 64. Here weights are averaged over the batch, as a loss is one number a batch.
    """

    def __init__(
        self, term: TermSpec, pairs: Pairs, student: Side, teacher: Side, setting: Setting
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            AdaptedLoss(term, [pair], student, teacher, setting) for pair in pairs
        )
        self.need = term.method.need
        self.queries, self.keys = (
            nn.ModuleList(
                nn.Linear(maps.shape[1], _KEY_WIDTH) for maps in maps_of(side.outputs, self.need)
            )
            for side in (student, teacher)
        )
        self.to(student.outputs.logits.device)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum over all pairs."""
        losses = [member(student, teacher, target) for member in self.members]
        by_stage = torch.stack(losses).view(len(self.queries), len(self.keys))
        return (self.weights(student, teacher) * by_stage).sum()

    def weights(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return [S, T]: each row sums to 1."""
        query = self._pooled(self.queries, student)
        key = self._pooled(self.keys, teacher)
        scores = torch.einsum("sbd,tbd->bst", query, key) / _KEY_WIDTH**0.5
        weights: Tensor = scores.softmax(dim=2).mean(dim=0)
        return weights

    def _pooled(self, layers: nn.ModuleList, outputs: Outputs) -> Tensor:
        """Return [stages, B, 64]."""
        maps = (found.detach().mean((2, 3)) for found in maps_of(outputs, self.need))
        return torch.stack([layer(pooled) for layer, pooled in zip(layers, maps, strict=True)])


def adapted_losses(
    term: TermSpec, student: Side, teacher: Side | None, setting: Setting, *, split_pairs: bool
) -> list[tuple[float, nn.Module]]:
    """Return the losses of a term with their depths in [0, 1], shallow to deep.

    split_pairs: one loss for each pair, where the method sums over pairs; else one for all.
    """
    pairs = pairs_of(term, student, teacher)
    if pairs and term.mapping == ALL_PAIRS:
        assert teacher is not None
        return [(1.0, AllPairs(term, pairs, student, teacher, setting))]
    if not (split_pairs and term.method.is_pairwise and pairs):
        return [(1.0, AdaptedLoss(term, pairs, student, teacher, setting))]
    stages = 1 if term.is_on_logits else len(student.outputs.stages)
    return [
        ((s + 1) / stages, AdaptedLoss(term, [(s, t)], student, teacher, setting))
        for s, t in sorted(pairs)
    ]


class MapAdapter(nn.Module):
    """Bring a student's map to the size and the channels of the teacher's, as `align` requires.

    Sizes: averaged down or bilinearly up. Channels: 1x1 convolution and BatchNorm when they
    differ. FitNet's regressor also ends in a ReLU and spans sizes with larger kernels; here the
    ReLU is left out, as the tokens of a transformer and pre-activation maps are negative too,
    and the kernel stays 1x1, so that one adapter fits any two sizes.
    """

    def __init__(self, align: frozenset[Align], student: int, teacher: int) -> None:
        super().__init__()
        self.resizes = "size" in align
        self.project: nn.Module = nn.Identity()
        if "channels" in align and student != teacher:
            convolution = nn.Conv2d(student, teacher, kernel_size=1, bias=False)
            self.project = nn.Sequential(convolution, nn.BatchNorm2d(teacher))

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return maps [B, C of the teacher, *size]."""
        if self.resizes:
            maps = resized(maps, size, mode="bilinear")
        projected: Tensor = self.project(maps)
        return projected
