"""Lists of plug-ins and other names, read without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from kdsearch.errors import SpecError, did_you_mean


def listing(what: str) -> dict[str, str]:
    """Return the names of methods, students, teachers, data or spaces, each with one line.

    Raises SpecError for anything else.
    """
    if what not in _LISTINGS:
        hint = did_you_mean(what, _LISTINGS)
        raise SpecError(f"list {what!r}{hint}: expected one of {', '.join(_LISTINGS)}")
    return _LISTINGS[what]()


def _students() -> dict[str, str]:
    return {
        **_plugins("models/students"),
        "timm:NAME": "any timm classifier",
        "torchvision:NAME": "any torchvision classifier",
        "FILE.py:CLASS": "your own family",
    }


def _plugins(package: str) -> dict[str, str]:
    """Return each plug-in of a package with its first line, read without importing it."""
    found = {}
    for file in sorted((Path(__file__).parents[1] / package).glob("[a-z]*.py")):
        if file.stem != "base":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
            public = next(node for node in classes if not node.name.startswith("_"))
            found[file.stem] = (ast.get_docstring(public) or "").split("\n")[0]
    return found


def _teachers() -> dict[str, str]:
    return {
        "auto": "a network trained on your data and kept; on photographs a pretrained one",
        "cifar_resnet20": "also 32, 44, 56, 110; with --teacher-weights",
        "timm:NAME": "any timm classifier",
        "open_clip:MODEL": "zero-shot, by texts of the class names; with --teacher-weights TAG",
        "study:FOLDER": "the student that a study exported; study:FOLDER#7: of its trial 7",
        "torchvision:NAME": "any torchvision classifier; for masks, any of its segmenters",
        "smp:ARCHITECTURE/ENCODER": "for masks, a network of segmentation_models_pytorch",
        "FILE.py:FACTORY": "a function that returns a torch module, for masks a segmenter",
    }


def _data_names() -> dict[str, str]:
    from kdsearch import data

    return {
        **dict.fromkeys(data.names(), ""),
        "digits": "8x8 handwritten digits, part of scikit-learn",
        "PATH": "a folder with train/CLASS/*, or Parquet files",
    }


def _spaces() -> dict[str, str]:
    from kdsearch.study.builtin_spaces import builtin

    texts = {name: file.read_text(encoding="utf-8") for name, file in builtin().items()}
    return {name: text.split("\n")[0].lstrip("# ") for name, text in texts.items()}


_LISTINGS: Mapping[str, Callable[[], dict[str, str]]] = {
    "methods": partial(_plugins, "methods"),
    "students": _students,
    "teachers": _teachers,
    "data": _data_names,
    "spaces": _spaces,
}
