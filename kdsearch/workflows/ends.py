"""Ends of a search space that no other space can move: the family or the method ends there too."""

from __future__ import annotations

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy.closed_forms import without_weights
from kdsearch.errors import SpecError
from kdsearch.report.advice import edges
from kdsearch.space import Params, SearchSpace
from kdsearch.spec import Candidate
from kdsearch.training.distiller import recipe


def ends(space: SearchSpace, params: Params, data: ImageData) -> list[str]:
    """Return the parameters at an end of their range beyond which no student can be made."""
    found = edges(space, params)
    return [edge.name for edge in found if not _accepts({**params, edge.name: edge.beyond}, data)]


def _accepts(params: Params, data: ImageData) -> bool:
    """Return whether a student and a loss can be made of these parameters."""
    try:
        candidate = Candidate.from_params(params)
        recipe.check(candidate.distill)
        with without_weights():
            tasks.of(data).network(candidate.student, channels=data.channels, size=data.size)
    except SpecError:
        return False
    return True
