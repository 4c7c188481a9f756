"""Whether the sampler of a study can learn from its trials. No torch."""

from __future__ import annotations

from kdsearch.errors import SpecError
from kdsearch.space import Choice, Constant
from kdsearch.study.budget_shares import LIMITS
from kdsearch.study.config import FLAT_SAMPLERS, FLAT_SPACE, OBJECTIVE, StudyConfig


def refuse_sampler(config: StudyConfig) -> None:
    """Raise SpecError where the sampler cannot learn from this study's trials.

    NSGA-II and GP ignore trials that Optuna calls pruned, whether stopped early or rejected, and
    every dimension that some trials lack. GP proposes rejected candidates again.
    """
    name = config.sampler
    if name not in FLAT_SAMPLERS:
        return
    limits = [limit for limit in LIMITS if config.is_limited(limit)]
    limits = [limit for limit in limits if name == "gp" or limit == "budget_ms"]
    reasons = [f"it learns nothing from trials over {config.flag(limit)}" for limit in limits]
    if config.pruning != "off":
        ended = f"{config.flag('stopping')} {config.stopping}"
        reasons.append(f"it learns nothing from trials that {ended} ends")
    owners = [n for n, dim in config.search_space().all_dims() if _owns_dims(dim)]
    if owners:
        shown = ", ".join(owners[:3]) + (", …" if owners[3:] else "")
        flat = "" if config.data == OBJECTIVE else f", as --space {FLAT_SPACE}"
        reasons.append(
            f"it samples what the options of {shown} own at random: it needs a space in which no "
            f"option owns dimensions{flat}"
        )
    if reasons:
        sampler = config.flag("sampler")
        raise SpecError(
            f"{sampler} {name} does not fit this study: {'; '.join(reasons)}. Leave {sampler} out "
            "for tpe, or change that"
        )


def _owns_dims(dim: object) -> bool:
    owned = dim.owned.values() if isinstance(dim, Choice) else ()
    return any(not isinstance(child, Constant) for group in owned for child in group.values())
