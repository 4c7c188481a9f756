"""Any device that a user's command reaches: a phone by adb, a board by ssh.

The command gets the path of the ONNX file as its last argument, and in its environment
KDSEARCH_INPUT (`3x224x224`), KDSEARCH_DTYPE, KDSEARCH_BATCH and KDSEARCH_THREADS. It prints
milliseconds, one number or several, and nothing else. It runs without a shell.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

from kdsearch.deploy.targets._reference_network import conv_chain
from kdsearch.deploy.targets.base import Note, References, Shape, Target, TimingRequest
from kdsearch.deploy.timing import Round, RoundLimits
from kdsearch.errors import CostError, SpecError

_TIMEOUT_SECONDS = 600.0
_MAX_PRINTED = 1_000_000
_SHOWN_LINES, _SHOWN = 5, 200  # lines of stderr in a message, and characters of a line


class Cmd(Target):
    """`cmd:COMMAND`: a command that gets the ONNX file and prints milliseconds."""

    device = "cmd"
    runtime = "a command"
    round_limits = RoundLimits(min_rounds=3, max_rounds=6, max_seconds=120.0)
    timeout_seconds = _TIMEOUT_SECONDS

    def require(self) -> None:
        """Raise SpecError where the command cannot be parsed or its program is missing."""
        try:
            argv = shlex.split(self.command)
        except ValueError as error:
            raise SpecError(f"--target cmd:{self.command}: {error}") from error
        if not argv:
            raise SpecError("--target cmd: expected cmd:COMMAND, such as 'cmd:python3 on_phone.py'")
        if shutil.which(argv[0]) is None:
            raise SpecError(
                f"--target cmd:{self.command}: there is no program {argv[0]!r}; give its path"
            )

    def dry_run(self, shape: Shape, note: Note) -> None:
        """Run the command once, on a convolution. Raises SpecError with its output."""
        note(f"Trying --target cmd:{self.command} on a small ONNX file")
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            file = Path(folder) / "student.onnx"
            file.write_bytes(conv_chain(1, shape))
            try:
                self._time(TimingRequest(file=file, shape=shape))
            except CostError as error:
                of = "x".join(map(str, shape))
                raise SpecError(
                    f"--target cmd fails on a small ONNX file of {of}: {error}"
                ) from error
        note(
            f"It took {time.perf_counter() - began:.1f} s; a network is measured by "
            f"{self.round_limits.min_rounds} to {self.round_limits.max_rounds} such runs"
        )

    def version(self) -> str:
        """Return an empty text: the version behind the command is unknown."""
        return ""

    def measure_round(self, timing: TimingRequest, references: References | None) -> Round:
        """Return the median of the milliseconds that the command prints."""
        del references
        return self._time(timing)

    def _time(self, timing: TimingRequest) -> Round:
        settings = {
            "KDSEARCH_INPUT": "x".join(map(str, timing.shape)),
            "KDSEARCH_DTYPE": timing.dtype,
            "KDSEARCH_BATCH": str(self.batch),
            "KDSEARCH_THREADS": str(self.threads),
        }
        out, err, status = self._run([*shlex.split(self.command), str(timing.file)], settings)
        if status:
            raise self._error(f"ended with {status}", err)
        try:
            times = [float(word) for word in out.split()]
        except ValueError:
            times = []
        if not times or not all(0 < ms < math.inf for ms in times):
            shown = repr(_clipped(" ".join(out.split()))) if out.split() else "nothing"
            raise self._error(
                f"was given the ONNX file as its last argument and printed {shown}; expected "
                "milliseconds above 0 and nothing else",
                err,
            )
        return Round(ms=statistics.median(times))

    def _run(self, argv: list[str], settings: dict[str, str]) -> tuple[str, str, int]:
        """Return stdout, stderr and exit status of a command."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={**os.environ, **settings},
                start_new_session=True,
            )
        except OSError as error:
            raise self._error(f"does not start: {error.strerror}", "") from error
        end = time.monotonic() + self.timeout_seconds
        texts = ["", ""]

        def read(place: int, pipe: IO[str]) -> None:
            texts[place] = _read(process, pipe)

        # Daemon threads: a process that the command left behind may hold a pipe open for ever.
        pipes = enumerate(filter(None, (process.stdout, process.stderr)))
        readers = [Thread(target=read, args=pipe, daemon=True) for pipe in pipes]
        try:
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(max(0.0, end - time.monotonic()))
            status = process.wait(max(0.0, end - time.monotonic()))
            if any(reader.is_alive() for reader in readers):
                raise TimeoutError
        except (TimeoutError, subprocess.TimeoutExpired):
            _kill(process)
            raise self._error(f"took more than {self.timeout_seconds:g} s", "") from None
        except BaseException:
            _kill(process)
            raise
        out, err = texts
        if max(len(out), len(err)) > _MAX_PRINTED:
            raise self._error(f"printed more than {_MAX_PRINTED} characters", "")
        return out, err, status

    def _error(self, what: str, err: str) -> CostError:
        lines = [_clipped(line) for line in err.strip().splitlines()[-_SHOWN_LINES:]]
        return CostError("\n  ".join([f"the command {self.command!r} {what}", *lines]))


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _read(process: subprocess.Popen[str], pipe: IO[str]) -> str:
    """Return what a command prints; one that prints too much is killed."""
    with pipe:
        text = pipe.read(_MAX_PRINTED + 1)
        if len(text) > _MAX_PRINTED:
            _kill(process)
    return text


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the command and its children, which would hold its pipes open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
