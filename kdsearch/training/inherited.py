"""How a training treats inherited weights: their rates, frozen stages, statistics of BatchNorm."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdsearch.errors import SpecError
from kdsearch.models.dense import Bodied
from kdsearch.models.features import Tapped, head_module
from kdsearch.models.model import Model
from kdsearch.train_spec import ALL_STAGES, TrainSpec

_BODY = "of_body."


def rates_of(model: Model, spec: TrainSpec) -> dict[nn.Parameter, float]:
    """Return the rate of each inherited parameter as a multiple of `lr`; 0: it is frozen.

    What follows the last stage has `inherited_lr`; each stage before it `layer_decay` times less.
    A linear head is never frozen. Raises SpecError where nothing is left to train.
    """
    if not model.inherited:
        return {}
    parameters = dict(model.network.named_parameters())
    by_stage = spec.layer_decay != 1 or spec.frozen_stages > 0
    stages = stages_of(model) if by_stage else dict.fromkeys(parameters, 0)
    last = max(stages.values()) if by_stage else 0
    head = head_module(model.network)
    kept = set() if head is None else set(head.parameters())
    rates = {}
    for name in sorted(model.inherited):
        is_frozen = spec.frozen_stages == ALL_STAGES or stages[name] < spec.frozen_stages
        rate = spec.inherited_lr * spec.layer_decay ** (last - stages[name])
        rates[parameters[name]] = 0.0 if is_frozen and parameters[name] not in kept else rate
    if not any(rates.get(weight, 1.0) for weight in parameters.values()):
        raise SpecError(
            f"train.frozen_stages {spec.frozen_stages}: all of {model.name} is inherited and its "
            "head is not one linear layer, so nothing is left to train"
        )
    return rates


def stages_of(model: Model) -> dict[str, int]:
    """Return the stage of each parameter of the network, by name.

    The stem belongs to stage 0; what follows the last stage has the number of stages.
    """
    network = model.network
    shown = model.preprocess
    tapped = network
    if not isinstance(tapped, Tapped):
        tapped = Tapped(
            _OfBody(network) if isinstance(network, Bodied) else network,
            in_channels=shown.channels,
            resolution=shown.resolution,
            answers="embedding" if isinstance(network, Bodied) else "logits",
        )
    places = {name: place for place, (name, _) in enumerate(tapped.module.named_modules())}
    ends = sorted(
        max(place for name, place in places.items() if f"{name}.".startswith(f"{call.name}."))
        for call in tapped.stages
    )
    prefix = "module." if tapped is network else ""
    return {
        prefix + name.removeprefix(_BODY): bisect_left(ends, places[name.rpartition(".")[0]])
        for name, _ in tapped.module.named_parameters()
    }


class _OfBody(nn.Module):
    """The mean of the deepest map of a body under a head: the head is not run."""

    def __init__(self, network: Bodied) -> None:
        super().__init__()
        self.of_body = network

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, D]."""
        return self.of_body.maps(x)[-1].mean(dim=(2, 3))


def still_norms(
    model: Model, spec: TrainSpec, rates: Mapping[nn.Parameter, float]
) -> list[nn.Module]:
    """Return the BatchNorm layers that keep their inherited statistics.

    Those of a frozen stage always do.
    """
    is_still = spec.bn != "moving"
    return [
        norm
        for norm, weight in _norms(model.network)
        if weight in rates and (is_still or rates[weight] == 0)
    ]


def _norms(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Yield each BatchNorm with its gain; one without a gain learns nothing to be known by."""
    for part in network.modules():
        if isinstance(part, _BatchNorm) and part.weight is not None:
            yield part, part.weight
