"""Seconds by part, for what is written with its parts marked: each second counts once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
REST = "rest"


class Stopwatch:
    """Wall seconds in each part; those in a part within a part are the inner one's.

    whole: parts that keep also what is marked inside them. What no part is told of is `REST`.
    """

    def __init__(self, *, whole: Iterable[str] = ()) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._whole = frozenset(whole)
        self._part = REST
        self._since = time.perf_counter()

    def _switch(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside for `part`."""
        around = self._part
        self._switch(around if around in self._whole else part)
        try:
            yield
        finally:
            self._switch(around)

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; getting them counts for `part`."""
        with self(part):
            source = iter(items)
        while True:
            with self(part):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def timed(self, part: str, call: Callable[P, T]) -> Callable[P, T]:
        """Return the callable, its calls counted for `part`."""

        @wraps(call)
        def inner(*args: P.args, **kwargs: P.kwargs) -> T:
            with self(part):
                return call(*args, **kwargs)

        return inner
