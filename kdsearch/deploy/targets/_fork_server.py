"""Ask one question a process: each is forked from a parent that has imported all that it needs.

A fork takes 10 ms where a new interpreter with its runtime takes 400. The parent opens no network
itself, so each child lays one out in memory anew. It ends when the pipe to it is closed, however
that happens, and hears no Ctrl-C: the driver decides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Mapping
from typing import Protocol, TextIO, cast

from kdsearch.errors import CostError, KDSearchError
from kdsearch.registry import import_object

Json = Mapping[str, object]
_START = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from kdsearch.deploy.targets._fork_server import serve; serve(**given)"
)
# Libraries of linear algebra start their threads as they are imported; a fork has none of them.
_QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Handler(Protocol):
    """What the parent makes: it imports what it needs, and answers in a child."""

    def prepare(self) -> None:
        """Import what the answers need; open no network and no device."""

    def answer(self, question: Json) -> Json:
        """Return the answer to a question, both of plain JSON types."""


class ForkServer:
    """Forks that answer questions. The parent starts with the first question.

    made_by: `package.module:Class` of what answers; settings: its arguments.
    """

    def __init__(self, made_by: str, settings: Mapping[str, object]) -> None:
        self._given = {"made_by": made_by, "settings": settings}
        self._parent: subprocess.Popen[str] | None = None

    def ask(self, question: Json) -> Json:
        """Return a fresh process's answer. Raises CostError where it refuses, breaks or dies."""
        if self._parent is None or self._parent.poll() is not None:
            self._start()
        assert self._parent is not None
        assert self._parent.stdin is not None
        try:
            self._parent.stdin.write(json.dumps(question) + "\n")
            self._parent.stdin.flush()
            return self._told()
        except BrokenPipeError:
            raise CostError("the process that measures has ended; measure again") from None

    def _start(self) -> None:
        given = json.dumps({**self._given, "path": sys.path})
        parent = subprocess.Popen(
            [sys.executable, "-c", _START, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_QUIET},
            start_new_session=True,
        )
        weakref.finalize(self, _end, parent)
        self._parent = parent
        self._told()

    def _told(self) -> Json:
        assert self._parent is not None
        assert self._parent.stdout is not None
        try:
            line = self._parent.stdout.readline()
        except BaseException:  # else the next question would get this one's answer
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent = None
            raise
        if not line:
            raise CostError(f"the process that measures ended with {self._parent.wait()}")
        told = json.loads(line)
        if "refused" in told:
            raise CostError(str(told["refused"]))
        return cast("Json", told)


def _end(parent: subprocess.Popen[str]) -> None:
    for pipe in (parent.stdin, parent.stdout):
        assert pipe is not None
        pipe.close()
    parent.wait()


def serve(made_by: str, settings: dict[str, object]) -> None:
    """Answer the questions on standard input, one line each, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no answer
    answering = cast("type[Handler]", import_object(made_by, what="target"))(**settings)
    answering.prepare()
    _tell(answers, {"ready": True})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _tell(answers, _answer(answering, json.loads(line)))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            _tell(answers, {"refused": f"the process that measured it died: {how}"})


def _answer(answering: Handler, question: Json) -> Json:
    try:
        return answering.answer(question)
    except KDSearchError as error:
        return {"refused": str(error)}
    except Exception:  # a file may make a runtime raise anything
        return {"refused": traceback.format_exc(limit=-3)}


def _tell(answers: TextIO, told: Json) -> None:
    answers.write(json.dumps(told) + "\n")
    answers.flush()
