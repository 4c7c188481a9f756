"""Leave blocks out of a network: those that answer with the shape that they were given.

Rows of such blocks are found by one blank batch, without a list of architectures. A row is a run
of blocks of one type in a Sequential or a ModuleList; its first block stays. Where two kinds of
blocks alternate, as shifted windows do (Liu et al., ICCV 2021, arXiv:2103.14030), pairs stay whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models.maps import evenly_spaced
from kdsearch.models.probe import run_blank

_BLOCK_TENSORS = 3  # a convolution and its norm are no block


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Members of `container` that may go, in order: single blocks, or pairs that go together."""

    container: str
    units: tuple[tuple[int, ...], ...]

    def kept(self, depth: float, rule: str) -> tuple[tuple[int, ...], ...]:
        """Return the units that stay, a share `depth` of them to the nearest whole number."""
        count = int(depth * len(self.units) + 0.5)
        if rule == "last":  # these go
            return self.units[:count]
        return tuple(self.units[i] for i in evenly_spaced(len(self.units), count))


def leave_out(module: nn.Module, shape: tuple[int, ...], *, depth: float, rule: str) -> None:
    """Remove blocks from each row of a network, in place; the others keep their order.

    shape: of one image. Raises SpecError where no block can be left out.
    """
    rows = find_rows(module, shape)
    if not rows:
        raise SpecError(
            f"{type(module).__name__} has no blocks that can be left out: none in a row of equal "
            "blocks answers with the shape that it was given; leave depth at 1"
        )
    gone: dict[str, set[int]] = {}
    for row in rows:
        stay = row.kept(depth, rule)
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
    try:
        run_blank(module, (1, *shape))
    finally:
        for handle in handles:
            handle.remove()
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


def _units(run: list[int], period: int) -> tuple[tuple[int, ...], ...]:
    starts = range(period, len(run), period)
    return tuple(tuple(run[start : start + period]) for start in starts)
