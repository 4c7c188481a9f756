"""Every method's loss once more, by hand, as a training script would hold it.

Written from the papers and their usual implementations, in plain PyTorch and at the methods'
default constants; nothing of kdsearch.methods is used. Each formula takes what its method does (two
tensors, two lists of maps, two Outputs) and the labels. Those with weights of their own are
modules, made from the first batch in the order that their method makes them, so that equal seeds
give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from benchmarks.formulas import features, relations, responses
from benchmarks.formulas.base import Known

Formula: TypeAlias = Callable[..., Tensor]
FORMULAS: Mapping[str, Formula] = {
    "at": features.at,
    "cc": relations.cc,
    "cosine": relations.cosine,
    "cwd": features.cwd,
    "dist": responses.dist,
    "dkd": responses.dkd,
    "fitnet": features.fitnet,
    "function_matching": responses.function_matching,
    "grad_cam": features.grad_cam,
    "hard_label": responses.hard_label,
    "ifvd": relations.ifvd,
    "kd": responses.kd,
    "kd_standardized": responses.kd_standardized,
    "label_smoothing": responses.label_smoothing,
    "minilm": relations.minilm,
    "nkd": responses.nkd,
    "pkd": features.pkd,
    "pkt": relations.pkt,
    "rkd": relations.rkd,
    "skd": relations.skd,
    "sp": relations.sp,
    "wsld": responses.wsld,
}
LEARNED: Mapping[str, Callable[..., nn.Module]] = {
    "crd": relations.CRD,
    "infonce": relations.InfoNCE,
    "mgd": features.MGD,
    "ofa": features.OFA,
    "reviewkd": features.ReviewKD,
    "self_distill": features.SelfDistill,
    "srrl": features.SRRL,
    "vid": features.VID,
    "vitkd": features.ViTKD,
}


def names() -> tuple[str, ...]:
    """Return the methods that have a formula, in alphabetical order."""
    return tuple(sorted([*FORMULAS, *LEARNED]))


def formula(name: str, student: object, teacher: object, known: Known) -> Formula:
    """Return a formula, its modules made for these signals."""
    return LEARNED[name](student, teacher, known) if name in LEARNED else FORMULAS[name]
