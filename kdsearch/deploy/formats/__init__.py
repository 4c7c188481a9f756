"""Turn a student into files that run without kdsearch, each verified against its model.

One file a format; the file name is the name, in print with hyphens. Importing this package loads
no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.registry import Registry

if TYPE_CHECKING:
    from kdsearch.deploy.formats.base import Format

FORMATS: Registry[Format] = Registry(
    "kdsearch.deploy.formats", "kdsearch.deploy.formats.base:Format", what="format"
)


def get(name: str) -> type[Format]:
    """Return the class of a format, by name, with hyphens or underscores. Raises SpecError."""
    if ":" in name:
        return FORMATS.get(name)
    known = [module.replace("_", "-") for module in FORMATS.names()]
    shown = name.replace("_", "-")
    if shown not in known:
        hint = did_you_mean(shown, known)
        raise SpecError(f"unknown format {shown!r}{hint}; known: {', '.join(known)}")
    return FORMATS.get(shown.replace("-", "_"))
