"""Write reference pages from the code: commands, methods, spaces, families, formats.

Registered plug-ins appear by themselves. Each page is Markdown that a page in reference/ includes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import typer

from kdsearch import methods
from kdsearch.cli import app
from kdsearch.deploy import runtimes
from kdsearch.deploy.formats import FORMATS
from kdsearch.models import students
from kdsearch.space import Choice, Constant, Dim, Float, Int
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.study.builtin_spaces import builtin

_ARXIV = re.compile(r"\b(?:arXiv:)?(\d{4}\.\d{4,5})\b")
_COMPARES = {
    "logits": "logits",
    "embedding": "embeddings",
    "stages": "maps of paired stages",
    "attention": "queries, keys and values",
    "outputs": "whole outputs",
    "nothing": "nothing; there is no teacher",
}
_WRITTEN: Mapping[str, type[Dim]] = {
    "{float: [LOW, HIGH]}": Float,
    "{int: [LOW, HIGH]}": Int,
    "{choice: [A, B]}": Choice,
    "VALUE": Constant,
}


def write(folder: Path) -> None:
    """Write every page to `folder`."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        text = "\n".join(page()) + "\n"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def commands() -> Iterable[str]:
    """Yield a section for each command: its purpose, an example, arguments and options."""
    found = typer.main.get_command(app).commands
    for name, command in found.items():
        purpose, example = command.help or "", (command.epilog or "").removeprefix("Example: ")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join([f"kdsearch {name}", *(p.name.upper() for p in arguments), "[OPTIONS]"])
        yield from (f"## kdsearch {name}", "", _escaped(purpose), "", "```text", usage, "```", "")
        typed = " \\\n    ".join(textwrap.wrap(example, 84, break_on_hyphens=False))
        yield from ("For example:", "", "```text", typed, "```", "")
        rows = [(f"`{p.name.upper()}`", _help(p.help)) for p in arguments]
        rows += [(_flags(p), _help(p.help) + _default(p.default)) for p in options]
        yield from _table(("", ""), rows)


def _flags(option: typer.core.TyperOption) -> str:
    names = [*option.opts, *option.secondary_opts]
    kind = "" if option.is_bool_flag else f" {_metavar(option)}"
    return ", ".join(f"`{name}{kind}`" for name in sorted(names, key=len, reverse=True))


def _metavar(option: typer.core.TyperOption) -> str:
    annotation = option.type_descriptor.annotation
    names = {int: "N", float: "X", Path: "PATH"}
    return names.get(annotation, "TEXT")


def _help(text: str | None) -> str:
    return _escaped((text or "").replace("\\[", "["))


def _default(value: object) -> str:
    return "" if value in (None, False) else f" Default: `{value}`."


def method_pages() -> Iterable[str]:
    """Yield a section for each method: paper, inputs, knobs, defaults and ranges."""
    yield from _table(
        ("method", "purpose", "compares"),
        [
            (f"[`{name}`](#{name})", _first_line(method), f"{_COMPARES[method.need]}")
            for name, method in ((name, methods.get(name)) for name in methods.names())
        ],
    )
    for name in methods.names():
        method = methods.get(name)
        yield from (f"({name})=", f"## {name}", "", _first_line(method), "")
        body = inspect.cleandoc(method.__doc__ or "").partition("\n")[2].strip()
        if body:
            for part in body.split("\n\n"):
                yield from (_linked(" ".join(part.split())), "")
        signature = inspect.signature(method.__init__).parameters.values()
        defaults = {
            p.name: p.default for p in signature if p.default is not inspect.Parameter.empty
        }
        defaults |= {"alpha": method.alpha, "weight": method.weight}
        if method.is_pairwise or method.need in ("stages", "attention"):
            defaults["mapping"] = method.mapping
        rows = [
            (f"`{knob}`", f"`{value}`", _searched(method.ranges.get(knob)))
            for knob, value in sorted(defaults.items())
        ]
        rows += [
            (f"`{knob}`", "not set", _searched(dim))
            for knob, dim in sorted(method.ranges.items())
            if knob not in defaults
        ]
        yield from (f"Compares {_COMPARES[method.need]}.", "")
        yield from _table(("knob", "default", "range to search"), rows)


def families() -> Iterable[str]:
    """Yield one table of the student families and their knobs."""
    rows = []
    for name in students.FAMILIES.names():
        family = students.FAMILIES.get(name)
        ranges = "; ".join(f"`{knob}` {_searched(dim)}" for knob, dim in family.knobs.items())
        rows.append((f"`{name}`", _first_line(family), ranges))
    yield from _table(("family", "", "knobs and ranges to search"), rows)


def spaces() -> Iterable[str]:
    """Yield every built-in space."""
    for name, file in builtin().items():
        text = file.read_text(encoding="utf-8").rstrip()
        yield from (f"### {name}", "", "```yaml", text, "```", "")


def types() -> Iterable[str]:
    """Yield one table of the leaves of a space."""
    rows = [(f"`{written}`", _first_line(dim)) for written, dim in _WRITTEN.items()]
    yield from _table(("written", "is"), rows)


def settings() -> Iterable[str]:
    """Yield the settings of a method and of `train`, with defaults."""
    for title, spec in (("Under a method", DistillSpec), ("Under `train`", TrainSpec)):
        body = inspect.cleandoc(spec.__doc__ or "").partition("\n")[2]
        text = _linked(" ".join(body.split()))
        rows = [
            (
                f"`{item.name}`",
                "method default" if item.default is None else f"`{item.default}`",
            )
            for item in fields(spec)
            if item.default is not MISSING and item.name != "method"
        ]
        yield from (f"### {title}", "", text, "")
        yield from _table(("setting", "default"), rows)


def formats() -> Iterable[str]:
    """Yield one table of the export formats."""
    rows = []
    for name in FORMATS.names():
        kind = FORMATS.get(name)
        shown = f"`{name.replace('_', '-')}`"
        needs = runtimes.RUNTIMES.get(kind.runtime).install
        rows.append((shown, f"`student{kind.suffix}`", f"{_first_line(kind)} `{needs}`"))
    yield from _table(("format", "file", "contents, and the package that runs it"), rows)


def _searched(dim: Dim | None) -> str:
    if dim is None:
        return ""
    if isinstance(dim, Float | Int):
        kind = "float" if isinstance(dim, Float) else "int"
        log = ", log: true" if dim.log else ""
        return f"`{{{kind}: [{dim.low}, {dim.high}]{log}}}`"
    if isinstance(dim, Choice):
        return f"`{{choice: [{', '.join(map(str, dim.options))}]}}`"
    assert isinstance(dim, Constant)
    return f"`{dim.value}`"


def _first_line(plugin: type) -> str:
    return _linked((inspect.getdoc(plugin) or "").partition("\n")[0])


def _linked(text: str) -> str:
    """Return Markdown that shows a docstring literally, with links to its papers."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", _escaped(text))


def _escaped(text: str) -> str:
    """Escape the marks of Markdown outside code spans."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(part.replace("|", "\\|") if i % 2 else part for i, part in enumerate(parts))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


PAGES: Mapping[str, Callable[[], Iterable[str]]] = {
    "commands": commands,
    "methods": method_pages,
    "families": families,
    "spaces": spaces,
    "types": types,
    "settings": settings,
    "formats": formats,
}
