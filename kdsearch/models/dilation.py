"""Keep the resolution of deep stages: convolutions dilate in place of striding.

Each convolution reads, at every position, the values that it read before at some of them, so
the maps at the old positions do not change (Chen et al., 2015, arXiv:1412.7062).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.models.probe import evaluating, hooked


def dilate(body: nn.Module, image: Tensor, output_stride: int) -> None:
    """Change the convolutions of a body in place, so that no map has a larger stride.

    image: a blank one [1, C, H, W]. Weights and their names stay. A layer that strides and is no
    Conv2d stays as it is.
    """
    for name, inner in _strides_before(body, image).items():
        conv = body.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        before = min(inner, output_stride)
        stride = min(inner * conv.stride[0], output_stride) // before
        if (rate := inner // before) > 1 or stride < conv.stride[0]:
            body.set_submodule(name, _dilated(conv, stride=stride, rate=rate))


def _strides_before(body: nn.Module, image: Tensor) -> dict[str, int]:
    """Return the stride of what each convolution reads, without those on a single position."""
    found: dict[str, int] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if (side := args[0].shape[3]) > 1:
                found[name] = image.shape[3] // side

        return record

    convs = [(n, part) for n, part in body.named_modules() if isinstance(part, nn.Conv2d)]
    handles = [part.register_forward_pre_hook(recorder(name)) for name, part in convs]
    with hooked(handles), evaluating(body), torch.no_grad():
        body(image)
    return found


def _dilated(conv: nn.Conv2d, *, stride: int, rate: int) -> nn.Conv2d:
    """Return a convolution with the same weights, another stride and `rate` times the dilation."""
    high, wide = (rate * each for each in conv.dilation)
    if type(conv).forward is not nn.Conv2d.forward or isinstance(conv.padding, str):
        conv.stride, conv.dilation = (stride, stride), (high, wide)
        return conv  # it finds its padding itself
    top, left = (rate * int(each) for each in conv.padding)
    bottom = high * (conv.kernel_size[0] - 1) - top
    right = wide * (conv.kernel_size[1] - 1) - left
    if (top, left) != (bottom, right):
        return _Padded(conv, (stride, stride), (high, wide), (left, right, top, bottom))
    conv.stride, conv.dilation, conv.padding = (stride, stride), (high, wide), (top, left)
    return conv


class _Padded(nn.Conv2d):
    """A convolution with the weights of another, and zeros left, right, above and below."""

    def __init__(
        self,
        conv: nn.Conv2d,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        zeros: tuple[int, int, int, int],
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=stride,
            dilation=dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias, self.zeros = conv.weight, conv.bias, zeros

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, as large as x by the stride."""
        return super().forward(F.pad(x, self.zeros))

    def extra_repr(self) -> str:
        """Return the padding too: latencies are kept by it."""
        return f"{nn.Conv2d.extra_repr(self)}, zeros={self.zeros}"  # type: ignore[no-untyped-call]
