"""The command line: flags to function calls, results to the terminal. Commands import torch late.

Commands are listed in the order in which they register.
"""

# isort: off
from kdsearch.cli import study, export, single, compare  # noqa: F401
# isort: on

import inspect

from kdsearch.cli.app import app

for _command in app.registered_commands:  # an example is read last
    _text, _, _example = inspect.cleandoc(_command.callback.__doc__ or "").partition("Example: ")
    _command.help, _command.epilog = _text.strip(), f"Example: {_example}".replace("\n", " ")

__all__ = ["app"]
