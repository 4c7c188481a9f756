"""The layers of a network for the report: one row a stage, whose costs add up to the network's.

FLOPs are those of `flops.count`. A part is split into its own parts where it only holds them, or
where it has more than SPLIT of the FLOPs; parts without weights and FLOPs are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from kdsearch.deploy.flops import by_module
from kdsearch.models.probe import evaluating, first_tensor
from kdsearch.study.summary import Layer

SPLIT = 0.6  # of the FLOPs
MOST = 24  # rows, unless a list alone has more
REST = "other"  # what is done between the parts


def layers(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Return the layers of a network on one image [C, H, W]. Raises CostError as `count` does."""
    shapes, flops = _shapes(network, input_shape), by_module(network, input_shape)
    rows = [
        Layer(
            name=".".join(part for part in name.split(".") if part != "module"),
            shape=shapes[name],
            params=_params(module),
            flops=flops.get(name, 0),
        )
        for name, module in _parts(network, shapes, flops)
        if name in shapes and (flops.get(name, 0) or _params(module))
    ]
    rest = Layer(
        name=REST,
        shape=(),
        params=_params(network) - sum(row.params for row in rows),
        flops=flops[""] - sum(row.flops for row in rows),
    )
    return (*rows, rest) if rest.params or rest.flops else tuple(rows)


def _parts(
    network: nn.Module, shapes: Mapping[str, tuple[int, ...]], flops: Mapping[str, int]
) -> list[tuple[str, nn.Module]]:
    """Return the parts by name, in the order of the network."""
    parts: list[tuple[str, nn.Module]] = [("", network)]
    whole = max(1, flops[""])
    while True:
        for place, (name, module) in enumerate(parts):
            held = [(f"{name}.{child}".strip("."), part) for child, part in module.named_children()]
            is_large = flops.get(name, 0) > SPLIT * whole and len(parts) + len(held) <= MOST
            if held and (name not in shapes or name == "" or is_large):
                parts[place : place + 1] = held
                break
        else:
            return parts


def _shapes(network: nn.Module, input_shape: tuple[int, int, int]) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each module's last output, without the batch; of those that run."""
    found: dict[str, tuple[int, ...]] = {}

    def keep(name: str, answer: object) -> None:
        if (tensor := first_tensor(answer)) is not None:
            found[name] = tuple(tensor.shape[1:])

    handles = [
        module.register_forward_hook(lambda _module, _args, answer, name=name: keep(name, answer))
        for name, module in network.named_modules()
    ]
    try:
        with evaluating(network), torch.no_grad():
            network(next(network.parameters()).new_zeros((1, *input_shape)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _params(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
