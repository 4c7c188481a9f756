"""Digests: short names of values by content, equal for equal values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields


def digest_of(value: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a value of plain JSON types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed(spec: object) -> dict[str, object]:
    """Return the fields of a dataclass that differ from their defaults."""
    found = {}
    for item in fields(spec):  # type: ignore[arg-type]
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = getattr(spec, item.name)
        if value != default:
            found[item.name] = dict(value) if isinstance(value, Mapping) else value
    return found
