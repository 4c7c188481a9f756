"""Read and write network weights without running anybody's code.

safetensors, or a pickle loaded with `weights_only`; checkpoints that wrap a `state_dict` and
`module.` prefixes are understood.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdsearch.atomic import replacing
from kdsearch.errors import SpecError, StudyError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state to a safetensors file, whole or not at all.

    A tied weight is written under each of its names.
    """
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()  # the format refuses shared memory
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            safetensors.torch.save_file(state, temporary)
    except (OSError, safetensors.SafetensorError) as error:
        raise StudyError(f"cannot write {path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name. Raises SpecError when it is no such file."""
    if not path.is_file():
        raise SpecError(f"there is no weights file {str(path)!r}")
    try:
        loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise SpecError(
            f"{path} is damaged or holds more than weights, which is never executed; "
            "save its state_dict as safetensors"
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on the byte
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SpecError(f"{path} is not a readable weights file: {reason}") from error
    return _state_dict(loaded, path)


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        # torch warns of pickles that it did not write; they are read all the same, or refused.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise SpecError(f"{path} holds no state_dict (a mapping of names to tensors)")
    strange = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        raise SpecError(f"{path}: {strange[0]!r} is not a tensor; expected a plain state_dict")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def fit_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, where: str, but: frozenset[str] = frozenset()
) -> None:
    """Load `state` into `module`, all of it but the names in `but`. Raises SpecError.

    `num_batches_tracked` may be absent: checkpoints older than it are still about. Of tied weights
    one name is enough.
    """
    own = module.state_dict()
    # A tied weight may be given once; tensors without memory are not tied.
    given = {own[name].data_ptr() for name in own.keys() & state.keys()} - {0}
    needed = {
        name
        for name, value in own.items()
        if not name.endswith("num_batches_tracked") and value.data_ptr() not in given
    } - but
    missing = sorted(needed - state.keys())
    surplus = sorted(state.keys() - own.keys())
    shapes = [
        f"{name}: {list(state[name].shape)} in the file, {list(own[name].shape)} in the network"
        for name in own.keys() & state.keys() - but
        if own[name].shape != state[name].shape
    ]
    if missing or surplus or shapes:
        parts = {"missing": missing, "unexpected": surplus, "of another shape": sorted(shapes)}
        text = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in parts.items()
            if names
        )
        raise SpecError(f"{where}: the weights do not fit the network: {text}")
    module.load_state_dict({n: v for n, v in state.items() if n not in but}, strict=False)
