"""What a network says on one batch: logits, embedding and stages, whatever its kind.

Every stage is a map [B, C, H, W]; tokens are laid back on their grid without the prefix tokens
(class, distillation, register), so that CNNs and transformers meet on the same ground.
`Tapped` finds the stages of a module that nobody prepared; it knows no architecture by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from threading import get_ident

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError

MAX_STAGES = 5
TRANSFORMER_STAGES = 4


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network says of a batch; teacher's outputs are asked for part by part.

    logits: [B, K], what inference answers. embedding: [B, D], what the head reads. stages: maps
    [B, C, H, W], shallow to deep. attention: maps [B, 3 * D, H, W] of query, key and value of the
    attention within each stage; none in a network without attention. heads: (class, distillation)
    logits of a student with a distillation token, whose `logits` are their mean. gradient: of the
    sum of each sample's largest logit in the deepest stage, a map like it. index: [B], which
    training samples these are.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    heads: tuple[Tensor, ...] = ()
    gradient: Tensor | None = None
    index: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return every tensor but `index`, in the order of the fields."""
        gradient = () if self.gradient is None else (self.gradient,)
        return [
            self.logits,
            self.embedding,
            *self.stages,
            *self.attention,
            *self.heads,
            *gradient,
        ]

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the same with every tensor but `index` changed."""
        return Outputs(
            logits=change(self.logits),
            embedding=change(self.embedding),
            stages=tuple(map(change, self.stages)),
            attention=tuple(map(change, self.attention)),
            heads=tuple(map(change, self.heads)),
            gradient=None if self.gradient is None else change(self.gradient),
            index=self.index,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a submodule: its dotted name and how many calls of it came before."""

    name: str
    index: int = 0


class Tapped(nn.Module):
    """Any image classifier, telling its stages and its embedding.

    Stages are found once, by running a blank batch. The units that count are the members of
    Sequentials and ModuleLists (the rest of the network around these is looked into). Where they
    work at several sizes, a stage is the last output at each size above 1x1; where they keep one
    grid of tokens, the stages are four of them, evenly spaced. The embedding is what the last
    Linear (else 1x1 convolution) with K outputs reads, averaged over positions. Attention is told
    when every stage is a block of tokens that holds a fused projection to query, key and value (a
    Linear with 3 * D outputs, or MultiheadAttention) of these tokens; windows are not. Two heads
    are what a plain tuple of two [B, K] is in training mode: timm's distilled transformers.

    Raises SpecError when the module fails on the input or does not answer with logits [B, K].
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        in_channels: int,
        resolution: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        shape = (2, in_channels, resolution, resolution)
        calls, logits = _probe(module, shape)
        if num_classes is not None and logits.shape[1] != num_classes:
            raise SpecError(
                f"{type(module).__name__} answers with {logits.shape[1]} classes, the data has "
                f"{num_classes}; give a network with {num_classes} outputs"
            )
        self.head, body = _split_at_head(module, calls, logits.shape[1])
        self.stages = _find_stages(module, body)
        self.attention = _find_attention(module, calls, self.stages)
        self.is_linear = self.head is not None and torch.equal(calls[self.head].flatten(1), logits)
        if self.head is None and not self.stages:
            raise SpecError(
                f"{type(module).__name__} has neither a Linear or convolution with "
                f"{logits.shape[1]} outputs nor any map to read an embedding from"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] from the bare module, without hooks."""
        return self._read(x)[0]

    def features(self, x: Tensor, *, attention: bool = True) -> Outputs:
        """Return logits, embedding, stages and what else there is to tell of x: [B, C, H, W].

        attention: False spares what it costs to tell: memory for maps that would be freed, and
        for MultiheadAttention, which never shows its query, key and value, a second projection.
        """
        heads = () if self.head is None else (self.head,)
        asked = self.attention if attention else ()
        with (
            _listening(self.module, self.stages + asked, before=False) as outputs,
            _listening(self.module, heads + asked, before=True) as inputs,
        ):
            logits, both = self._read(x)
        maps = tuple(_as_map(outputs[call]) for call in self.stages)
        read = inputs[self.head] if self.head else maps[-1]
        projections = ((self.module.get_submodule(call.name), call) for call in asked)
        told = tuple(_qkv(part, inputs[call], outputs[call]) for part, call in projections)
        return Outputs(logits, _pooled(read), maps, tuple(map(tokens_to_map, told)), both)

    def _read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits and, where these are the mean of two heads, both."""
        answer = self.module(x)
        if self.module.training and type(answer) is tuple and len(answer) == 2:
            first, second = map(_first_tensor, answer)
            if first is not None and second is not None and first.shape == second.shape:
                return _logits((first + second) / 2), (first, second)
        return _logits(answer), ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a call gave in the probe: `side` of its map or grid (0: neither), tokens or not."""

    call: Call
    shape: tuple[int, ...]
    side: int
    is_tokens: bool


