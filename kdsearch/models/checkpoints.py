"""Find the weights in a checkpoint, whatever a training saved with them or wrapped around them.

Nothing in a file is executed: a pickle is read with torch's `weights_only`, which builds tensors
and plain values alone. `SAFE` adds the plain values that timm and others save besides.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import safe_globals

from kdsearch.errors import SpecError

Note: TypeAlias = Callable[[str], None]
State: TypeAlias = Mapping[str, Tensor]

_NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_AVERAGED = frozenset({"ema", "swa", "averaged"})
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler")
# Parts that torch and Lightning insert into names where they wrap a module.
_INSERTED = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
_SHOWN = 3
_lock = threading.Lock()  # torch keeps one list of safe classes a process


def _safe() -> list[object]:
    """Return the classes whose values hold data alone; old names go with new ones."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("?", *np.typecodes["AllInteger"], *"efdgSU")}
    named = {
        "numpy.core.multiarray.scalar": scalar,
        "numpy.core.multiarray._reconstruct": array,
        "pathlib._local.PosixPath": pathlib.PurePosixPath,
        "pathlib.PosixPath": pathlib.PurePosixPath,
        "pathlib.WindowsPath": pathlib.PureWindowsPath,
        "pathlib._local.WindowsPath": pathlib.PureWindowsPath,
    }
    return [
        *(argparse.Namespace, scalar, array, np.ndarray, np.dtype, *kinds),
        *(pathlib.PurePosixPath, pathlib.PureWindowsPath, torch.torch_version.TorchVersion),
        *((kind, name) for name, kind in named.items()),
    ]


SAFE = _safe()


def load_file(path: Path) -> object:
    """Return the content of a safetensors file or a pickle; a pickle runs no code."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with _lock, warnings.catch_warnings(), safe_globals(SAFE):  # type: ignore[arg-type]
        # torch warns of pickles that it did not write; they are read all the same, or refused.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def find_weights(loaded: object, path: Path, note: Note) -> dict[str, Tensor]:
    """Return the one set of weights in a checkpoint, an average of the weights before others.

    An average that lacks some tensors, such as those of BatchNorm, takes them from the weights that
    it is an average of. Raises SpecError where there is none, or several that nothing tells apart.
    """
    found = dict(_sets(loaded))
    if not found:
        raise SpecError(_without_weights(loaded, path))
    place = _chosen(found, path)
    state = _plain(found.pop(place))
    lacking = ""
    if _is_average(place):
        others = [_plain(other) for other in found.values()]
        whole = next((other for other in others if state.keys() < other.keys()), {})
        lacking = f", and {len(whole) - len(state)} tensors that it lacks" if whole else ""
        state = {**whole, **state}
    if found:
        note(f"{path}: uses the weights {place!r}{lacking}, not {', '.join(map(repr, found))}")
    return state


def _sets(found: object, place: str = "") -> Iterator[tuple[str, State]]:
    """Yield the mappings of names to tensors in nested mappings, by their dotted place."""
    if not isinstance(found, Mapping) or not found or not all(isinstance(k, str) for k in found):
        return
    if all(isinstance(value, Tensor) or _is_extra(name) for name, value in found.items()):
        yield place, {name: value for name, value in found.items() if isinstance(value, Tensor)}
        return
    for name, value in found.items():
        if not _NOT_WEIGHTS.search(name.lower()):
            yield from _sets(value, f"{place}.{name}".lstrip("."))


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == "_extra_state"


def _is_average(place: str) -> bool:
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", place.lower()))


def _chosen(found: Collection[str], path: Path) -> str:
    """Return the place of the weights to use: averaged ones, else by a usual name, else the one."""
    averages = [place for place in found if _is_average(place)]
    named = [name for name in _NAMES if name in found]
    for chosen in (averages, named[:1], list(found)):
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            break
    names = ", ".join(repr(place) for place in found)
    raise SpecError(
        f"{path} holds several sets of weights: {names}.\n"
        f"Save the one that is meant: torch.save(torch.load({path.name!r})[NAME], 'weights.pt')"
    )


def _without_weights(loaded: object, path: Path) -> str:
    if isinstance(loaded, Mapping) and any(isinstance(v, Tensor) for v in loaded.values()):
        strange = next(name for name, value in loaded.items() if not isinstance(value, Tensor))
        return f"{path}: {strange!r} is not a tensor; expected a plain state_dict"
    return f"{path} holds no state_dict (a mapping of names to tensors)"


def _plain(state: State) -> dict[str, Tensor]:
    """Return the weights by their names without what wrappers inserted into these."""
    plain = {_cleaned(name): value for name, value in state.items()}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
    return plain


def _cleaned(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INSERTED)


def renamed(state: State, own: Collection[str], where: str, note: Note) -> dict[str, Tensor]:
    """Return the weights under the names of a network, `own`, where these differ by a prefix.

    The prefix is found by comparison: `model.`, `net.`, `backbone.` or any other, on either side.
    Where two fit, that of averaged weights is taken. Tensors outside of it belong to other parts
    and are left out with a note. Without such a prefix the names stay as they are.
    """
    inner = {_cleaned(name): name for name in own}
    if inner.keys() <= state.keys():
        return {inner.get(name, name): value for name, value in state.items()}
    best = max(_prefixes(state, inner), key=lambda it: (it[2], _is_average(it[0]), -len(it[0])))
    theirs, ours, _ = best
    found = {
        inner.get(key, key): value
        for name, value in state.items()
        if name.startswith(theirs)
        for key in [f"{ours}{name.removeprefix(theirs)}"]
    }
    left = [name for name in state if not name.startswith(theirs)]
    if left:
        parts = dict.fromkeys(name.partition(".")[0] for name in left)
        note(
            f"{where}: the weights under {theirs!r} are used; {len(left)} tensors of other parts "
            f"are not ({', '.join([*parts][:_SHOWN])}{', …' if len(parts) > _SHOWN else ''})"
        )
    return found


def _prefixes(state: State, own: Collection[str]) -> Iterator[tuple[str, str, int]]:
    """Yield pairs of prefixes, in the file and in the network, and how many names they join."""
    yield "", "", len(state.keys() & set(own))
    for name in [*own][:_SHOWN]:
        for theirs in {key.removesuffix(name) for key in state if key.endswith(f".{name}")}:
            yield theirs, "", sum(f"{theirs}{other}" in state for other in own)
    for key in [*state][:_SHOWN]:
        for ours in {name.removesuffix(key) for name in own if name.endswith(f".{key}")}:
            yield "", ours, sum(f"{ours}{other}" in own for other in state)
