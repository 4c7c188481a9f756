"""The command line: flags to function calls, results to the terminal. Commands import torch late.

Commands are listed in the order in which they register.
"""

# isort: off
from kdsearch.cli import study, export, single, compare  # noqa: F401
# isort: on

from kdsearch.cli.app import app

__all__ = ["app"]
