"""Start the command line and turn every error into one message and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from types import FrameType
from typing import ClassVar

_SOON = 0.01  # seconds; the place that discards exceptions has been left by then
EXIT_INTERNAL, EXIT_ARGUMENTS, EXIT_INTERRUPTED = 1, 2, 130
_LINES = "\n"
_INTERRUPTED = "interrupted; run the same command to resume"


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, SIGHUP or SIGTERM, raised again where it is lost.

    Python discards exceptions in callbacks of weak references and in destructors, and extensions
    clear them or turn them into an ImportError that somebody catches: two of some fifty stops were
    lost. An interrupt that is destroyed before the command ends was discarded.
    """

    is_wanted: ClassVar[bool] = False  # from the start of a command until its message
    was_raised: ClassVar[bool] = False

    def __del__(self) -> None:
        """Raise another one soon."""
        if Interrupt.is_wanted:
            signal.setitimer(signal.ITIMER_REAL, _SOON)


def main(arguments: list[str] | None = None) -> None:
    """Run `kdsearch` and leave with its exit code.

    0 done, 1 internal error, 2 wrong arguments, 3 nothing fits the budget, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # OpenMP's threads spin while they wait: on two cores with another busy process, training a
    # small network took 136 s; with threads that sleep it took 9 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _interrupts():
        sys.exit(_run(arguments))


@contextmanager
def _interrupts() -> Iterator[None]:
    """Raise `Interrupt` at Ctrl-C and SIGHUP, unless they are ignored, and at SIGTERM."""
    signals = [signal.SIGTERM, signal.SIGALRM]
    for number in (signal.SIGINT, signal.SIGHUP):  # nohup ignores the latter
        if signal.getsignal(number) is not signal.SIG_IGN:
            signals.append(number)
    hook = sys.unraisablehook
    handlers = [(number, signal.signal(number, _interrupt)) for number in signals]
    sys.unraisablehook = partial(_drop_interrupts, hook)
    Interrupt.is_wanted, Interrupt.was_raised = True, False
    try:
        yield
    finally:
        _end_interrupts()
        sys.unraisablehook = hook
        for number, handler in handlers:
            signal.signal(number, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    if Interrupt.is_wanted:
        Interrupt.was_raised = True
        raise Interrupt


def _end_interrupts() -> None:
    Interrupt.is_wanted = False
    signal.setitimer(signal.ITIMER_REAL, 0)


def _drop_interrupts(
    hook: Callable[[sys.UnraisableHookArgs], object], unraisable: sys.UnraisableHookArgs
) -> None:
    """Print nothing of an interrupt that Python discards: it is raised again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)


def _run(arguments: list[str]) -> int:
    try:
        return _run_command(arguments)
    except Interrupt:  # while another error was being reported
        return _fail(_INTERRUPTED, EXIT_INTERRUPTED)


def _run_command(arguments: list[str]) -> int:
    import typer

    from kdsearch.cli import app
    from kdsearch.errors import NO_WRITE, KDSearchError

    try:
        _refuse_empty(arguments)
        code = app(arguments or ["--help"], prog_name="kdsearch", standalone_mode=False) or 0
        _end_interrupts()
    except KDSearchError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command that was given
        path = context.command_path if context else "kdsearch"
        return _fail(f"{error.format_message()} (see `{path} --help`)", EXIT_ARGUMENTS)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.errno == errno.EIO:  # of a terminal that hung up, whose SIGHUP is to come
            time.sleep(_SOON)
        if error.errno in NO_WRITE:
            return _fail(f"cannot write {error.filename or ''}: {error.strerror}", EXIT_ARGUMENTS)
        return _internal(error, arguments)
    except Exception as error:
        return _internal(error, arguments)
    if code == EXIT_INTERRUPTED:  # Typer returns it after Ctrl-C, without a message
        return _fail(_INTERRUPTED, code)
    return int(code)


def _refuse_empty(arguments: list[str]) -> None:
    """Raise SpecError for an empty value, as of a shell variable that is not set."""
    from kdsearch.errors import SpecError

    for before, argument in pairwise(["the command", *arguments]):
        name, equals, value = argument.partition("=")
        if not argument or (equals and not value and name.startswith("--")):
            flag = name or before
            raise SpecError(f"{flag} '': expected a value; leave it out for its default")


def _internal(error: Exception, arguments: list[str]) -> int:
    from kdsearch.errors import explained, place_in_user_file

    if "--debug" in arguments:
        raise error
    if Interrupt.was_raised:  # an extension that was being imported made another error of it
        return _fail(_INTERRUPTED, EXIT_INTERRUPTED)
    if place_in_user_file(error):
        return _fail(f"{explained(error)} (--debug shows the traceback)", EXIT_INTERNAL)
    return _fail(
        f"internal error: {type(error).__name__}: {error} (--debug shows where)", EXIT_INTERNAL
    )


def _fail(message: str, code: int) -> int:
    _end_interrupts()
    from kdsearch.errors import printable

    text = f"kdsearch: {printable(message, keep=_LINES)}"
    with suppress(OSError):  # of a terminal that hung up
        print(_in_rows(text) if sys.stderr.isatty() else text, file=sys.stderr)
    return code


def _in_rows(text: str) -> str:
    """Return a text in rows as wide as the terminal, which would cut its words."""
    from shutil import get_terminal_size
    from textwrap import TextWrapper

    wrapper = TextWrapper(
        get_terminal_size().columns, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(wrapper.fill, text.split("\n")))


if __name__ == "__main__":
    main()
