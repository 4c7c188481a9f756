"""Value type of a training's recipe, and the names that its settings accept."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from kdsearch.errors import SpecError, did_you_mean

OPTIMIZERS = ("sgd", "adamw", "muon")
POLICIES = ("plain", "trivial", "rand")
MIXES = ("none", "mixup", "cutmix")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """The recipe of one training: cosine learning rate after a linear warm-up.

    accumulate: parts of a batch, run one after another; relations see one part at a time.
    warmup: fraction of all steps, [0, 1). clip: largest norm of the gradient, 0: no limit.
    ema: decay of the averaged weights, which are evaluated and kept, [0, 1).
    policy: augmentation after crop and flip: `plain`, `trivial` or `rand`.
    mix: `none`, `mixup` or `cutmix`.
    views: augmented views of each image, used in turn; 0: a new view each epoch.
    precision: of the student's step; `auto` is bf16 on a GPU that has it, else fp32.
    repeat: each number has its own weights, order and views. Above 0 they do not depend on the
        method, so that two methods can be compared training by training.
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
    ema: float = 0.98
    policy: str = "plain"
    mix: str = "none"
    views: int = 0
    precision: str = "auto"
    repeat: int = 0

    def __post_init__(self) -> None:
        checks = {
            **{name: getattr(self, name) >= 1 for name in ("epochs", "batch_size")},
            "accumulate": 1 <= self.accumulate <= self.batch_size,
            "lr": 0 < self.lr < inf,
            **{n: 0 <= getattr(self, n) < inf for n in ("weight_decay", "clip", "views", "repeat")},
            **{n: 0 <= getattr(self, n) < 1 for n in ("warmup", "label_smoothing", "ema")},
        }
        bad = [f"train.{name}: {getattr(self, name)!r}" for name, ok in checks.items() if not ok]
        if bad:
            accepted = "epochs and batch_size >= 1, accumulate from 1 to batch_size, lr > 0"
            accepted += ", weight_decay, clip, views and repeat >= 0, the others in [0, 1)"
            raise SpecError(f"{'; '.join(bad)} ({accepted})")
        choices = {"optimizer": OPTIMIZERS, "policy": POLICIES, "mix": MIXES}
        for name, known in (*choices.items(), ("precision", PRECISIONS)):
            require_one_of(f"train.{name}", getattr(self, name), known)


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise SpecError for a value that is not among the known ones."""
    if value not in known:
        hint = did_you_mean(value, known)
        raise SpecError(f"{name}: {value!r}{hint} is not one of {', '.join(known)}")
