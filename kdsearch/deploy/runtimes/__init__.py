"""The runtimes that load exported files, one module each; the module name is the name.

Listing the names imports none of them; the error for a missing one names the package to install.
"""

from __future__ import annotations

from pathlib import Path

from kdsearch.deploy.runtimes.base import Runtime, Unavailable
from kdsearch.errors import ExportError
from kdsearch.registry import Registry

RUNTIMES: Registry[Runtime] = Registry("kdsearch.deploy.runtimes", Runtime, what="runtime")

__all__ = ["RUNTIMES", "Runtime", "Unavailable", "load", "require"]


def require(name: str) -> type[Runtime]:
    """Return the class of a runtime. Raises Unavailable, with the install command, if missing."""
    runtime = RUNTIMES.get(name)
    if not runtime.is_installed():
        raise Unavailable(f"{name} is not installed: `{runtime.install}`")
    return runtime


def load(name: str, path: Path, *, threads: int = 1) -> Runtime:
    """Load a file with its runtime, on the CPU. Raises ExportError when that fails."""
    runtime = require(name)
    if not path.exists():
        raise ExportError(f"there is no file {path}; export it again")
    try:
        return runtime(path, threads=threads)
    except ExportError:
        raise
    except Exception as error:  # the runtimes' exceptions have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{name} refuses {path}: {reason}; export it again") from error
