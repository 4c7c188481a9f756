"""Sphinx configuration; each build writes the pages made from the code to _generated/."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402 - in this folder

import kdsearch  # noqa: E402 - of this checkout, not an installed one

project = "kdsearch"
copyright = "The kdsearch authors"
version = release = kdsearch.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["fieldlist"]
exclude_patterns = ["_build", "_generated", "examples"]
html_theme = "furo"
html_title = f"kdsearch {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
smartquotes = False  # it turns the two dashes of a flag into one


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for its sources."""
    app.connect("builder-inited", lambda _: generate.write(HERE / "_generated"))
