"""Price a student before training it: FLOPs and parameters.

FLOPs follow fvcore: one multiply-add counts once, batch size 1, eval mode; normalisation, adaptive
pooling and upsampling are counted as fvcore does, element-wise operators and reductions are not.
Fused attention is added. An operator without a count is an error, never a silent zero, and the
multiply-adds must agree with torch's own counter. A module that is never called costs no FLOPs.
A student is counted by closed forms, which fvcore checks once a process.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdsearch.deploy.closed_forms import count_shapes
from kdsearch.errors import CostError
from kdsearch.models.features import Tapped, bare
from kdsearch.models.students.base import Student

with warnings.catch_warnings():  # fvcore scripts a loss when it is imported
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import elementwise_flop_counter, get_shape

# Not counted, like fvcore's own list: operators that map or compare values one by one, reduce
# them, or move them. Each name stands for its in-place form too.
_UNCOUNTED = """
abs add addcdiv addcmul ceil clamp_max clamp_min cos div elu erf exp expm1 floor gelu hardsigmoid
hardswish hardtanh leaky_relu log log1p log_sigmoid maximum minimum mish mul neg pow prelu
reciprocal relu6 round rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub tanh threshold
where bitwise_and bitwise_or le logical_and logical_not logical_or lt ne
adaptive_max_pool2d amax amin argmax avg_pool1d avg_pool2d cumsum linalg_vector_norm log_softmax
logsumexp max_pool2d mean min norm softmax std sum var
alias_copy alpha_dropout broadcast_tensors channel_shuffle clone col2im dropout expand_as
feature_dropout fill flip im2col index_select lift_fresh masked_select meshgrid movedim new_ones
numel one_hot ones_like pad pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape_as
scatter tile tril triu unflatten unfold view_as zero
Bool Float FloatImplicit IntImplicit
"""
# The operators that torch.utils.flop_counter counts too, by the names that fvcore reports.
_MULTIPLY_ADDS = "addmm bmm conv einsum linear matmul mm scaled_dot_product_attention"
_TOLERANCE = 0.01
# Whether closed forms equal the traced count, by network and the torch functions that it calls.
_is_exact: dict[tuple[type[nn.Module], frozenset[str]], bool] = {}


def count(model: nn.Module, *, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return (FLOPs, parameters) of `model` on one image [C, H, W]; the model is left as it was.

    Parameters that never run are counted too; weights may be on the meta device. Raises CostError
    when an operator has no count, when the two counters disagree, or when the model does not take
    such an image. Takes 4 ms of CPU for a student, 100 ms and more for what is traced.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    is_known = isinstance(model, Student | Tapped)
    if not is_known or (found := count_shapes(model, input_shape)) is None:
        return traced_flops(model, input_shape), params
    kind = type(bare(model)), found.functions
    if kind not in _is_exact:
        _is_exact[kind] = found.flops == traced_flops(model, input_shape)
    return found.flops if _is_exact[kind] else traced_flops(model, input_shape), params


def traced_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the FLOPs of a network on one image [C, H, W], traced by fvcore. Raises CostError."""
    return by_module(model, input_shape)[""]


def by_module(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the FLOPs of each module by its name, '' for the network. Raises CostError."""
    name = type(model).__name__
    frozen = _frozen_view(model)
    first = next(chain(frozen.parameters(), frozen.buffers()), torch.empty(0))
    dtype = first.dtype if first.is_floating_point() else torch.float32
    image = first.new_zeros((1, *input_shape), dtype=dtype)
    with torch.no_grad(), unfused_attention():
        analysis = _analyse(frozen, image, name)
        _compare_counters(frozen, image, analysis.by_operator(), name)
    return {module: int(flops) for module, flops in analysis.by_module().items()}


def _frozen_view(model: nn.Module) -> nn.Module:
    """Copy the modules, share the weights: hooks that a failed trace leaves stay on the copy.

    Weights on the meta device, which cannot be traced, become zeros.
    """
    shared: dict[int, object] = {id(buffer): _with_values(buffer) for buffer in model.buffers()}
    for weight in model.parameters():
        shared[id(weight)] = nn.Parameter(_with_values(weight.detach()), requires_grad=False)
    return copy.deepcopy(model, shared).eval()


def _with_values(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` off its inference path, which cannot be counted or exported."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _analyse(model: nn.Module, image: Tensor, name: str) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(model, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle(
        **{f"aten::{op}{end}": None for op in _UNCOUNTED.split() for end in ("", "_")}
    )
    analysis.set_op_handle(
        **{f"aten::{op}": _matrix_product for op in ("matmul", "mm", "bmm")},
        **{
            "aten::scaled_dot_product_attention": _attention,
            "aten::upsample_bicubic2d": elementwise_flop_counter(0, 16),
        },
    )
    try:
        analysis.total()
    except Exception as error:  # whatever the model's own forward raises
        shape = "x".join(map(str, image.shape[1:]))
        raise CostError(f"{name} cannot be traced on an image of {shape}: {error}") from error
    if unsupported := analysis.unsupported_ops():
        found = ", ".join(f"{op} ({times} times)" for op, times in sorted(unsupported.items()))
        raise CostError(
            f"{name}: no FLOP count for {found}; build it from convolutions, linear layers, matrix "
            "products and scaled_dot_product_attention, which are counted"
        )
    return analysis


def _matrix_product(inputs: Sequence[object], outputs: Sequence[object]) -> int:
    """Count from the product's shape, so that either factor may be broadcast."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _attention(inputs: Sequence[object], outputs: Sequence[object]) -> int:
    """Count Q K^T and A V: rows of Q times keys times (key width + value width)."""
    query, key, value = map(_shape, inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])


def _shape(value: object) -> tuple[int, ...]:
    return tuple(get_shape(value))


def _compare_counters(
    model: nn.Module, image: Tensor, by_operator: Counter[str], name: str
) -> None:
    """Count again with torch's dispatcher, which sees every kernel and counts 2 a multiply-add."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    seen = counter.get_total_flops() / 2
    counted = sum(by_operator[op] for op in _MULTIPLY_ADDS.split())
    if abs(counted - seen) > _TOLERANCE * max(counted, seen):
        raise CostError(
            f"{name}: fvcore counts {counted / 1e6:.3f} M multiply-adds, torch "
            f"{seen / 1e6:.3f} M; one of them misses an operator ({dict(by_operator)})"
        )
