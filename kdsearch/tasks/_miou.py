"""The meter of segmentation: mean IoU, IoU a class, and their noise by bootstrap over images.

Images are drawn with replacement (Efron, Annals of Statistics 7, 1979), since the pixels of one
image are not independent. IoU of a class: pixels of it in both label and answer, over pixels of it
in either. A class without pixels in the labels is left out of a mean, and so it is in a resample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data.base import VOID
from kdsearch.errors import DataError
from kdsearch.models.heads.base import resized
from kdsearch.tasks.base import MAX_CONFUSION, ClassScores, Details, Meter, Metric

_PIXELS = 2**22  # logits that a meter resizes at a time
_RESAMPLES = 1000  # a standard error is known to 1 / sqrt(2 * 1000), 2 %
_AT_ONCE = 2**22  # weights of images
_LEAST_VARIANCE = 1e-4  # of one image: that of equal images would be 0
MIOU = Metric(key="miou", label="mean IoU")
PIXEL_ACCURACY = Metric(key="pixel_accuracy", label="pixel accuracy")


class MeanIoU(Meter):
    """The mean, over the classes in the labels, of intersection over union; void counts nowhere.

    key: of the metric that `value` returns. The state is the confusion of classes: [K * K] pixels
    by label and prediction, then those of void; of each image, where they are kept, the parts that
    the metrics need: [3, K] pixels that are right, labelled and predicted.
    """

    def __init__(self, device: torch.device, classes: int, key: str = MIOU.key) -> None:
        self._classes = classes
        self._key = key
        self._pixels = torch.zeros(classes**2 + 1, dtype=torch.int64, device=device)
        self._place = torch.zeros((), dtype=torch.int64, device=device)
        self.keep_images(0)

    def keep_images(self, count: int) -> None:
        """Keep the parts of so many images."""
        shape, device = (count, 3, self._classes), self._pixels.device
        self._by_image = torch.zeros(shape, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget all images."""
        for state in (self._pixels, self._place, self._by_image):
            state.zero_()

    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, K, h, w] or classes [B, H, W], masks [B, H, W]."""
        at_once = max(1, _PIXELS // (self._classes * labels[0].numel()))
        parts = (torch.split(whole, at_once) for whole in (answer, labels))
        for part, truth in zip(*parts, strict=True):
            counts = self._counts(part, truth)
            self._pixels.add_(counts.sum(dim=0))
            if len(self._by_image):
                index = self._place + torch.arange(len(counts), device=counts.device)
                self._by_image.index_add_(0, index, self._parts(counts[:, :-1]))
                self._place.add_(len(counts))

    def _counts(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Return the pixels of each image by label and prediction, then void: [B, K * K + 1]."""
        whole = resized(answer.float(), truth.shape[1:]) if answer.is_floating_point() else answer
        known = truth.long()
        code = torch.where(
            known == VOID, self._classes**2, known * self._classes + predicted(whole)
        ).flatten(1)
        shape = (len(code), self._classes**2 + 1)
        return torch.zeros(shape, dtype=torch.int64, device=code.device).scatter_add_(
            1, code, torch.ones_like(code)
        )

    def _parts(self, counts: Tensor) -> Tensor:
        """Return right, labelled and predicted pixels [..., 3, K] of confusions [..., K * K]."""
        return parts_of(counts.view(*counts.shape[:-1], self._classes, self._classes))

    @property
    def confusion(self) -> Tensor:
        """Return the pixels [K, K] by label and prediction."""
        return self._pixels[:-1].view(self._classes, self._classes)

    def value(self) -> float:
        """Return the metric in [0, 1]."""
        return self._metrics(self._parts(self._pixels[:-1].cpu()))[self._key]

    def details(self) -> Details:
        """Return all metrics, IoU a class and confusion; the noise, where images were kept.

        Raises DataError without labelled pixels.
        """
        pixels = self._pixels[:-1].cpu()
        whole = self._parts(pixels)
        metrics = self._metrics(whole)
        variances, errors = noise_of(self._by_image.cpu())
        labelled = whole[1].double()
        confusion = pixels.view(self._classes, self._classes).tolist()
        return Details(
            metrics=metrics,
            confusion=tuple(map(tuple, confusion)) if self._classes <= MAX_CONFUSION else (),
            image_variances=variances,
            scores=ClassScores(
                label="IoU",
                values=_known(ious(whole)),
                errors=errors or (None,) * self._classes,
                shares=tuple((labelled / labelled.sum()).tolist()),
            ),
        )

    @staticmethod
    def _metrics(parts: Tensor) -> dict[str, float]:
        if not parts[1].any():
            raise DataError("there are no labelled pixels to evaluate on")
        return {key: float(value) for key, value in metrics_of(parts).items()}


def predicted(answer: Tensor) -> Tensor:
    """Return the class at each position, int64: of logits [B, K, h, w], or of classes."""
    return answer.argmax(dim=1) if answer.is_floating_point() else answer.long()


def parts_of(confusion: Tensor) -> Tensor:
    """Return right, labelled and predicted pixels [..., 3, K] of confusions [..., K, K]."""
    diagonal = confusion.diagonal(dim1=-2, dim2=-1)
    return torch.stack([diagonal, confusion.sum(dim=-1), confusion.sum(dim=-2)], dim=-2)


def ious(parts: Tensor) -> Tensor:
    """Return the IoU [..., K] of each class, NaN for one that no label has."""
    right, labelled, answered = parts.double().unbind(dim=-2)
    union = labelled + answered - right
    return torch.where(labelled > 0, right / union, torch.nan)


def metrics_of(parts: Tensor) -> dict[str, Tensor]:
    """Return each metric [...] of right, labelled and predicted pixels [..., 3, K]."""
    right, labelled, _ = parts.double().unbind(dim=-2)
    accuracy = right.sum(dim=-1) / labelled.sum(dim=-1)
    return {MIOU.key: ious(parts).nanmean(dim=-1), PIXEL_ACCURACY.key: accuracy}


def noise_of(by_image: Tensor) -> tuple[dict[str, float], tuple[float | None, ...]]:
    """Return the variance of one image's part in each metric, and the error of each class's IoU.

    by_image: right, labelled and predicted pixels [N, 3, K]. Both are empty below two images. The
    same images give the same noise.
    """
    count, classes = len(by_image), by_image.shape[2]
    if count < 2:
        return {}, ()
    generator = torch.Generator().manual_seed(0)
    flat, found = by_image.flatten(1).double(), []
    for rows in torch.split(torch.ones(_RESAMPLES), max(1, _AT_ONCE // count)):
        chosen = torch.randint(count, (len(rows), count), generator=generator)
        times = torch.zeros(chosen.shape, dtype=flat.dtype)
        times.scatter_add_(1, chosen, torch.ones_like(times))
        found.append((times @ flat).view(-1, 3, classes))
    resampled = torch.cat(found)
    unbiased = count / (count - 1)
    variances = {
        key: max(_LEAST_VARIANCE, count * unbiased * float(_variance(values)))
        for key, values in metrics_of(resampled).items()
    }
    each = [unbiased * _variance(values) for values in ious(resampled).unbind(dim=1)]
    return variances, _known(torch.stack(each).sqrt())


def _variance(values: Tensor) -> Tensor:
    """Return the variance of the numbers in [R], NaN where there are none."""
    deviation = values - values.nanmean()
    return deviation.square().nanmean()


def _known(values: Tensor) -> tuple[float | None, ...]:
    """Return numbers, None for NaN."""
    return tuple(None if value != value else value for value in values.tolist())
