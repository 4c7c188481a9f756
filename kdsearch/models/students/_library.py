"""Networks of libraries as students: `timm:NAME`, `torchvision:NAME`, `cifar_resnetN`.

Their stages are found by `Tapped`. The libraries are imported only when one of their names is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.cifar_resnet import DEPTHS, CifarResNet
from kdsearch.models.features import Tapped
from kdsearch.models.inherit.cut import Cut
from kdsearch.models.inherit.drop import leave_out
from kdsearch.models.inherit.knobs import KNOBS
from kdsearch.models.students.base import described
from kdsearch.space import Params, Value

IMAGENET_CLASSES = 1000
CIFAR = "cifar_resnet"


def check_name(family: str) -> None:
    """Raise SpecError, with the nearest name, when the library has no such model."""
    library, name = split(family)
    _CHECKS[library](name)


def split(family: str) -> tuple[str, str]:
    """Return the library and the network's name in it: `timm`, `cifar_resnet` or another."""
    if family.startswith(CIFAR):
        return CIFAR, family.removeprefix(CIFAR)
    library, _, name = family.partition(":")
    return library, name


def build_library(
    family: str,
    *,
    in_channels: int,
    num_classes: int,
    resolution: int | Size,
    **knobs: Value,
) -> Tapped:
    """Build a library's network; see `Shape` for its knobs. Raises SpecError."""
    form = Shape.of(family, knobs)
    size = as_size(resolution)
    module = build_module(family, in_channels=in_channels, num_classes=num_classes, size=size)
    return form.applied(module, in_channels=in_channels, size=size, num_classes=num_classes)


def build_module(family: str, *, in_channels: int, num_classes: int, size: Size) -> nn.Module:
    """Build a library's whole network, untrained. Raises SpecError."""
    check_name(family)
    library, name = split(family)
    try:
        return BUILDERS[library](name, in_channels, num_classes, size)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause = " ".join(str(error).split())
        shown = f"{in_channels} x {size[0]} x {size[1]}"
        raise SpecError(f"student {family} cannot be built for {shown}: {cause}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is left out of a library's network.

    depth: share of the blocks that can be left out and stay, row by row. drop: which of a row go:
    the `last`, or so that the others are `even`, or those of `least_change`. cut: stages that stay;
    0: all.
    """

    depth: float = 1.0
    drop: str = "last"
    cut: int = 0

    @classmethod
    def of(cls, family: str, knobs: Params) -> Shape:
        """Read the knobs of a family. Raises SpecError for a value that is not in their ranges."""
        refused = [
            f"{name} {value!r} is not {described(KNOBS[name])}"
            for name, value in knobs.items()
            if value not in KNOBS[name] or isinstance(value, bool)
        ]
        if refused:
            raise SpecError(f"student {family}: {'; '.join(refused)}")
        return cls(**knobs)  # type: ignore[arg-type]

    def dropped(
        self, module: nn.Module, shape: tuple[int, int, int], inputs: Tensor | None = None
    ) -> nn.Module:
        """Return the network without the blocks that are left out; it is changed in place.

        inputs: float [N, *shape] for `least_change`; without, that is `even`.
        """
        if self.depth < 1:
            leave_out(module, shape, depth=self.depth, rule=self.drop, inputs=inputs)
        return module

    def applied(
        self, module: nn.Module, *, in_channels: int, size: Size, num_classes: int
    ) -> Tapped:
        """Return the student that a whole network gives, with its taps."""
        shape = (in_channels, *size)

        def tapped(network: nn.Module) -> Tapped:
            return Tapped(
                network, in_channels=in_channels, resolution=size, num_classes=num_classes
            )

        whole = tapped(self.dropped(module, shape))
        if not 0 < self.cut < len(whole.stages):
            return whole
        return tapped(Cut(whole, self.cut - 1, shape=shape, num_classes=num_classes))


def _check_timm(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise SpecError(
            f"timm has no model {name!r}{did_you_mean(architecture, known)}; "
            f"timm.list_models() names all {len(known)}"
        )
    tagged = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in tagged:
        raise SpecError(
            f"timm:{architecture} has no weights {tag!r}{did_you_mean(name, tagged)}; "
            f"known: {', '.join(tagged) or 'none'}"
        )


def _check_torchvision(name: str) -> None:
    known = _torchvision_names()
    if name not in known:
        raise SpecError(
            f"torchvision has no classifier {name!r}{did_you_mean(name, known)}; "
            f"known: {', '.join(known)}"
        )


def _check_cifar(depth: str) -> None:
    if depth not in map(str, DEPTHS):
        raise SpecError(f"{CIFAR}{depth}: its depth is one of {', '.join(map(str, DEPTHS))}")


def _build_cifar(depth: str, in_channels: int, num_classes: int, size: Size) -> nn.Module:
    if in_channels != 3:
        raise ValueError(f"the CIFAR ResNets read 3 channels, not {in_channels}")
    return CifarResNet(int(depth), num_classes)


def _torchvision_names() -> list[str]:
    import torchvision

    return cast(list[str], torchvision.models.list_models(module=torchvision.models))


def _build_timm(name: str, in_channels: int, num_classes: int, size: Size) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(
        name, in_chans=in_channels, num_classes=num_classes, **image_size(name, size)
    )
    return module


def image_size(name: str, size: Size) -> dict[str, Any]:
    """Return timm's `img_size` for networks that need it; convolutional ones refuse it."""
    import timm

    config = timm.get_pretrained_cfg(name)
    is_fixed = config is not None and config.fixed_input_size
    return {"img_size": size[0] if size[0] == size[1] else size} if is_fixed else {}


def _build_torchvision(name: str, in_channels: int, num_classes: int, size: Size) -> nn.Module:
    """Build a classifier of torchvision with random weights. Raises ValueError."""
    import torchvision

    if in_channels != 3:
        raise ValueError(f"torchvision models read 3 channels, not {in_channels}")
    options = _TORCHVISION_OPTIONS.get(name.partition("_")[0], _no_options)
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options(size))
    _replace_head(module, num_classes)
    return module


def _replace_head(module: nn.Module, num_classes: int) -> None:
    """Put a new last layer, Linear or 1x1 convolution, in place of ImageNet's."""
    name, head = [
        (name, part)
        for name, part in module.named_modules()
        if getattr(part, "out_features", getattr(part, "out_channels", 0)) == IMAGENET_CLASSES
    ][-1]
    fresh = (
        nn.Linear(head.in_features, num_classes)
        if isinstance(head, nn.Linear)
        else nn.Conv2d(cast(nn.Conv2d, head).in_channels, num_classes, 1)
    )
    module.set_submodule(name, fresh)


def _no_options(_: Size) -> Mapping[str, object]:
    return {}


# Options of a model, by the first word of its name; auxiliary heads would get no loss.
_TORCHVISION_OPTIONS: Mapping[str, Callable[[Size], Mapping[str, object]]] = MappingProxyType(
    {
        "vit": lambda size: {"image_size": size[0]},
        "maxvit": lambda size: {"input_size": size},
        "googlenet": lambda _: {"aux_logits": False, "init_weights": False},
        "inception": lambda _: {"aux_logits": False, "init_weights": False},
    }
)
_CHECKS: Mapping[str, Callable[[str], None]] = MappingProxyType(
    {"timm": _check_timm, "torchvision": _check_torchvision, CIFAR: _check_cifar}
)
BUILDERS: Mapping[str, Callable[[str, int, int, Size], nn.Module]] = MappingProxyType(
    {"timm": _build_timm, "torchvision": _build_torchvision, CIFAR: _build_cifar}
)
