"""The command line: flags to function calls, results to the terminal. Torch is imported late."""

from kdsearch.cli import export, single, study  # noqa: F401 - they register their commands
from kdsearch.cli.app import app

__all__ = ["app"]
