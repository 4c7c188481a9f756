"""Classes of masks: which id or colour is which class, as `classes.json` states it.

A value that is neither a class nor void is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdsearch.data.base import VOID, Colour
from kdsearch.documents import mistake_in, parse_json
from kdsearch.errors import DataError

CLASSES = "classes.json"

_Channel = Annotated[int, Field(ge=0, le=255)]


class _Class(BaseModel):
    """One class of classes.json."""

    model_config = ConfigDict(extra="ignore", strict=True)
    id: int = Field(ge=0, le=255)
    name: str
    colour: tuple[_Channel, _Channel, _Channel] | None = Field(None, strict=False)


class _File(BaseModel):
    """Content of classes.json. ignore_index: the id or ids of void."""

    model_config = ConfigDict(extra="ignore", strict=True)
    classes: list[_Class]
    ignore_index: int | list[int] = VOID
    ignore: _Class | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The class of each id, and of each colour where masks are in colours.

    names: of the classes. ids, colours: the class, or VOID, by its code; a colour's is 0xRRGGBB.
    shown: the colour of each class, empty unless all have one. twice: names of two classes of one
    colour.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    colours: Mapping[int, int]
    shown: tuple[Colour, ...] = ()
    twice: tuple[str, ...] = ()

    def classes(
        self, codes: NDArray[np.int32], *, are_colours: bool, where: object
    ) -> NDArray[np.uint8]:
        """Return the classes of codes [H, W]. Raises DataError that names an unknown one."""
        known = self.colours if are_colours else self.ids
        if are_colours and self.twice:
            raise DataError(
                f"{where}: a mask in colours, but {' and '.join(self.twice)} have one colour in "
                f"{CLASSES}; give each class its own"
            )
        if are_colours and not known:
            raise DataError(
                f"{where}: a mask in colours; add a 'colour' to each class in {CLASSES}, or save "
                "ids as a palette or grey PNG"
            )
        keys = np.array(sorted(known), np.int32)
        place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        wrong = keys[place] != codes
        if wrong.any():
            raise DataError(self._unknown(int(codes[wrong][0]), are_colours, where))
        found: NDArray[np.uint8] = np.array([known[key] for key in keys.tolist()], np.uint8)[place]
        return found

    def described(self) -> bytes:
        """Return what decides the classes of masks: names, ids and colours."""
        parts = [self.names, sorted(self.ids.items()), sorted(self.colours.items())]
        return json.dumps(parts).encode()

    def _unknown(self, code: int, are_colours: bool, where: object) -> str:
        names = {**dict(enumerate(self.names)), VOID: "void"}
        known = self.colours if are_colours else self.ids
        shown = [f"{_code_text(key, are_colours)} {names[known[key]]}" for key in sorted(known)]
        listed = ", ".join(shown[:20]) + (f", … ({len(shown)} in all)" if shown[20:] else "")
        return (
            f"{where}: the pixel value {_code_text(code, are_colours)} is no class; known: "
            f"{listed}. Mend the mask, or list its classes in {CLASSES}"
        )


def _code_text(code: int, is_colour: bool) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})" if is_colour else str(code)


def table_in(file: Path) -> Table:
    """Return the table that classes.json states. Raises DataError."""
    try:
        given = parse_json(file.read_text(encoding="utf-8"))
        listed = given if isinstance(given, list) else given.get("classes", [])
        entries = [{"id": i, "name": c} if isinstance(c, str) else c for i, c in enumerate(listed)]
        rest = {} if isinstance(given, list) else given
        content = _File.model_validate_json(json.dumps({**rest, "classes": entries}))
    except (ValueError, AttributeError, ValidationError) as error:
        raise DataError(
            f"{file}: {mistake_in(error)}; expected "
            '{"classes": [{"id": 0, "name": "sky", "colour": [128, 128, 128]}, ...], '
            '"ignore_index": 255}'
        ) from None
    ids, names = [c.id for c in content.classes], tuple(c.name for c in content.classes)
    for what, values in (("ids", ids), ("names", names)):
        if len(set(values)) < len(values):
            raise DataError(
                f"{file}: two classes have one of the {what} {', '.join(map(str, values))}"
            )
    void = content.ignore_index
    ignored = dict.fromkeys([void] if isinstance(void, int) else void, VOID)
    colours = {code_of(c.colour): i for i, c in enumerate(content.classes) if c.colour}
    coloured = [*content.classes]
    if content.ignore is not None:
        ignored[content.ignore.id] = VOID
        coloured.append(content.ignore)
        if content.ignore.colour:
            colours = {code_of(content.ignore.colour): VOID} | colours
    listed_ids = {number: i for i, number in enumerate(ids)}
    given_colours = tuple(c.colour for c in content.classes if c.colour)
    shown = given_colours if len(given_colours) == len(names) else ()
    twice = next(
        (
            (one.name, other.name)
            for one, other in combinations(coloured, 2)
            if one.colour and one.colour == other.colour
        ),
        (),
    )
    return _checked(Table(names, ignored | listed_ids, colours, shown, twice), file)


def code_of(colour: Colour) -> int:
    """Return 0xRRGGBB."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def table_of(ids: Iterable[int], where: object) -> Table:
    """Return a table in which each id is a class of that name; 255 is void, see `data.masks`.

    Raises DataError for fewer than two classes.
    """
    found = set(ids)
    kept = sorted(found if found <= {0, VOID} else found - {VOID})
    table = {number: i for i, number in enumerate(kept)}
    void = {} if VOID in table else {VOID: VOID}
    return _checked(Table(tuple(map(str, kept)), void | table, {}), where)


def _checked(table: Table, where: object) -> Table:
    if len(table.names) < 2:
        raise DataError(
            f"{where}: segmentation needs at least two classes, the background among them; found "
            f"{', '.join(table.names) or 'none'}"
        )
    return table
