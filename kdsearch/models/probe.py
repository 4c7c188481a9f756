"""Find head, stages and attention of any network, by one blank batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from threading import get_ident

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError, place_in_user_file
from kdsearch.models.maps import TRANSFORMER_STAGES, evenly_spaced, grid_of, height_axis

MAX_STAGES = 5
_ANSWERS = ("logits", "pooler_output", "image_embeds", "x_norm_clstoken", "last_hidden_state")
_FORMS = {
    2: (_ANSWERS, "a classifier must answer with logits [batch, classes]"),
    4: (
        ("logits", "out"),
        "a segmenter must answer with logits [batch, classes, height, width], or with a mapping "
        "that has them under 'out'",
    ),
}
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a submodule: its dotted name and how many calls of it came before."""

    name: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Output of a call in the probe: `side` of its map or grid (0: neither), tokens or not."""

    call: Call
    shape: tuple[int, ...]
    side: int
    is_tokens: bool


def logits_of(answer: object, *, is_dense: bool = False) -> Tensor:
    """Return the logits in what a network answers, whichever way it wraps them.

    [B, K], in place of which an embedding [B, D] is taken, as transformers and DINO name it; or
    `is_dense`: [B, K, h, w], which torchvision names `out`. Raises SpecError for other forms.
    """
    dims = 4 if is_dense else 2
    names, expected = _FORMS[dims]
    found: object = answer
    for name in names:
        named = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if isinstance(named, Tensor):
            found = named.flatten(1, -2).mean(dim=1) if name == "last_hidden_state" else named
            break
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != dims:
        seen = list(found.shape) if isinstance(found, Tensor) else type(answer).__name__
        raise SpecError(f"{expected}, not {seen}")
    return found


def first_tensor(answer: object) -> Tensor | None:
    """Return the first tensor of a nested answer."""
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    while isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    return answer if isinstance(answer, Tensor) else None


@contextmanager
def recording(
    module: nn.Module, calls: tuple[Call, ...], *, before: bool
) -> Iterator[dict[Call, Tensor]]:
    """Record the input (`before`) or the output of the calls made inside the with-block.

    Only those of this thread: trials in several threads share their teacher.
    """
    thread = get_ident()
    recorded: dict[Call, Tensor] = {}
    counts: Counter[str] = Counter()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, answer: object = None) -> None:
            if get_ident() != thread:
                return
            tensor = first_tensor(args if before else answer)
            if tensor is not None:
                recorded[Call(name, counts[name])] = tensor
            counts[name] += 1

        return hook

    names = dict.fromkeys(call.name for call in calls)
    targets = [(module.get_submodule(name), hook_of(name)) for name in names]
    handles = [
        target.register_forward_pre_hook(hook) if before else target.register_forward_hook(hook)
        for target, hook in targets
    ]
    with hooked(handles):
        yield recorded


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the with-block."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each part of it back into the mode it was in."""
    was_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in was_training:
            part.training = True


def probe(
    module: nn.Module, shape: tuple[int, ...], *, is_dense: bool = False
) -> tuple[dict[Call, Tensor], Tensor]:
    """Run a blank batch in eval mode; return every call worth a tap, in order, and the logits.

    Heads and attention are recorded with the others.
    """
    extra = [name for name, part in module.named_modules() if _head_width(part) or _is_qkv(part)]
    names = dict.fromkeys([*_units(module), *extra])
    with recording(module, tuple(map(Call, names)), before=False) as calls:
        answer = run_blank(module, shape)
    return calls, logits_of(answer, is_dense=is_dense)


def first_and_last(module: nn.Module, shape: tuple[int, ...]) -> list[nn.Module]:
    """Return the layer that reads the image and those that answer, in the order of their calls.

    Layers are Linear, convolutions and attention. The heads are the last ones called that have an
    output for each logit: two in a transformer with a distillation token. shape: of a batch.
    """
    names = [name for name, part in module.named_modules() if isinstance(part, LAYERS)]
    with recording(module, tuple(map(Call, names)), before=False) as calls:
        answer = first_tensor(run_blank(module, shape))
    classes = 0 if answer is None else answer.shape[1]
    order = [module.get_submodule(call.name) for call in calls]
    heads = list(takewhile(lambda part: _rows(part) == classes, reversed(order))) or order[-1:]
    return [*order[:1], *reversed(heads)]


