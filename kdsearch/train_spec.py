"""Value type of a training's recipe, and the names that its settings accept."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from kdsearch.errors import SpecError, did_you_mean

OPTIMIZERS = ("sgd", "adamw", "muon")
POLICIES = ("plain", "trivial", "rand")
MIXES = ("none", "mixup", "cutmix")
MAX_SCALE = 3
MAX_COUNT = 1_000_000  # of trials, of epochs, and of images in a batch
PRECISIONS = ("auto", "fp32", "bf16")
NORMS = ("auto", "frozen", "moving")
HEADS = ("fitted", "fresh")
KEEPS = ("auto", "last", "best")
ALL_STAGES = -1  # of `frozen_stages`
_FROM_0 = ("weight_decay", "clip", "class_weights", "views", "repeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """The recipe of one training: cosine learning rate after a linear warm-up.

    accumulate: parts of a batch, run one after another; relations see one part at a time.
    warmup: fraction of all steps, [0, 1). clip: largest norm of the gradient, 0: no limit.
    ema: decay of the averaged weights, which are evaluated and kept, [0, 1).
    policy: augmentation after crop and flip: `plain`, `trivial` or `rand`.
    mix: `none`, `mixup` or `cutmix`.
    class_weights: power of 1 / the share of its class by which an image counts in the loss on
        labels; 0: images count alike, 1: classes do.
    scale: views enlarge or reduce an image by up to 1 + scale; 0: never.
    mosaic: share of the views of a detector that show four images, [0, 1]; 0 in the last tenth of
        the epochs, at least one.
    views: augmented views of each image, used in turn; 0: a new view each epoch.
    precision: of the student's step; `auto` is bf16 on a GPU that has it, else fp32.
    repeat: each number has its own weights, order and views. Above 0 they do not depend on the
        method, so that two methods can be compared training by training.
    keep: `last` or `best` epoch by validation; `auto`: the best of an inherited student, epoch 0
        included, and the last of another.

    The others matter only to a student with inherited weights, and to nothing fresh in it:
    head: `fitted` on frozen features before the first step, where it is fresh; or `fresh`.
    inherited_lr: learning rate of inherited weights, as a multiple of `lr`.
    layer_decay: that rate falls by this factor per stage from the head to the input, (0, 1].
    frozen_stages: first stages that stay as they are; -1: all that is inherited.
    bn: statistics of inherited BatchNorm: `frozen` or `moving`; `auto` is frozen.
    """

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float = 0.0
    label_smoothing: float = 0.0
    class_weights: float = 0.0
    ema: float = 0.98
    policy: str = "plain"
    mix: str = "none"
    views: int = 0
    precision: str = "auto"
    repeat: int = 0
    keep: str = "auto"
    head: str = "fitted"
    inherited_lr: float = 1.0
    layer_decay: float = 1.0
    frozen_stages: int = 0
    bn: str = "auto"
    scale: float = 0.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            **{name: 1 <= getattr(self, name) <= MAX_COUNT for name in ("epochs", "batch_size")},
            "accumulate": 1 <= self.accumulate <= self.batch_size,
            **{name: 0 < getattr(self, name) < inf for name in ("lr", "inherited_lr")},
            **{n: 0 <= getattr(self, n) < inf for n in _FROM_0},
            "layer_decay": 0 < self.layer_decay <= 1,
            "frozen_stages": self.frozen_stages >= ALL_STAGES,
            "scale": 0 <= self.scale <= MAX_SCALE,
            "mosaic": 0 <= self.mosaic <= 1,
            **{n: 0 <= getattr(self, n) < 1 for n in ("warmup", "label_smoothing", "ema")},
        }
        bad = [f"train.{name}: {getattr(self, name)!r}" for name, ok in checks.items() if not ok]
        if bad:
            accepted = (
                f"epochs and batch_size from 1 to {MAX_COUNT}, accumulate from 1 to batch_size, "
            )
            accepted += "lr and "
            accepted += f"inherited_lr > 0, {', '.join(_FROM_0)} >= 0, layer_decay in (0, 1], "
            accepted += f"frozen_stages >= -1, scale from 0 to {MAX_SCALE}, "
            accepted += "mosaic in [0, 1], the others in [0, 1)"
            raise SpecError(f"{'; '.join(bad)} ({accepted})")
        choices: dict[str, tuple[str, ...]] = {
            "optimizer": OPTIMIZERS,
            "policy": POLICIES,
            "mix": MIXES,
            "precision": PRECISIONS,
            "keep": KEEPS,
            "head": HEADS,
            "bn": NORMS,
        }
        for name, known in choices.items():
            require_one_of(f"train.{name}", getattr(self, name), known)


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise SpecError for a value that is not among the known ones."""
    if value not in known:
        hint = did_you_mean(value, known)
        raise SpecError(f"{name}: {value!r}{hint} is not one of {', '.join(known)}")
