"""JSON cache of measurements, so that a repeated study takes the same decisions."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import TypeAdapter

from kdsearch.atomic import replacing
from kdsearch.documents import mistake_in, parse_json
from kdsearch.errors import KDSearchError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_CPUINFO = Path("/proc/cpuinfo")
_log = logging.getLogger(__name__)


class JsonCache(Generic[T]):
    """Values of a frozen dataclass in a folder, one file a key; a damaged file is replaced."""

    def __init__(self, folder: Path, kind: type[T]) -> None:
        self._folder = folder
        self._kind = kind

    def get_or_measure(
        self, key: str, make: Callable[[], T], *, serves: Callable[[T], bool] = lambda _: True
    ) -> T:
        """Return the value stored under `key` if `serves` accepts it, else store `make()`."""
        value = self.get(key)
        if value is None or not serves(value):
            value, path = make(), self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"key": key, self._name: asdict(value)}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(entry), encoding="utf-8")
        return value

    def get(self, key: str) -> T | None:
        """Return the value stored under `key`, None without one."""
        path = self._path(key)
        try:
            entry = parse_json(path.read_bytes())
            if entry["key"] != key:
                raise ValueError(f"its key is {entry['key']!r}")
            value = json.dumps(entry[self._name])
            return TypeAdapter(self._kind).validate_json(value, strict=True, extra="forbid")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, KDSearchError) as error:
            _log.warning("%s is damaged (%s); measuring again", path, mistake_in(error))
            return None

    @property
    def _name(self) -> str:
        return self._kind.__name__.lower()

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def processor() -> str:
    """Return the architecture and the model name of the processor."""
    model = platform.processor()
    if _CPUINFO.is_file():
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        model = next(names, model)
    return f"{platform.machine()} | {model}"