def _logits(answer: object) -> Tensor:
    """Return the [B, K] tensor in what a classifier answers, whichever way it wraps it."""
    found = getattr(answer, "logits", answer)
    if isinstance(found, Mapping):
        found = found.get("logits")
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        seen = list(found.shape) if isinstance(found, Tensor) else type(answer).__name__
        raise SpecError(f"a classifier must answer with logits [batch, classes], not {seen}")
    return found


def _first_tensor(answer: object) -> Tensor | None:
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    while isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    return answer if isinstance(answer, Tensor) else None


@contextmanager
def _listening(
    module: nn.Module, calls: tuple[Call, ...], *, before: bool
) -> Iterator[dict[Call, Tensor]]:
    """Record the input (`before`) or the output of the calls made inside the with-block.

    Only those of this thread: trials in several threads share their teacher.
    """
    thread = get_ident()
    heard: dict[Call, Tensor] = {}
    counts: Counter[str] = Counter()

    def listen(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, answer: object = None) -> None:
            if get_ident() != thread:
                return
            tensor = _first_tensor(args if before else answer)
            if tensor is not None:
                heard[Call(name, counts[name])] = tensor
            counts[name] += 1

        return hook

    names = dict.fromkeys(call.name for call in calls)
    targets = [(module.get_submodule(name), listen(name)) for name in names]
    handles = [
        target.register_forward_pre_hook(hook) if before else target.register_forward_hook(hook)
        for target, hook in targets
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _probe(module: nn.Module, shape: tuple[int, ...]) -> tuple[dict[Call, Tensor], Tensor]:
    """Run a blank batch in eval mode; return every call worth a tap, in order, and the logits.

    Heads and attention are recorded with the others; training flags are put back one by one.
    """
    extra = [name for name, part in module.named_modules() if _head_width(part) or _is_qkv(part)]
    names = dict.fromkeys([*_units(module), *extra])
    like = next(module.parameters(), torch.empty(0))
    x = torch.zeros(shape, dtype=like.dtype, device=like.device)
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with (
            torch.no_grad(),
            _listening(module, tuple(map(Call, names)), before=False) as calls,
        ):
            logits = _logits(module(x))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = " x ".join(map(str, shape[1:]))
        raise SpecError(f"{type(module).__name__} fails on an input of {size}: {error}") from error
    finally:
        for part, flag in flags:
            part.training = flag
    return calls, logits


def _is_container(module: nn.Module) -> bool:
    """Whether a module only lists others: it computes nothing of its own."""
    return type(module).forward in (nn.Sequential.forward, nn.Module.forward)


def _units(module: nn.Module, prefix: str = "", *, listed: bool = False) -> Iterator[str]:
    """Yield the names of the units of a network; `listed`: module is a container."""
    for name, part in module.named_children():
        path = f"{prefix}{name}"
        is_container = _is_container(part)
        if is_container or (not listed and any(map(_is_container, part.modules()))):
            yield from _units(part, f"{path}.", listed=is_container)
        if not is_container:
            yield path


def _head_width(module: nn.Module) -> int:
    """Return the outputs of a Linear or 1x1 convolution, 0 for anything else."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return 0


def _is_qkv(module: nn.Module) -> bool:
    """Whether a module may project tokens to query, key and value at once."""
    if isinstance(module, nn.MultiheadAttention):
        return module.batch_first and module.in_proj_weight is not None
    return isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features


def _qkv(module: nn.Module, given: Tensor, gave: Tensor) -> Tensor:
    """Return [B, N, 3 * D] of a module that `_is_qkv`, from its input and output."""
    if isinstance(module, nn.MultiheadAttention):
        assert module.in_proj_weight is not None
        return F.linear(given, module.in_proj_weight, module.in_proj_bias)
    return gave


def _find_attention(
    module: nn.Module, calls: dict[Call, Tensor], stages: tuple[Call, ...]
) -> tuple[Call, ...]:
    """Return the projection to query, key and value in each stage, or none at all.

    It is the stage's first such call on the stage's own tokens: a later one may be the entrance
    of a perceptron three times as wide.
    """
    fits = [
        call for call in calls if calls[call].ndim == 3 and _is_qkv(module.get_submodule(call.name))
    ]
    told: list[Call] = []
    for stage in stages:
        inside = (
            call
            for call in fits
            if call.name.startswith(f"{stage.name}.") and call.index == stage.index
        )
        like = calls[stage].shape
        told += [call for call in inside if len(like) == 3 and calls[call].shape[:2] == like[:2]][
            :1
        ]
    return tuple(told) if len(told) == len(stages) else ()


def _split_at_head(
    module: nn.Module, calls: dict[Call, Tensor], classes: int
) -> tuple[Call | None, list[_Seen]]:
    """Return the head's call and what the units before it gave, in order."""
    order = list(calls)
    fits = [call for call in order if _head_width(module.get_submodule(call.name)) == classes]
    linear = [call for call in fits if isinstance(module.get_submodule(call.name), nn.Linear)]
    head = next(reversed(linear or fits), None)
    units = set(_units(module))
    body = order if head is None else order[: order.index(head)]
    return head, [_see(call, tuple(calls[call].shape)) for call in body if call.name in units]


def _see(call: Call, shape: tuple[int, ...]) -> _Seen:
    if len(shape) == 3:
        return _Seen(call, shape, isqrt(shape[1]), is_tokens=True)
    if len(shape) == 4 and shape[2] in (shape[1], shape[3]):
        return _Seen(call, shape, shape[2], is_tokens=False)
    return _Seen(call, shape, 0, is_tokens=False)


def _find_stages(module: nn.Module, body: list[_Seen]) -> tuple[Call, ...]:
    """Return the last call at each size, or evenly spaced members of a list on one grid of tokens.

    The latter where these are more.
    """
    last: dict[int, Call] = {}
    groups: dict[tuple[str, int], list[Call]] = {}
    for seen in body:
        smallest = min(last, default=seen.side)
        if 1 < seen.side <= smallest:
            last[seen.side] = seen.call
        parent = seen.call.name.rpartition(".")[0]
        if seen.is_tokens and seen.side > 1 and _is_container(module.get_submodule(parent)):
            groups.setdefault((parent, seen.shape[1]), []).append(seen.call)
    by_size = tuple(last.values())[-MAX_STAGES:]
    blocks = max(groups.values(), key=len, default=[])
    by_depth = tuple(blocks[i] for i in evenly_spaced(len(blocks), TRANSFORMER_STAGES))
    return by_depth if len(by_depth) > len(by_size) else by_size


def evenly_spaced(total: int, count: int) -> tuple[int, ...]:
    """Return at most `count` evenly spaced indices into `total` items, the last one included."""
    count = min(total, count)
    return tuple(total * (i + 1) // count - 1 for i in range(count))


def _as_map(output: Tensor) -> Tensor:
    """Return [B, C, H, W] from tokens [B, N, D], a channels-last map, or a map."""
    if output.ndim == 3:
        return tokens_to_map(output)
    is_last = output.shape[2] != output.shape[3] and output.shape[1] == output.shape[2]
    return output.permute(0, 3, 1, 2) if is_last else output


def tokens_to_map(tokens: Tensor) -> Tensor:
    """Lay tokens [B, N, D] on the largest square grid they fill; the first ones are prefix."""
    batch, count, width = tokens.shape
    side = isqrt(count)
    return tokens[:, count - side * side :].transpose(1, 2).reshape(batch, width, side, side)


def _pooled(read: Tensor) -> Tensor:
    """Return [B, D] from an embedding, tokens [B, N, D] or a map [B, D, H, W]."""
    if read.ndim == 3:
        return read.mean(dim=1)
    return read.mean(dim=(2, 3)) if read.ndim == 4 else read


def bare(network: nn.Module) -> nn.Module:
    """Return a network without its taps, so that its weights have its library's own names."""
    return network.module if isinstance(network, Tapped) else network


def head_of(network: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return (weight [K, D], bias [K] or None) of the layer that makes logits of the embedding.

    None where no single linear layer does: two heads, a perceptron, positions averaged after it.
    network: `Tapped`, or a student, whose head is its one Linear child.
    """
    if isinstance(network, Tapped):
        found = [network.module.get_submodule(network.head.name)] if network.head else []
        found = found if network.is_linear else []
    else:
        found = [part for part in network.children() if isinstance(part, nn.Linear)]
    if len(found) != 1:
        return None
    (head,) = found
    assert isinstance(head, nn.Linear | nn.Conv2d)
    return head.weight.flatten(1), head.bias


def gradient_of(outputs: Outputs) -> Outputs:
    """Return the outputs with `gradient`, by autograd; the graph is used up.

    Raises SpecError when there are no stages, or the network ran without gradients: a frozen
    network needs them enabled on its input.
    """
    if not outputs.stages:
        raise SpecError("the gradient is taken at the deepest stage, and the network shows none")
    score = outputs.logits.max(dim=1).values.sum()
    return replace(outputs, gradient=gradient_at(score, outputs.stages[-1]))


def source_of(stage: Tensor) -> Tensor:
    """Return the tensor that the network reads: a stage of tokens is only a view of it."""
    return stage if stage._base is None else stage._base


def gradient_at(score: Tensor, stage: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar in a stage, a map like it.

    A stage of tokens is a view that the network itself never reads: the gradient is taken in the
    tensor behind the view and looked at the same way. Raises SpecError where there is no graph
    between the two.
    """
    base = source_of(stage)
    gradient: Tensor | None = None
    if score.requires_grad and base.requires_grad:
        (gradient,) = torch.autograd.grad(score, base, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise SpecError(
            "no gradient leads from the logits to the deepest stage; run the network with "
            "gradients enabled (of a frozen one: on its input), and take the stage as it gave it"
        )
    if base is stage:
        return gradient
    like = torch.empty_like(base).copy_(gradient)
    return like.as_strided(stage.shape, stage.stride(), stage.storage_offset())
