"""Ends of a search space that no other space can move: the family or the method ends there too."""

from __future__ import annotations

from kdsearch.data.base import ImageData
from kdsearch.deploy.pricing import StaticCosts
from kdsearch.errors import SpecError
from kdsearch.report.advice import edges
from kdsearch.space import Params, SearchSpace
from kdsearch.spec import Candidate
from kdsearch.study.width import Price
from kdsearch.training.distiller import recipe


def ends(space: SearchSpace, params: Params, data: ImageData) -> list[str]:
    """Return the parameters at an end of their range beyond which no student can be made."""
    price, found = StaticCosts(data), edges(space, params)
    return [edge.name for edge in found if not _accepts({**params, edge.name: edge.beyond}, price)]


def _accepts(params: Params, price: Price) -> bool:
    """Return whether a student and a loss can be made of these parameters."""
    try:
        recipe.check(Candidate.from_params(params).distill)
        return price(params) is not None
    except SpecError:
        return False
