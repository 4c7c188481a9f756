"""Read and write network weights without running anybody's code.

safetensors, or a pickle loaded with `weights_only`; `checkpoints` finds the weights in the file.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdsearch.atomic import replacing
from kdsearch.errors import SpecError, StudyError
from kdsearch.models.checkpoints import Note, find_weights, load_file, renamed

_FACTS = "kdsearch"
_DIGEST = "sha256"  # among the facts: of the tensors
_SAVE = 'torch.save(model.state_dict(), "weights.pt")'


def _silent(text: str) -> None:
    """Drop a note."""


def save_weights(module: nn.Module, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write a module's state to a safetensors file, whole or not at all; `facts` go with it.

    A tied weight is written under each of its names. The file has a digest of its tensors.
    """
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()  # the format refuses shared memory
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # One entry: the format writes several in no fixed order.
            kept = {**(facts or {}), _DIGEST: _digest(state)}
            metadata = {_FACTS: json.dumps(kept, sort_keys=True)}
            safetensors.torch.save_file(state, temporary, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise StudyError(f"cannot write {path}: {error}") from error


def read_facts(path: Path) -> dict[str, str]:
    """Return the facts in a weights file that kdsearch wrote; none in another file."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, str] = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
        return facts


def read_weights(path: Path, note: Note = _silent) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name; a note says what was chosen among several.

    Raises SpecError when it is no such file, holds NaN, or is not what kdsearch once wrote there.
    """
    if not path.is_file():
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        hint = f"; did you mean {str(inside[0])!r}?" if inside else ""
        raise SpecError(f"there is no weights file {str(path)!r}{hint}")
    try:
        loaded, written = load_file(path), read_facts(path).get(_DIGEST)
        if written is not None and written != _digest(loaded):  # type: ignore[arg-type]
            raise ValueError("its content has changed since it was written; restore or delete it")
    except Exception as error:  # what a damaged pickle raises depends on the byte
        raise SpecError(_not_loaded(path, error)) from error
    state = find_weights(loaded, path, note)
    numbers = {name: value for name, value in state.items() if value.is_floating_point()}
    if broken := [name for name, value in numbers.items() if value.float().isnan().any()]:
        raise SpecError(
            f"{path} holds NaN, in {_listed(broken)}: the training failed; give an earlier file"
        )
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name, value in sorted(state.items()):
        content.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _not_loaded(path: Path, error: Exception) -> str:
    """Return why a file was refused and, where it holds more than weights, how to save these."""
    text = str(error) or type(error).__name__
    if "TorchScript" in text:
        return (
            f"{path} is a TorchScript program, which is never executed.\n"
            f'Save its weights alone: torch.save(torch.jit.load("{path.name}").state_dict(), '
            '"weights.pt")'
        )
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        holds = f"holds more than weights ({named[1]})" if named else "is damaged or holds more"
        return (
            f"{path} {holds}, which is never executed.\n"
            f"Save the weights alone where the network was trained: {_SAVE}"
        )
    return f"{path} is not a readable weights file: {text.splitlines()[0]}"


def _listed(names: list[str]) -> str:
    """Return the first names, and an ellipsis for others."""
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def fit_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    but: frozenset[str] = frozenset(),
    note: Note = _silent,
) -> None:
    """Load `state` into `module`, all of it but the names in `but`. Raises SpecError.

    A prefix of the names, on either side, is removed first; see `renamed`. `num_batches_tracked`
    may be absent: checkpoints older than it are still about. So may auxiliary heads, on either
    side, as they take no part in an answer. Of tied weights one name is enough.
    """
    own = module.state_dict()
    if not _needed(own, state) - but <= state.keys():
        state = renamed(state, own.keys() - but, where, note)
    state = {name: v for name, v in state.items() if name in own or not _is_auxiliary(name)}
    both = own.keys() & state.keys() - but
    parts = {
        "missing": sorted(_needed(own, state) - but - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{n}: {list(state[n].shape)} in the file, {list(own[n].shape)} in the network"
            for n in both
            if own[n].shape != state[n].shape
        ),
        "of integers": sorted(
            n for n in both if own[n].is_floating_point() and not state[n].is_floating_point()
        ),
    }
    text = "; ".join(f"{len(names)} {w} ({_listed(names)})" for w, names in parts.items() if names)
    if text:
        raise SpecError(f"{where}: the weights do not fit the network: {text}")
    module.load_state_dict({n: v for n, v in state.items() if n not in but}, strict=False)


def _needed(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of a network that a file must give: of a tied weight one is enough."""
    given = {own[n].data_ptr() for n in own.keys() & state.keys()} - {0}  # 0: without memory
    return {
        name
        for name, value in own.items()
        if not (name.endswith("num_batches_tracked") or _is_auxiliary(name))
        and (name in state or value.data_ptr() not in given)
    }


def _is_auxiliary(name: str) -> bool:
    """Return whether a tensor belongs to an auxiliary head, by its name in any library."""
    return any(part.lower().startswith("aux") for part in name.split("."))
