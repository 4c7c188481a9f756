"""A search as a good user of Optuna writes it from its documentation: a peer of `equal_spend`.

TPE with Optuna's defaults draws width and depth of a CIFAR ResNet (He et al., CVPR 2016),
temperature, alpha and learning rate. A network over the limit is pruned before it is trained and
costs nothing. All trainings are equally long; the best on validation ships. The package gives the
images, the frozen teacher and the count of FLOPs; the rest is Optuna's and PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import optuna
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.spend_settings import BATCH
from kdsearch.data.base import ImageData, ImageSet
from kdsearch.deploy.flops import count

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
_DRAWS = 100  # of which one at least must be within the limit, for each trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best network of a search on validation. val, test: accuracies. spent: all epochs."""

    network: str
    val: float
    test: float
    flops: int
    spent: int


def search(
    data: ImageData, teacher: nn.Module, *, limit: float, n_trials: int, epochs: int, seed: int
) -> Found:
    """Train `n_trials` networks of at most `limit` multiply-adds for `epochs` each.

    teacher: uint8 images to logits. Raises RuntimeError where too few draws are within the limit.
    """
    torch.manual_seed(seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    trainings = _Trainings(data, teacher, limit, epochs)

    def stop(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if trainings.count == n_trials:
            study.stop()

    draws = _DRAWS * n_trials
    study.optimize(trainings, n_trials=draws, callbacks=[stop])
    if trainings.count < n_trials:
        raise RuntimeError(f"{draws} draws hold less than {n_trials} networks within the limit")
    best = trainings.best
    return Found(
        network=f"resnet of width {best.params['width']}, {best.params['blocks']} blocks a stage",
        val=best.val,
        test=accuracy(best.network, data.test, data),
        flops=multiply_adds(best.network, data),
        spent=trainings.count * epochs,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    network: nn.Module
    params: Mapping[str, object]
    val: float


class _Trainings:
    """The objective of a study; it keeps the best network."""

    def __init__(self, data: ImageData, teacher: nn.Module, limit: float, epochs: int) -> None:
        self.count = 0
        self._best: _Trained | None = None
        self._data, self._teacher, self._limit, self._epochs = data, teacher, limit, epochs

    @property
    def best(self) -> _Trained:
        assert self._best is not None
        return self._best

    def __call__(self, trial: optuna.Trial) -> float:
        data = self._data
        network = ResNet(
            width=trial.suggest_int("width", 4, 32, log=True),
            blocks=trial.suggest_int("blocks", 1, 3),
            in_channels=data.channels,
            num_classes=data.num_classes,
            size=max(data.size),
        )
        temperature = trial.suggest_float("temperature", 1, 10)
        alpha = trial.suggest_float("alpha", 0.1, 1)
        lr = trial.suggest_float("lr", 1e-2, 3e-1, log=True)
        if multiply_adds(network, data) > self._limit:
            raise optuna.TrialPruned
        train(
            network,
            data,
            self._teacher,
            epochs=self._epochs,
            lr=lr,
            temperature=temperature,
            alpha=alpha,
        )
        self.count += 1
        val = accuracy(network, data.val, data)
        if self._best is None or val > self._best.val:
            self._best = _Trained(network=network, params=trial.params, val=val)
        return val


def train(
    network: nn.Module,
    data: ImageData,
    teacher: nn.Module,
    *,
    epochs: int,
    lr: float,
    temperature: float,
    alpha: float,
) -> None:
    """Distil: alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy; cosine SGD."""
    images, labels = data.train.at(slice(None)), data.train.labels
    optimizer = torch.optim.SGD(
        network.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        network.train()
        for index in batches(len(images)):
            views = augmented(images[index], data)
            with torch.no_grad():
                target = teacher(views)
            logits = network(normalised(views, data))
            soft = F.kl_div(
                F.log_softmax(logits / temperature, 1),
                F.log_softmax(target / temperature, 1),
                reduction="batchmean",
                log_target=True,
            )
            hard = F.cross_entropy(logits, labels[index])
            loss = alpha * temperature**2 * soft + (1 - alpha) * hard
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()


def batches(count: int) -> Iterator[Tensor]:
    """Yield shuffled indices of full batches."""
    order = torch.randperm(count)
    yield from torch.split(order[: count // BATCH * BATCH], BATCH)


def augmented(images: Tensor, data: ImageData) -> Tensor:
    """Return uint8 [B, C, S, S] after a random crop of the padded image, mirrored by chance."""
    pad, size = data.augment.pad, images.shape[-1]
    padded = F.pad(images, (pad,) * 4)
    corners = torch.randint(2 * pad + 1, (len(images), 2)).tolist()
    views = torch.stack(
        [
            image[:, top : top + size, left : left + size]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
    )
    if data.augment.flip:
        is_mirrored = torch.rand(len(views)) < 0.5
        views[is_mirrored] = views[is_mirrored].flip(3)
    return views


def normalised(images: Tensor, data: ImageData) -> Tensor:
    """Return float32 of uint8 images, each channel of the data with mean 0 and deviation 1."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return (images / 255 - mean) / std


@torch.no_grad()
def accuracy(network: nn.Module, images: ImageSet, data: ImageData) -> float:
    """Return the share of images whose class is the network's first."""
    network.eval()
    parts = zip(
        torch.split(images.at(slice(None)), 256), torch.split(images.labels, 256), strict=True
    )
    hits = sum(
        int((network(normalised(part, data)).argmax(1) == labels).sum()) for part, labels in parts
    )
    return hits / len(images)


def multiply_adds(network: nn.Module, data: ImageData) -> int:
    """Return the FLOPs of one image, counted as those of all arms."""
    return count(network, input_shape=(data.channels, *data.size))[0]


class ResNet(nn.Module):
    """Three stages of basic blocks; images of 64 px and more shrink four times before them."""

    def __init__(
        self, *, width: int, blocks: int, in_channels: int, num_classes: int, size: int
    ) -> None:
        super().__init__()
        is_large = size >= 64
        layers: list[nn.Module] = [_norm(in_channels, width, 3, 1 + is_large), nn.ReLU()]
        if is_large:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        channels = width
        for place in range(3 * blocks):
            stage, block = divmod(place, blocks)
            out = width * 2**stage
            layers.append(_Block(channels, out, 2 if stage and not block else 1))
            channels = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of normalised images."""
        logits: Tensor = self.head(self.body(images))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_norm(channels, out, 3, stride), nn.ReLU(), _norm(out, out, 3, 1))
        is_same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if is_same else _norm(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _norm(channels: int, out: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out),
    )
