"""Count the FLOPs of a network from shapes alone: it runs on the meta device, nothing is computed.

A function without an entry here has no closed form, and the network is left to `flops.count`,
which traces it. Each form equals that count: FLOPs are those of fvcore at batch size 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdsearch.models.probe import evaluating

# Functions without FLOPs whose answer has the shape of their first argument.
_SAME_SHAPE = {
    *("contiguous", "dropout", "gelu", "hardsigmoid", "hardswish", "hardtanh", "relu", "relu6"),
    *("roll", "sigmoid", "silu", "softmax"),
}
_PAIRS = {"add", "add_", "mul", "sub"}  # the same, where both arguments have one shape
# Functions without FLOPs that are called, for the shape of their answer.
_CALLED = {
    *("__get__", "__getitem__", "_assert", "cat", "chunk", "dim", "div", "expand", "flatten"),
    *("max_pool2d", "mean", "pad", "permute", "reshape", "size", "squeeze", "transpose", "unbind"),
    *("unflatten", "unsqueeze", "view"),
}


@contextmanager
def without_weights() -> Iterator[None]:
    """Build networks on the meta device, without the initialisation of their weights."""
    with torch.device("meta"), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a function that works in place, `normal_`, by its tensor as it is."""
        options, name = kwargs or {}, func.__name__
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else options["tensor"]
        return func(*args, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCount:
    """FLOPs of a network on one image, and the names of the torch functions that it calls."""

    flops: int
    functions: frozenset[str]


def count_shapes(model: nn.Module, input_shape: tuple[int, int, int]) -> ShapeCount | None:
    """Return the count of `model` on one image [C, H, W]; the model is left as it was.

    None where it calls a function without a closed form, or does not run on the meta device.
    """
    counter = _Counter()
    image = torch.empty((1, *input_shape), device="meta")
    try:
        with evaluating(model), torch.no_grad(), counter:
            model(image)
    except Exception:  # the trace of `flops.count` raises the reason, if it is the model's
        return None
    return ShapeCount(flops=counter.flops, functions=frozenset(counter.functions))


class _Counter(TorchFunctionMode):
    """Answers each torch function by a tensor on the meta device, and adds up the FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.functions: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return an answer of the right shape. Raises KeyError without a closed form."""
        name, options = func.__name__, kwargs or {}
        self.functions.add(name)
        if name in _SAME_SHAPE or (name in _PAIRS and _is_one_shape(*args)):
            return args[0]
        if name in _CALLED or name in _PAIRS:
            return func(*_on_meta(args), **options)
        flops, answer = _FORMS[name](*args, **options)
        self.flops += flops
        return answer


def _is_one_shape(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


def _on_meta(value: Any) -> Any:
    """Return an argument with its tensors, those in sequences too, on the meta device."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    return type(value)(map(_on_meta, value)) if type(value) in (tuple, list) else value


def _convolution(image: Tensor, weight: Tensor, *others: Any, **options: Any) -> tuple[int, Tensor]:
    answer = torch.conv2d(*_on_meta((image, weight, *others)), **options)
    return answer.shape[0] * weight.numel() * math.prod(answer.shape[2:]), answer


def _linear(values: Tensor, weight: Tensor, bias: object = None) -> tuple[int, Tensor]:
    outputs = weight.shape[0]
    return values.numel() * outputs, values.new_empty((*values.shape[:-1], outputs))


def _batch_norm(
    values: Tensor, mean: object, var: object, weight: object = None, *others: object, **_: object
) -> tuple[int, Tensor]:
    assert mean is not None, "statistics of the batch"
    return values.numel() * (1 if weight is None else 2), values


def _layer_norm(
    values: Tensor, shape: object, weight: object = None, *others: object, **_: object
) -> tuple[int, Tensor]:
    return values.numel() * (4 if weight is None else 5), values


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *others: object, **_: object
) -> tuple[int, Tensor]:
    flops = math.prod(query.shape[:-1]) * key.shape[-2] * (key.shape[-1] + value.shape[-1])
    return flops, query.new_empty((*query.shape[:-1], value.shape[-1]))


def _mean_pool(values: Tensor, size: int | tuple[int | None, int | None]) -> tuple[int, Tensor]:
    return values.numel(), torch.nn.functional.adaptive_avg_pool2d(values, size)


def _product(one: Tensor, other: Tensor) -> tuple[int, Tensor]:
    answer = torch.matmul(*_on_meta((one, other)))
    return answer.numel() * one.shape[-1], answer


def _interpolate(
    image: Tensor, size: tuple[int, int], *, mode: str, **_: object
) -> tuple[int, Tensor]:
    assert mode == "bilinear", mode
    answer = image.new_empty((*image.shape[:2], *size))
    return 4 * answer.numel(), answer


_FORMS: Mapping[str, Callable[..., tuple[int, Tensor]]] = {
    "conv2d": _convolution,
    "interpolate": _interpolate,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "adaptive_avg_pool2d": _mean_pool,
    "matmul": _product,
}