def _rows(layer: nn.Module) -> int:
    """Return the outputs of a layer; 0 of attention."""
    return getattr(layer, "out_features", getattr(layer, "out_channels", 0))


def run_blank(module: nn.Module, shape: tuple[int, ...]) -> object:
    """Return the answer to a blank batch in evaluation mode. Raises SpecError where it fails."""
    like = next(module.parameters(), torch.empty(0))
    x = torch.zeros(shape, dtype=like.dtype, device=like.device)
    try:
        with evaluating(module), torch.no_grad():
            return module(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = " x ".join(map(str, shape[1:]))
        place = place_in_user_file(error)
        where = f" ({place})" if place else ""
        raise SpecError(
            f"{type(module).__name__} fails on an input of {size}{where}: {error}"
        ) from error


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


def projections(module: nn.Module, given: Tensor, gave: Tensor) -> Tensor:
    """Return [B, N, 3 * D] of a module that `_is_qkv`, from its input and output."""
    if isinstance(module, nn.MultiheadAttention):
        assert module.in_proj_weight is not None
        return F.linear(given, module.in_proj_weight, module.in_proj_bias)
    return gave


def find_attention(
    module: nn.Module, calls: dict[Call, Tensor], stages: tuple[Call, ...]
) -> tuple[Call, ...]:
    """Return the projection to query, key and value in each stage, or none at all.

    It is the stage's first such call on the stage's own tokens: a later one may be the entrance
    of a perceptron three times as wide.
    """
    fits = [
        call for call in calls if calls[call].ndim == 3 and _is_qkv(module.get_submodule(call.name))
    ]
    found: list[Call] = []
    for stage in stages:
        inside = (
            call
            for call in fits
            if call.name.startswith(f"{stage.name}.") and call.index == stage.index
        )
        like = calls[stage].shape
        found += [call for call in inside if len(like) == 3 and calls[call].shape[:2] == like[:2]][
            :1
        ]
    return tuple(found) if len(found) == len(stages) else ()


def makes(output: Tensor, logits: Tensor) -> bool:
    """Return whether an output is the logits, which may be it resized bilinearly.

    On the meta device, without numbers, it is not.
    """
    if output.is_meta:
        return False
    if logits.ndim == 4 and output.ndim == 4 and output.shape != logits.shape:
        output = F.interpolate(output, logits.shape[2:], mode="bilinear", align_corners=False)
    return torch.equal(output.reshape(len(output), -1), logits.reshape(len(logits), -1))


def split_at_head(
    module: nn.Module, calls: dict[Call, Tensor], logits: Tensor, classes: int, size: Size
) -> tuple[Call | None, list[_Seen]]:
    """Return the head's call and what the units before it gave, in order.

    The head is the last Linear, else 1x1 convolution, with an output for each class; one whose
    output is the logits comes before an auxiliary head that is called after it.
    """
    order = list(calls)
    widths = {call: _head_width(module.get_submodule(call.name)) for call in order}
    fits = [call for call in order if classes and widths[call] == classes]
    linear = [call for call in fits if isinstance(module.get_submodule(call.name), nn.Linear)]
    made = [call for call in fits if makes(calls[call], logits)]
    head = next(reversed(made or linear or fits), None)
    units = set(_units(module))
    body = order if head is None else order[: order.index(head)]
    return head, [_see(call, tuple(calls[call].shape), size) for call in body if call.name in units]


def _see(call: Call, shape: tuple[int, ...], size: Size) -> _Seen:
    if len(shape) == 3:
        return _Seen(call, shape, grid_of(shape[1], size)[0], is_tokens=True)
    axis = height_axis(shape, size)
    return _Seen(call, shape, shape[axis] if axis else 0, is_tokens=False)


def find_stages(module: nn.Module, body: list[_Seen]) -> tuple[Call, ...]:
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
