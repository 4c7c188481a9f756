"""Leave blocks out of a network: those that answer with the shape that they were given.

Rows of such blocks are found by one blank batch, without a list of architectures. A row is a run
of blocks of one type in a Sequential or a ModuleList; its first block stays. Where two kinds of
blocks alternate, as shifted windows do (Liu et al., ICCV 2021, arXiv:2103.14030), pairs stay whole.

A student's architecture follows from its depth and rule alone, never from weights. The rule
`least_change` has the architecture of `even`; it only chooses which blocks of the whole network,
of equal structure and in their order, fill it: those that change their input most, by block
influence (Men et al., 2024, arXiv:2403.03853), which is 1 - the cosine between input and output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdsearch.errors import SpecError
from kdsearch.models.maps import evenly_spaced
from kdsearch.models.probe import evaluating, hooked, run_blank

LEAST_CHANGE = "least_change"
Unit: TypeAlias = tuple[int, ...]
"""Members of a container that stay or go together: one, or a pair."""
_Place: TypeAlias = tuple[str, Unit]
_BLOCK_TENSORS = 3  # a convolution and its norm are no block


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Members of `container` that may go, in order: single blocks, or pairs that go together."""

    container: str
    units: tuple[Unit, ...]

    def kept(self, depth: float, rule: str) -> tuple[Unit, ...]:
        """Return the units that stay, a share `depth` of them to the nearest whole number."""
        count = int(depth * len(self.units) + 0.5)
        if rule == "last":  # these go
            return self.units[:count]
        return tuple(self.units[i] for i in evenly_spaced(len(self.units), count))


def leave_out(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    depth: float,
    rule: str,
    inputs: Tensor | None = None,
) -> None:
    """Remove blocks from each row of a network, in place; the others keep their order.

    shape: of one image. inputs: float [N, *shape], on which the rule `least_change` looks at the
    blocks; without, it is `even`. Raises SpecError where no block can be left out.
    """
    rows = find_rows(module, shape)
    if not rows:
        raise SpecError(
            f"{type(module).__name__} has no blocks that can be left out: none in a row of equal "
            "blocks answers with the shape that it was given; leave depth at 1"
        )
    changes = None
    if inputs is not None and rule == LEAST_CHANGE:
        changes = _changes(module, rows, inputs)
    gone: dict[str, set[int]] = {}
    for row in rows:
        stay = row.kept(depth, rule)
        if changes is not None:
            stay = _most_changing(row, stay, changes, module.get_submodule(row.container))
        places = {i for unit in row.units if unit not in stay for i in unit}
        gone.setdefault(row.container, set()).update(places)
    for name, places in gone.items():
        container = module.get_submodule(name)
        assert isinstance(container, nn.Sequential | nn.ModuleList)
        for i in sorted(places, reverse=True):
            del container[i]


def find_rows(module: nn.Module, shape: tuple[int, ...]) -> list[Row]:
    """Return the rows of a network, in order. It runs where it is, also on the meta device."""
    same = _same_shaped(module, shape)
    found = [
        (name, run)
        for name, part in module.named_modules()
        if isinstance(part, nn.Sequential | nn.ModuleList)
        for run in _runs(name, part, same)
    ]
    inner = tuple(f"{name}.{i}." for name, run in found for i in run[1:])
    found = [(name, run) for name, run in found if not f"{name}.".startswith(inner)]
    period = 1
    if any(_alternates(module.get_submodule(name), run) for name, run in found):
        period = 2
    rows = (Row(container=name, units=_units(run, period)) for name, run in found)
    return [row for row in rows if row.units]


