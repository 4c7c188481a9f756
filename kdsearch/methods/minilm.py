"""Relations of queries, keys and values in attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float, Int
from kdsearch.spec import PAIRWISE_MAPPINGS

# The two of query (0), key (1) and value (2) that each relation is between.
_RELATIONS = {
    "qkv": ((0, 0), (1, 1), (2, 2)),
    "attention": ((0, 1), (2, 2)),
    "value": ((2, 2),),
}


class MiniLM(PairLoss):
    """Match how tokens relate in attention (MiniLMv2: Wang et al., ACL Findings 2021, 2012.15828).

    loss = sum over the pairs, and over query, key and value, of KL(teacher || student) of
    softmax(A A^T / sqrt(D / R)), mean over samples, R relation heads and tokens. A: [N, D / R],
    a head's share of the D channels; R: the largest number up to `heads` that divides both D.
    relations: qkv as above; attention: the softmax of query on key, with value on value (MiniLM,
    2002.10957); value: that alone. Memory: 4 * B * R * N^2 bytes for each of some six such
    tensors a relation: 31 MB each at B = 16, R = 12, N = 14 * 14 = 196, and 4 * that at B = 64.
    student, teacher: lists of maps [B, 3 * D, H, W] of query, key and value, of equal sizes; D is
    free; one position has no relations and gives no gradient. Raises SpecError when the channels of
    a map are not three times D, for heads < 1 and for unknown relations.
    """

    need = "attention"
    align = frozenset({"size"})
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
        "heads": Int(low=1, high=48, log=True),
        "relations": Choice(options=tuple(_RELATIONS)),
    }

    def __init__(self, heads: int = 12, relations: str = "qkv") -> None:
        super().__init__()
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise SpecError(f"method minilm.heads: {heads!r} is not a whole number >= 1")
        if relations not in _RELATIONS:
            known = ", ".join(_RELATIONS)
            raise SpecError(f"method minilm.relations: {relations!r} is not one of {known}")
        self.heads = heads
        self.relations = _RELATIONS[relations]

    def check(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Raise SpecError also for maps that cannot be query, key and value."""
        super().check(student, teacher)
        widths = [found.shape[1] for found in (*student, *teacher)]
        if any(width % 3 for width in widths):
            raise SpecError(
                f"method minilm compares maps of query, key and value, 3 * D channels each, not "
                f"{', '.join(map(str, widths))}"
            )

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        common = math.gcd(student.shape[1] // 3, teacher.shape[1] // 3)
        heads = max(count for count in range(1, self.heads + 1) if common % count == 0)
        ours, theirs = _split(student, heads), _split(teacher, heads)
        total = student.new_zeros(())
        for left, right in self.relations:
            s, t = (_relation(split[left], split[right]) for split in (ours, theirs))
            total = total + F.kl_div(s, t, reduction="batchmean", log_target=True)
        return total


def _split(maps: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return query, key and value [B, R, N, D / R] of maps [B, 3 * D, H, W]."""
    batch, channels, height, width = maps.shape
    split = maps.reshape(batch, 3, heads, channels // 3 // heads, height * width)
    return split.transpose(3, 4).unbind(1)


def _relation(left: Tensor, right: Tensor) -> Tensor:
    """Return the log-softmax of how the tokens relate: [B * R * N, N]."""
    scores = left @ right.transpose(2, 3) / math.sqrt(left.shape[3])
    return F.log_softmax(scores, dim=3).flatten(0, 2)
