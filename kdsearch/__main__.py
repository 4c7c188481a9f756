"""Start the command line and turn every error into one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

_SOON = 0.01  # seconds; the callback has returned by then
EXIT_INTERNAL, EXIT_ARGUMENTS, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Run `kdsearch` and leave with its exit code.

    0 done, 1 internal error, 2 wrong arguments, 3 nothing fits the budget, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # OpenMP's threads spin while they wait: on two cores with another busy process, training a
    # small network took 136 s; with threads that sleep it took 9 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    before = sys.unraisablehook
    sys.unraisablehook = partial(_raise_again, before)
    try:
        sys.exit(_run(arguments))
    finally:
        sys.unraisablehook = before


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _raise_again(
    before: Callable[[sys.UnraisableHookArgs], object], unraisable: sys.UnraisableHookArgs
) -> None:
    """Raise an interrupt again that arrived where Python discards exceptions.

    It does so in callbacks of weak references, which a training makes many of: two of some fifty
    stops by SIGTERM were lost.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _SOON)
    else:
        before(unraisable)


def _run(arguments: list[str]) -> int:
    import typer

    from kdsearch.cli import app
    from kdsearch.errors import NO_WRITE, KDSearchError

    try:
        code = app(arguments or ["--help"], prog_name="kdsearch", standalone_mode=False) or 0
    except KDSearchError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command that was given
        path = context.command_path if context else "kdsearch"
        return _fail(f"{error.format_message()} (see `{path} --help`)", EXIT_ARGUMENTS)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.errno in NO_WRITE:
            return _fail(f"cannot write {error.filename or ''}: {error.strerror}", EXIT_ARGUMENTS)
        return _internal(error, arguments)
    except Exception as error:
        return _internal(error, arguments)
    if code == EXIT_INTERRUPTED:  # Typer returns it after Ctrl-C, without a message
        return _fail("interrupted; run the same command to resume", code)
    return int(code)


def _internal(error: Exception, arguments: list[str]) -> int:
    if "--debug" in arguments:
        raise error
    return _fail(
        f"internal error: {type(error).__name__}: {error} (--debug shows where)", EXIT_INTERNAL
    )


def _fail(message: str, code: int) -> int:
    print(f"kdsearch: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
