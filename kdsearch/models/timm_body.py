"""Networks of timm as bodies: the maps that `forward_intermediates` gives, by `feature_info`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models.students import _library
from kdsearch.space import Params

FINEST = 4  # the least stride of a map


class TimmBody(nn.Module):
    """A network without its classifier, and which of its maps count: those at strides from 4."""

    def __init__(self, network: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.network, self.indices = network, indices

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, shallow to deep."""
        return maps_of(self.network, x, self.indices)


def maps_of(network: Any, x: Tensor, indices: list[int]) -> list[Tensor]:
    """Return the maps of a network of timm, shallow to deep."""
    found: list[Tensor] = network.forward_intermediates(x, indices=indices, intermediates_only=True)
    return found


def build(family: str, knobs: Params, *, channels: int, size: Size) -> TimmBody:
    """Build the body `timm:NAME`, untrained; `cut` counts maps, those at stride 2 too.

    Raises SpecError for a network without maps at several strides.
    """
    shape = _library.Shape.of(family, knobs)
    if _library.split(family)[0] != "timm":
        raise _no_maps(family)
    network: Any = _library.build_module(family, in_channels=channels, num_classes=2, size=size)
    strides = [info["reduction"] for info in getattr(network, "feature_info", ())]
    if not hasattr(network, "forward_intermediates") or len(set(strides)) < 2:
        raise _no_maps(family)
    network = shape.dropped(network, (channels, *size))
    kept = strides[: shape.cut or None]
    indices = [place for place, stride in enumerate(kept) if stride >= FINEST]
    if not indices:
        raise SpecError(
            f"student {family}: cut {shape.cut} leaves no map at a stride from {FINEST}"
        )
    indices = network.prune_intermediate_layers(indices)
    return TimmBody(network, indices)


def _no_maps(family: str) -> SpecError:
    return SpecError(
        f"student {family!r} gives no maps at several strides, which a head needs; "
        "use resnet, mobilenet, convnext or a convolutional timm:NAME"
    )
