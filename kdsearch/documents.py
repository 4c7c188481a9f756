"""Read YAML and JSON as plain values, within limits of size, depth and number. No torch.

YAML has no references, no tags, no name twice, and limits on size, depth and number of values.
A date is a text.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdsearch.errors import SpaceError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 20_000  # read in a second


class DocumentError(ValueError):
    """A document is not plain; line: where, 0 where that is not known."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Return the text of a file. Raises DocumentError, also for a larger file, and OSError."""
    if stat.S_ISFIFO(path.stat().st_mode):
        raise DocumentError("a pipe; give a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DocumentError(f"larger than the limit of {most} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def parse_yaml(text: str) -> Any:
    """Return the values in a YAML text. Raises DocumentError."""
    return values_of(compose(text))


def parse_mapping(text: str) -> dict[str, Any]:
    """Return the names and values in a YAML text. Raises DocumentError."""
    values = parse_yaml(text)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise DocumentError("expected names and values")
    return values


def values_of(node: yaml.Node | None) -> Any:
    """Return the values of the nodes that `compose` returns. Raises DocumentError."""
    try:
        return None if node is None else _Loader("").construct_document(node)
    except yaml.YAMLError as error:  # a name twice, a number of too many digits
        raise not_yaml(error) from error
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(str(error)) from error


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text. Raises DocumentError."""
    try:
        for line, reason in not_plain(text):
            raise DocumentError(reason, line)
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise not_yaml(error) from error


def not_yaml(error: yaml.YAMLError) -> DocumentError:
    """Return an error of PyYAML, which has up to eight lines, as a reason and its line."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return DocumentError(reason, mark.line + 1 if mark else 0)


def mistake_in(error: Exception) -> str:
    """Return the first mistake that a reader of a document found, as one line that names the key.

    A ValidationError of pydantic has three lines for each mistake, and names none in the first.
    """
    from pydantic import ValidationError  # 0.1 s, which `--help` has not

    if isinstance(error, ValidationError):
        keys = (".".join(map(str, each["loc"])) for each in error.errors())
        pairs = zip(keys, error.errors(), strict=True)
        mistakes = [f"{key}: {each['msg']}" if key else each["msg"] for key, each in pairs]
    elif isinstance(error, KeyError):
        mistakes = [f"{error.args[0]}: Field required"]
    elif isinstance(error, SpaceError):
        mistakes = str(error).splitlines()
    else:
        mistakes = str(error).splitlines()[:1] or [type(error).__name__]
    more = len(mistakes) - 1
    return mistakes[0] + (f"; {more} more mistake{'s' if more > 1 else ''}" if more else "")


def not_plain(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, mistake) for YAML features that are refused: references, tags, deep nesting."""
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.ScalarEvent)
        if depth > MAX_DEPTH:
            yield line, f"more than {MAX_DEPTH} levels deep"
            return
        if values > MAX_VALUES:
            yield line, f"more than {MAX_VALUES} values"
            return
        if isinstance(event, yaml.AliasEvent):
            yield line, f"'*{event.anchor}': references are not supported; write the value"
        elif (tag := getattr(event, "tag", None)) not in (None, "!"):
            yield line, f"the tag {tag!r} is not supported; write a plain value"


def parse_json(text: str | bytes) -> Any:
    """Return the values in a JSON text. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DocumentError("nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Refuses a name that is defined twice; reads a date as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - of the base class
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    reason = f"{key.value!r} is defined twice"
                    raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
