"""Networks of libraries with pretrained weights in them, and the pixels that they expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import SpecError
from kdsearch.models import cifar_resnet
from kdsearch.models.students._library import BUILDERS, CIFAR, check_name, image_size, split
from kdsearch.models.weights import fit_weights, read_facts

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SIZES: Mapping[str, Size] = {CIFAR: (32, 32), "torchvision": (224, 224)}
_AUXILIARY = ("aux", "AuxLogits")  # heads of torchvision's Inception networks, for training alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of the pixels that weights were trained on, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> Statistics:
        """Return them for images of another number of channels: their mean in each."""
        if channels == len(self.mean):
            return self
        mean, std = (sum(each) / len(each) for each in (self.mean, self.std))
        return Statistics(mean=(mean,) * channels, std=(std,) * channels)


def statistics_in(file: Path) -> Statistics | None:
    """Return the statistics that kdsearch wrote into a weights file, None in another file."""
    facts = read_facts(file)
    if not {"mean", "std"} <= facts.keys():
        return None
    return Statistics(
        mean=tuple(json.loads(facts["mean"])),
        std=tuple(json.loads(facts["std"])),
    )


def statistics_of(name: str) -> Statistics:
    """Return the statistics of the pretrained weights of a library's network."""
    check_name(name)
    library, network = split(name)
    if library == CIFAR:
        return Statistics(mean=cifar_resnet.MEAN, std=cifar_resnet.STD)
    if library == "timm":
        config = _timm_config(network)
        return Statistics(mean=tuple(config.mean), std=tuple(config.std))
    import torchvision

    if network in ("googlenet", "inception_v3"):  # their weights undo torchvision's own statistics
        return Statistics(mean=_HALF[0], std=_HALF[1])
    shown = torchvision.models.get_model_weights(network).DEFAULT.transforms()
    return Statistics(mean=tuple(shown.mean), std=tuple(shown.std))


def pretrained_network(
    name: str,
    state: Mapping[str, Tensor],
    *,
    where: str,
    in_channels: int = 3,
    resolution: int | Size | None = None,
) -> nn.Module:
    """Return a library's network with all tensors of `state` in it, on the CPU.

    The head has the classes of `state`, or there is none. timm's own rules fit the first layer to
    `in_channels` and position embeddings to `resolution` (None: the network's own). where: the
    origin of the tensors, for messages. Raises SpecError where they are not those of the network.

    Example: pretrained_network("timm:resnet18", read_weights(file), where=str(file))
    """
    check_name(name)
    library, network = split(name)
    size = None if resolution is None else as_size(resolution)
    try:
        if library == "timm":
            return _timm(network, state, in_channels, size)
        return _other(library, network, state, in_channels, size or _SIZES[library])
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, SpecError) as error:
        cause = " ".join(str(error).split())[:400]
        raise SpecError(f"{where}: these are not the weights of {name}: {cause}") from error


def _timm(name: str, state: Mapping[str, Tensor], in_channels: int, size: Size | None) -> nn.Module:
    import timm

    config = _timm_config(name)
    first = config.classifier if isinstance(config.classifier, str) else config.classifier[0]
    head = state.get(f"{first}.weight")
    # A file with the names of another project is renamed by timm, and may have no head.
    possible = [len(head)] if head is not None else [config.num_classes, 0]
    for classes in dict.fromkeys(possible):
        try:
            # Equal numbers of classes: timm loads strictly.
            network: nn.Module = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes},
                num_classes=classes,
                in_chans=in_channels,
                **({} if size is None else image_size(name, size)),
            )
        except RuntimeError:
            if classes == possible[-1]:
                raise
        else:
            return network
    raise AssertionError("the last number of classes raises or returns")


def _timm_config(name: str) -> Any:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise SpecError(f"timm states no mean and no classifier of {name!r}, so none is inherited")
    return config


def _other(
    library: str, name: str, state: Mapping[str, Tensor], in_channels: int, size: Size
) -> nn.Module:
    state = {n: value for n, value in state.items() if not n.startswith(_AUXILIARY)}
    network = BUILDERS[library](name, in_channels, 1, size)
    head = next(n for n, value in reversed(network.state_dict().items()) if n.endswith("weight"))
    classes = len(state[head]) if head in state else 1
    network = BUILDERS[library](name, in_channels, classes, size)
    fit_weights(network, state, where=name)
    return network
