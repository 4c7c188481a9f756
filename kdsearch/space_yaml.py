"""Read a search space from YAML; every mistake is reported with its line. No torch.

The file nests names; a leaf is a dimension or a constant, and an option of a choice may own
dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import yaml

from kdsearch.documents import DocumentError, not_plain, not_yaml, read_text
from kdsearch.errors import SpaceError, did_you_mean
from kdsearch.space import (
    Choice,
    Constant,
    Dim,
    Float,
    Int,
    SearchSpace,
    Value,
    is_number,
    owned_name,
)

_RANGE_KEYS = ("log", "step", "default")
# YAML 1.1 reads these as strings (`1e-3` has no dot, `20e6` no sign), never what is meant.
_NUMBER_LOOKALIKE = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

Check: TypeAlias = Callable[[SearchSpace], Iterable[tuple[str, str]]]


def load_space(path: Path, *, check: Check | None = None) -> SearchSpace:
    """Read a YAML file. Raises SpaceError that lists every mistake with its line.

    check: yields (name of a dimension, mistake) for mistakes that the reader cannot find, such as
    unknown families; they are reported together with the reader's own.
    """
    try:
        text = read_text(path)
    except (OSError, DocumentError) as error:
        raise SpaceError(f"cannot read the search space {str(path)!r}: {error}") from error
    return parse_space(text, source=str(path), check=check)


def parse_space(
    text: str, *, source: str = "search space", check: Check | None = None
) -> SearchSpace:
    """Turn YAML text into a SearchSpace. Raises SpaceError like `load_space`."""
    try:
        magic = [f"{source}:{line}: {message}" for line, message in not_plain(text)]
        root = None if magic else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mistake = not_yaml(error)
        where = f":{mistake.line}" if mistake.line else ""
        raise SpaceError(f"{source}{where}: not YAML: {mistake.reason}") from error
    if magic:
        raise SpaceError("\n".join(magic))
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise SpaceError(f"{source}: expected a mapping of names to dimensions")
    reader = _Reader(source)
    dims = dict(reader.group("", root))
    space = SearchSpace(dims=dims, text=text, lines=reader.lines, source=source)
    found = [f"{space.where(name)}: {message}" for name, message in (check(space) if check else ())]
    if reader.errors or found:
        raise SpaceError("\n".join(sorted([*reader.errors, *found], key=_line_of)))
    return space


def _line_of(message: str) -> int:
    found = re.search(r":(\d+): ", message)
    return int(found.group(1)) if found else 0


class _Reader:
    """Reads YAML nodes, which have line numbers, and collects mistakes instead of raising."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[str] = []
        self.lines: dict[str, int] = {}
        self._makers: dict[str, Callable[[str, yaml.MappingNode], Dim | None]] = {
            "float": partial(self._range, Float, float),
            "int": partial(self._range, Int, int),
            "choice": self._choice,
        }

    def error(self, node: yaml.Node, message: str) -> None:
        self.errors.append(f"{self.source}:{node.start_mark.line + 1}: {message}")

    def pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.error(key, "a name must be plain text")
            elif key.value in seen:
                self.error(key, f"{key.value!r} is defined twice")
            else:
                seen.add(key.value)
                yield key.value, key, value

    def group(self, prefix: str, node: yaml.MappingNode) -> Iterator[tuple[str, Dim]]:
        for key, key_node, value in self.pairs(node):
            name = f"{prefix}.{key}" if prefix else key
            self._place(name, key_node)
            if isinstance(value, yaml.MappingNode) and not self._is_dim(value):
                yield from self.group(name, value)
            elif (dim := self.dim(name, value)) is not None:
                yield name, dim

    def _place(self, name: str, node: yaml.Node) -> None:
        if name in self.lines:
            self.error(node, f"{name!r} is defined here and in line {self.lines[name]}")
        self.lines[name] = node.start_mark.line + 1

    def _is_dim(self, node: yaml.MappingNode) -> bool:
        """Return True if a mapping is a dimension: its first key is a kind, or similar to one."""
        if not node.value:
            return True
        first, value = node.value[0]
        if not isinstance(first, yaml.ScalarNode):
            return False
        is_near = bool(did_you_mean(first.value, self._makers))
        return first.value in self._makers or (is_near and not isinstance(value, yaml.MappingNode))

    def dim(self, name: str, node: yaml.Node) -> Dim | None:
        if isinstance(node, yaml.ScalarNode):
            value = self.scalar(name, node)
            return None if value is None else Constant(value=value)
        if not isinstance(node, yaml.MappingNode):
            self.error(node, f"{name}: a list is not a dimension; write {{choice: [...]}}")
            return None
        if not node.value:
            self.error(node, f"{name}: an empty mapping is not a dimension")
            return None
        kind = node.value[0][0].value
        if kind not in self._makers:
            hint = did_you_mean(kind, self._makers)
            self.error(node, f"{name}: unknown kind of dimension {kind!r}{hint}; "
                       f"known: {', '.join(self._makers)}")  # fmt: skip
            return None
        try:
            return self._makers[kind](name, node)
        except (ValueError, ArithmeticError) as error:
            self.error(node, f"{name}: {error}")
            return None

    def scalar(self, name: str, node: yaml.Node) -> Value | None:
        """Return a scalar's value; report `null` and numbers that YAML reads as text."""
        if not isinstance(node, yaml.ScalarNode):
            self.error(node, f"{name}: expected a single value")
            return None
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except ValueError as error:  # an impossible date, a number of too many digits
            self.error(node, f"{name}: {node.value[:40]!r}: {error}")
            return None
        if isinstance(value, str) and node.style is None and _NUMBER_LOOKALIKE.fullmatch(value):
            number = float(value)
            self.error(node, f"{name}: YAML reads {value!r} as text; write {_plain(number)}")
            return None
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, bool | int | float | str) or not is_finite:
            self.error(node, f"{name}: {node.value!r} is not a number, a truth value or a text")
            return None
        return value

    def _range(
        self,
        make: Callable[..., Float | Int],
        number: type[float] | type[int],
        name: str,
        node: yaml.MappingNode,
    ) -> Dim | None:
        options: dict[str, Value] = {}
        bounds: list[Value | None] = []
        for key, key_node, value in self.pairs(node):
            if key == number.__name__:
                if not isinstance(value, yaml.SequenceNode) or len(value.value) != 2:
                    self.error(value, f"{name}: expected {{{key}: [low, high]}}")
                    return None
                bounds = [self.scalar(name, item) for item in value.value]
            elif key in _RANGE_KEYS:
                option = self.scalar(f"{name}.{key}", value)
                if option is None:
                    return None
                options[key] = option
            else:
                hint = f"{did_you_mean(key, _RANGE_KEYS)}; known: {', '.join(_RANGE_KEYS)}"
                self.error(key_node, f"{name}: unknown key {key!r}{hint}")
                return None
        if None in bounds:
            return None
        accepted = (int, float) if number is float else (int,)
        for given in (*bounds, *(v for k, v in options.items() if k != "log")):
            if not is_number(given, accepted):
                kind = "a number" if number is float else "a whole number"
                raise ValueError(f"{given!r} is not {kind}")
        if not isinstance(options.get("log", False), bool):
            raise ValueError(f"log is true or false, not {options['log']!r}")
        low, high = (number(bound) for bound in bounds)  # type: ignore[arg-type]
        return make(low=low, high=high, **options)

    def _choice(self, name: str, node: yaml.MappingNode) -> Dim | None:
        for key, key_node, _ in list(self.pairs(node))[1:]:
            self.error(key_node, f"{name}: unknown key {key!r} next to 'choice'")
        listed = node.value[0][1]
        if isinstance(listed, yaml.SequenceNode):
            values = [self.scalar(name, item) for item in listed.value]
            if None in values:
                return None
            return Choice(options=tuple(value for value in values if value is not None))
        if not isinstance(listed, yaml.MappingNode):
            self.error(listed, f"{name}: expected {{choice: [a, b]}} or {{choice: {{a: …, b: …}}}}")
            return None
        owned: dict[Value, Mapping[str, Dim]] = {}
        for option, key_node, children in self.pairs(listed):
            owned[option] = self._owned(name, option, key_node, children)
        return Choice(options=tuple(owned), owned={k: v for k, v in owned.items() if v})

    def _owned(
        self, name: str, option: str, key_node: yaml.Node, children: yaml.Node
    ) -> dict[str, Dim]:
        prefix = owned_name(name, option, "").rstrip(".")
        self._place(prefix, key_node)
        if isinstance(children, yaml.ScalarNode) and children.tag.endswith(":null"):
            return {}
        if not isinstance(children, yaml.MappingNode):
            self.error(children, f"{name}: option {option!r} must own a mapping of dimensions")
            return {}
        return {full.removeprefix(f"{prefix}."): dim for full, dim in self.group(prefix, children)}


def _plain(number: float) -> str:
    """Return a number as YAML 1.1 reads it back as a number."""
    text = repr(number)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text
