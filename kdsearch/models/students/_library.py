"""Fixed architectures of timm and torchvision as students: `timm:NAME`, `torchvision:NAME`.

Nothing of them is searched; `pretrained` starts from the library's weights. Their stages are
found by `Tapped`. The libraries are imported only when one of their names is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

from torch import nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.features import Tapped
from kdsearch.space import Value

IMAGENET_CLASSES = 1000


def check_name(family: str) -> None:
    """Raise SpecError, with the nearest name, when the library has no such model."""
    library, _, name = family.partition(":")
    _CHECKS[library](name)


def build_library(
    family: str,
    *,
    in_channels: int,
    num_classes: int,
    resolution: int | Size,
    pretrained: Value = False,
) -> Tapped:
    """Build `timm:NAME` or `torchvision:NAME`. Raises SpecError."""
    if not isinstance(pretrained, bool):
        raise SpecError(f"student {family}: pretrained {pretrained!r} is not true or false")
    check_name(family)
    size = as_size(resolution)
    shown = f"{in_channels} x {size[0]} x {size[1]}"
    library, _, name = family.partition(":")
    try:
        module = _BUILDERS[library](name, in_channels, num_classes, size, pretrained)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause = " ".join(str(error).split())
        if pretrained:
            raise SpecError(
                f"student {family}: its pretrained weights cannot be had for {shown} "
                f"({cause}); connect once to download them, or set "
                f"pretrained to false"
            ) from error
        raise SpecError(f"student {family} cannot be built for {shown}: {cause}") from error
    return Tapped(module, in_channels=in_channels, resolution=resolution, num_classes=num_classes)


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


def _torchvision_names() -> list[str]:
    import torchvision

    return cast(list[str], torchvision.models.list_models(module=torchvision.models))


def _build_timm(
    name: str, in_channels: int, num_classes: int, size: Size, pretrained: bool
) -> nn.Module:
    import timm

    config = timm.get_pretrained_cfg(name)
    sides = size[0] if size[0] == size[1] else size
    module: nn.Module = timm.create_model(
        name,
        pretrained=pretrained,
        in_chans=in_channels,
        num_classes=num_classes,
        # timm drops what is None; convolutional models refuse the argument.
        img_size=sides if config and config.fixed_input_size else None,
    )
    return module


def _build_torchvision(
    name: str, in_channels: int, num_classes: int, size: Size, pretrained: bool
) -> nn.Module:
    import torchvision

    if in_channels != 3:
        raise ValueError(f"torchvision models read 3 channels, not {in_channels}")
    options = _TORCHVISION_OPTIONS.get(name.partition("_")[0], _no_options)
    module: nn.Module = torchvision.models.get_model(
        name, weights="DEFAULT" if pretrained else None, **options(size)
    )
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
    {"timm": _check_timm, "torchvision": _check_torchvision}
)
_BUILDERS: Mapping[str, Callable[[str, int, int, Size, bool], nn.Module]] = MappingProxyType(
    {"timm": _build_timm, "torchvision": _build_torchvision}
)
