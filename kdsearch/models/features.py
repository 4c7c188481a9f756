"""Outputs of any network for one batch: logits, embedding, stages.

Every stage is a map [B, C, H, W]; tokens are laid back on their grid without the prefix tokens
(class, distillation, register), so that CNNs and transformers compare.
`Tapped` finds the stages of any module; it knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import SpecError
from kdsearch.models.maps import as_map, pooled
from kdsearch.models.probe import (
    find_attention,
    find_stages,
    first_tensor,
    logits_of,
    makes,
    probe,
    projections,
    recording,
    split_at_head,
)

Answers: TypeAlias = Literal["logits", "probabilities", "embedding"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a network for a batch; of a teacher only the parts that are needed.

    logits: [B, K], or [B, K, h, w] of a segmenter, what inference answers. embedding: [B, D], what
    the head reads, averaged over positions. stages: maps [B, C, H, W], shallow to deep. attention:
    maps [B, 3 * D, H, W] of query, key and value of the attention within each stage; none in a
    network without attention. heads: (class, distillation) logits of a student with a distillation
    token, whose `logits` are their mean. gradient: of the sum of each sample's largest logit in the
    deepest stage, a map like it. index: [B], which training samples these are. Of a
    detector: logits [B, P, K] and edges [B, P, 4, bins] of the points of a grid, whose levels are
    (h, w). boxes: of a teacher, [B, n, 6] of x1, y1, x2, y2 in fractions of the view, score and a
    code as labels have it.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    heads: tuple[Tensor, ...] = ()
    gradient: Tensor | None = None
    index: Tensor | None = None
    edges: Tensor | None = None
    levels: tuple[Size, ...] = ()
    boxes: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return every tensor but `index`, in the order of the fields."""
        others = (found for found in (self.gradient, self.edges, self.boxes) if found is not None)
        return [
            self.logits,
            self.embedding,
            *self.stages,
            *self.attention,
            *self.heads,
            *others,
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
            edges=None if self.edges is None else change(self.edges),
            levels=self.levels,
            boxes=None if self.boxes is None else change(self.boxes),
        )


class Tapped(nn.Module):
    """Any image classifier or segmenter, with its stages and its embedding.

    Stages are found once, by running a blank batch. The units that count are the members of
    Sequentials and ModuleLists (the rest of the network around these is looked into). Where they
    work at several sizes, a stage is the last output at each size above 1x1; where they keep one
    grid of tokens, the stages are four of them, evenly spaced. The embedding is what the last
    Linear (else 1x1 convolution) with K outputs reads, averaged over positions. Attention is given
    when every stage is a block of tokens that holds a fused projection to query, key and value (a
    Linear with 3 * D outputs, or MultiheadAttention) of these tokens; windows are not. Two heads
    are what a plain tuple of two [B, K] is in training mode: timm's distilled transformers.

    answers: what the module gives: `probabilities`, whose logarithms are the logits then, or an
    `embedding`, where it has no head. is_dense: for a segmenter, which answers with logits [B, K,
    h, w]; where these are the output of its head, resized, `features` gives that output.
    Raises SpecError when the module fails on the input or does not answer with such logits.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        in_channels: int,
        resolution: int | Size,
        num_classes: int | None = None,
        answers: Answers = "logits",
        is_dense: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self.answers = answers
        self.is_dense = is_dense
        size = as_size(resolution)
        shape = (2, in_channels, *size)
        calls, logits = probe(module, shape, is_dense=is_dense)
        if num_classes is not None and logits.shape[1] != num_classes:
            raise SpecError(
                f"{type(module).__name__} answers with {logits.shape[1]} classes, the data has "
                f"{num_classes}; give a network with {num_classes} outputs"
            )
        classes = 0 if answers == "embedding" else logits.shape[1]
        self.head, body = split_at_head(module, calls, logits, classes, size)
        self.stages = find_stages(module, body)
        self.attention = find_attention(module, calls, self.stages)
        self.is_linear = self.head is not None and makes(calls[self.head], logits)
        if self.head is None and not self.stages and answers != "embedding":
            raise SpecError(
                f"{type(module).__name__} has neither a Linear or convolution with "
                f"{logits.shape[1]} outputs nor any map to read an embedding from"
            )

    def extra_repr(self) -> str:
        """Return the kind of the answers: cached outputs depend on it."""
        return self.answers

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] or [B, K, h, w] from the bare module, without hooks."""
        return self._read(x)[0]

    def features(self, x: Tensor, *, attention: bool = True) -> Outputs:
        """Return logits, embedding, stages and the other outputs for x: [B, C, H, W].

        attention: False saves its cost: memory for maps that would be freed, and
        for MultiheadAttention, which never shows its query, key and value, a second projection.
        """
        heads = () if self.head is None else (self.head,)
        projected = self.attention if attention else ()
        answering = heads if self.is_dense and self.is_linear else ()
        with (
            recording(self.module, self.stages + projected + answering, before=False) as outputs,
            recording(self.module, heads + projected, before=True) as inputs,
        ):
            logits, both = self._read(x)
        logits = outputs[answering[0]] if answering else logits
        size = (x.shape[2], x.shape[3])
        maps = tuple(as_map(outputs[call], size) for call in self.stages)
        if self.answers == "embedding":
            read = logits
        else:
            read = inputs[self.head] if self.head else maps[-1]
        parts = ((self.module.get_submodule(call.name), call) for call in projected)
        attended = tuple(projections(part, inputs[call], outputs[call]) for part, call in parts)
        return Outputs(
            logits, pooled(read), maps, tuple(as_map(tokens, size) for tokens in attended), both
        )

    def _read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits and, where these are the mean of two heads, both."""
        answer = self.module(x)
        is_pair = type(answer) is tuple and len(answer) == 2
        if self.module.training and is_pair and not self.is_dense:
            first, second = map(first_tensor, answer)
            if first is not None and second is not None and first.shape == second.shape:
                return logits_of((first + second) / 2), (first, second)
        logits = logits_of(answer, is_dense=self.is_dense)
        if self.answers == "probabilities":
            logits = logits.clamp(min=torch.finfo(logits.dtype).tiny).log()
        return logits, ()


def bare(network: nn.Module) -> nn.Module:
    """Return a network without its taps, so that its weights have its library's own names."""
    return network.module if isinstance(network, Tapped) else network


def head_of(network: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return (weight [K, D], bias [K] or None) of the layer that makes logits of the embedding.

    None where no single linear layer does: two heads, a perceptron, positions averaged after it.
    network: `Tapped`, or a student, whose head is its one Linear child.
    """
    head = head_module(network)
    return None if head is None else (head.weight.flatten(1), head.bias)


def head_module(network: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the layer that `head_of` reads, None where no single linear layer does."""
    if isinstance(network, Tapped):
        found = [network.module.get_submodule(network.head.name)] if network.head else []
        found = found if network.is_linear else []
    else:
        found = [part for part in network.children() if isinstance(part, nn.Linear)]
    if len(found) != 1:
        return None
    (head,) = found
    assert isinstance(head, nn.Linear | nn.Conv2d)
    return head


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