def _most_changing(
    row: Row, slots: Sequence[Unit], changes: Mapping[_Place, float], container: nn.Module
) -> tuple[Unit, ...]:
    """Return as many units as `slots`, of their structures in order, with the largest change."""
    members = [*container.children()]
    kinds = {unit: [_kind(members[i]) for i in unit] for unit in row.units}
    best: list[tuple[float, tuple[Unit, ...]]] = [(0.0, ())]  # for the first k slots
    for unit in row.units:
        longer = [
            (total + changes[row.container, unit], (*chosen, unit))
            for (total, chosen), slot in zip(best, slots, strict=False)
            if kinds[slot] == kinds[unit]
        ]
        for found in longer:
            k = len(found[1])
            best[k:] = [max([found, *best[k : k + 1]]), *best[k + 1 :]]
    return best[len(slots)][1]


def _changes(module: nn.Module, rows: Sequence[Row], inputs: Tensor) -> dict[_Place, float]:
    """Return how much each unit changes what it is given: 1 - the cosine, its mean over images."""
    given: dict[_Place, Tensor] = {}
    changes: dict[_Place, float] = {}

    def watch(place: _Place) -> Iterator[RemovableHandle]:
        container, unit = place

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            given[place] = args[0]

        def after(_: nn.Module, __: object, made: Tensor) -> None:
            cosine = nn.functional.cosine_similarity(given.pop(place).flatten(1), made.flatten(1))
            changes[place] = 1 - float(cosine.mean())

        yield module.get_submodule(f"{container}.{unit[0]}").register_forward_pre_hook(before)
        yield module.get_submodule(f"{container}.{unit[-1]}").register_forward_hook(after)

    handles = [h for row in rows for unit in row.units for h in watch((row.container, unit))]
    with hooked(handles), evaluating(module), torch.no_grad():
        module(inputs)
    return changes


def _same_shaped(module: nn.Module, shape: tuple[int, ...]) -> dict[str, bool]:
    """Return by name whether a member of a container keeps the shape in its one call."""
    seen: dict[str, bool] = {}
    calls: Counter[str] = Counter()
    handles = []

    def watch(name: str, part: nn.Module) -> None:
        def hook(_: nn.Module, given: tuple[object, ...], made: object) -> None:
            calls[name] += 1
            x = given[0] if given else None
            is_same = isinstance(x, Tensor) and isinstance(made, Tensor) and x.shape == made.shape
            seen[name] = is_same and calls[name] == 1

        handles.append(part.register_forward_hook(hook))

    for name, part in module.named_modules():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            for i, member in enumerate(part):
                watch(f"{name}.{i}", member)
    with hooked(handles):
        run_blank(module, (1, *shape))
    return seen


def _runs(
    name: str, container: nn.Sequential | nn.ModuleList, same: dict[str, bool]
) -> Iterator[list[int]]:
    """Yield runs of blocks of one type: the first, and those after it that keep the shape."""
    run: list[int] = []
    for i, part in enumerate(container):
        keeps = same.get(f"{name}.{i}", False) and _is_block(part)
        if run and keeps and type(part) is type(container[run[-1]]):
            run.append(i)
            continue
        if len(run) > 1:
            yield run
        run = [i] if _is_block(part) else []
    if len(run) > 1:
        yield run


def _is_block(part: nn.Module) -> bool:
    is_list = isinstance(part, nn.Sequential | nn.ModuleList)
    return not is_list and len([*part.parameters()]) >= _BLOCK_TENSORS


def _alternates(container: nn.Module, run: list[int]) -> bool:
    """Return whether two kinds of blocks take turns, in a run long enough to show it."""
    kinds = [_kind(part) for i, part in enumerate(container.children()) if i in run]
    turns = all(one != other for one, other in pairwise(kinds))
    return len(kinds) > 3 and turns and len(set(kinds)) == 2


def _kind(block: nn.Module) -> str:
    """Return the structure of a block: types and whole numbers, without rates of dropout."""
    parts = []
    for name, part in block.named_modules():
        numbers = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and isinstance(value, int | tuple | list)
        }
        parts.append(f"{name} {type(part).__name__} {sorted(numbers.items())}")
    return "\n".join(parts)


def _units(run: list[int], period: int) -> tuple[Unit, ...]:
    starts = range(period, len(run), period)
    return tuple(tuple(run[start : start + period]) for start in starts)
