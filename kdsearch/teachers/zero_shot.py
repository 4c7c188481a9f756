"""Zero-shot teachers: an image tower, and one text embedding a class for its head.

Radford et al., ICML 2021, arXiv:2103.00020: logits = scale * cosine(image, text). The texts are
embedded once, when the teacher is loaded; the teacher is an image network with a linear head.
open_clip is imported only for one of its models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import downloads
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.extras import install

if TYPE_CHECKING:
    from types import ModuleType

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
)
_ATTRIBUTES = ("pretrained_cfg", "mean", "std", "resolution")
_OTHER_SOURCES = ("hf-hub:", "local-dir:")


class ZeroShot(nn.Module):
    """An image classifier that compares images with texts. Made by `zero_shot`.

    The head is linear without bias, scale * text embeddings, and reads the normalised image
    embedding; it is never trained. The attributes of the tower on its images (`pretrained_cfg`, or
    `mean`, `std`, `resolution`) apply to the classifier.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    pretrained_cfg: Mapping[str, object]

    def __init__(self, tower: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.tower = tower
        self.head = head.requires_grad_(False)
        for name in _ATTRIBUTES:
            if hasattr(tower, name):
                setattr(self, name, getattr(tower, name))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of x: [B, C, H, W]."""
        answer = self.tower(x)
        embedding = answer[0] if isinstance(answer, tuple | list) else answer
        if not isinstance(embedding, Tensor) or embedding.shape[1:] != (self.head.in_features,):
            seen = list(embedding.shape) if isinstance(embedding, Tensor) else type(embedding)
            raise SpecError(
                f"a zero-shot image tower must return embeddings [batch, "
                f"{self.head.in_features}], as wide as those of the texts, not {seen}"
            )
        logits: Tensor = self.head(F.normalize(embedding, dim=1))
        return logits


def zero_shot(tower: nn.Module, text_embeddings: Tensor, scale: float = 100.0) -> ZeroShot:
    """Return a classifier from an image tower, [B, C, H, W] to [B, D], and texts [K, D].

    Row k is the text of class k, normalised here. scale: the inverse of the temperature that the
    towers were trained with. Raises SpecError for anything but K >= 2 finite texts.
    """
    texts = text_embeddings.detach().float()
    if texts.ndim != 2 or len(texts) < 2 or not texts.isfinite().all() or not texts.any(1).all():
        raise SpecError(
            f"text embeddings {list(texts.shape)}: expected [classes, width], two classes or more, "
            "with finite values and no row of zeros"
        )
    if not 0 < scale < float("inf"):
        raise SpecError(f"zero-shot scale {scale}: expected a number above 0")
    head = nn.Linear(texts.shape[1], len(texts), bias=False)
    head.weight = nn.Parameter(scale * F.normalize(texts, dim=1))
    return ZeroShot(tower, head)


def prompts(class_name: str) -> list[str]:
    """Return one text per template for a class."""
    return [template.format(class_name.replace("_", " ")) for template in TEMPLATES]


def is_tag(weights: str) -> bool:
    """Whether `weights` is a tag of open_clip: no tag has a dot or a slash."""
    return not set("./") & set(weights)


def open_clip_teacher(model: str, weights: str | None, classes: Sequence[str]) -> ZeroShot:
    """Return the zero-shot classifier of an open_clip model for classes by their names.

    model: a name, or open_clip's own `hf-hub:ORG/NAME` or `local-dir:FOLDER`, which hold weights.
    weights: a tag or a file. Raises SpecError when open_clip, the model or its weights are missing.
    """
    try:
        import open_clip
    except ImportError as error:
        raise SpecError(
            f"--teacher open_clip:{model} needs open_clip ({error}): `{install('clip')}`"
        ) from error
    _check_names(open_clip, model, weights)
    if weights is None or is_tag(weights):
        downloads.announce(f"open_clip:{model}, unless the cache has it")
    with _quiet():
        try:
            towers, tokenize = _load(open_clip, model, weights)
        except Exception as error:  # open_clip and what it loads with raise all kinds
            raise SpecError(_not_loaded(model, weights, error)) from error
    with torch.no_grad():
        texts = [towers.encode_text(tokenize(prompts(name)), normalize=True) for name in classes]
        scale = float(towers.logit_scale.exp())
    network = zero_shot(towers.visual, torch.stack([text.mean(0) for text in texts]), scale)
    shown = open_clip.get_model_preprocess_cfg(towers)
    size = shown["size"]
    network.mean, network.std = tuple(shown["mean"]), tuple(shown["std"])
    network.resolution = size if isinstance(size, int) else size[0]
    return network


def _check_names(open_clip: ModuleType, model: str, weights: str | None) -> None:
    if model.startswith(_OTHER_SOURCES):
        if weights is not None:
            raise SpecError(
                f"--teacher-weights {weights}: open_clip:{model} has weights of its own"
            )
        return
    known = open_clip.list_models()
    if model not in known:
        raise SpecError(
            f"open_clip has no model {model!r}{did_you_mean(model, known)}; "
            f"open_clip.list_models() names all {len(known)}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    shown = f"a file, or a tag of open_clip's: {', '.join(tags) or 'this model has none'}"
    if weights is None:
        raise SpecError(f"--teacher open_clip:{model} needs --teacher-weights, {shown}")
    if is_tag(weights) and not open_clip.pretrained.is_pretrained_cfg(model, weights):
        raise SpecError(
            f"--teacher-weights {weights}: open_clip has no such weights for {model!r}"
            f"{did_you_mean(weights, tags)}; give {shown} (a file here is ./{weights})"
        )
    if not is_tag(weights) and not Path(weights).is_file():
        raise SpecError(f"--teacher-weights: there is no file {weights!r}; give {shown}")


def _load(
    open_clip: ModuleType, model: str, weights: str | None
) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """Return the towers, in evaluation mode, and the tokenizer."""
    tagged = open_clip.pretrained.get_pretrained_cfg(model, weights) if weights else {}
    towers = open_clip.create_model(
        model,
        pretrained=weights,
        # The activation that the weights were trained with; open_clip only warns.
        force_quick_gelu=bool(tagged.get("quick_gelu")),
        require_pretrained=True,
    )
    return towers.eval(), open_clip.get_tokenizer(model)


def _not_loaded(model: str, weights: str | None, error: Exception) -> str:
    reason = shorten(str(error), 300, placeholder=" …") or type(error).__name__
    message = f"--teacher open_clip:{model}"
    message += f" with --teacher-weights {weights}" if weights else ""
    message += f" cannot be loaded: {reason}"
    if weights is not None and is_tag(weights):
        message += "; without a network, give a local file with --teacher-weights FILE"
    return message


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's log to the root logger, which would start printing, off the screen."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
