"""Answer each request in a fresh process, forked from a parent that has imported the runtime.

A fork takes 10 ms, a new interpreter with its runtime 400 ms. The parent opens no network, so each
child lays one out in memory anew. The parent ends when the pipe to it closes, for whatever reason,
and ignores Ctrl-C, which the driver handles.
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
from select import select
from typing import Protocol, TextIO, cast

from kdsearch.errors import CostError, KDSearchError
from kdsearch.registry import import_object

Json = Mapping[str, object]
_START = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from kdsearch.deploy.targets._fork_server import serve; serve(**given)"
)
# Libraries of linear algebra start their threads on import; a fork has none of them.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Handler(Protocol):
    """Runs in the server: imports its runtime in the parent, handles a request in each child."""

    def prepare(self) -> None:
        """Import what requests need; open no network and no device."""

    def handle(self, request: Json) -> Json:
        """Return the response to a request."""


class ForkServer:
    """A process that forks for each request. It starts with the first one.

    handler: `package.module:Class`; settings: the arguments of the class.
    """

    timeout_seconds = 600.0  # for the start too; TensorRT takes minutes to build an engine

    def __init__(self, handler: str, settings: Mapping[str, object]) -> None:
        self._given = {"handler": handler, "settings": settings}
        self._parent: subprocess.Popen[str] | None = None

    def request(self, request: Json) -> Json:
        """Return a fresh process's response. Raises CostError where it refuses, fails or hangs."""
        if self._parent is None or self._parent.poll() is not None:
            self._start()
        assert self._parent is not None
        assert self._parent.stdin is not None
        try:
            self._parent.stdin.write(json.dumps(request) + "\n")
            self._parent.stdin.flush()
            return self._receive()
        except BrokenPipeError:
            raise CostError("the process that measures has ended; measure again") from None

    def _start(self) -> None:
        given = json.dumps({**self._given, "path": sys.path})
        parent = subprocess.Popen(
            [sys.executable, "-c", _START, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,
        )
        weakref.finalize(self, _end, parent)
        self._parent = parent
        self._receive()

    def _receive(self) -> Json:
        assert self._parent is not None
        assert self._parent.stdout is not None
        try:
            if not select([self._parent.stdout], [], [], self.timeout_seconds)[0]:
                raise CostError(
                    f"the runtime gave no answer within {self.timeout_seconds:g} s and was ended"
                )
            line = self._parent.stdout.readline()
        except BaseException:  # else the next request would get this one's response
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent = None
            raise
        if not line:
            raise CostError(f"the process that measures ended with {self._parent.wait()}")
        response = json.loads(line)
        if "error" in response:
            raise CostError(str(response["error"]))
        return cast("Json", response)


def _end(parent: subprocess.Popen[str]) -> None:
    for pipe in (parent.stdin, parent.stdout):
        assert pipe is not None
        pipe.close()
    parent.wait()


def serve(handler: str, settings: dict[str, object]) -> None:
    """Handle the requests on standard input, one JSON line each, until it closes."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a runtime's own prints go to stderr
    handler_class = cast("type[Handler]", import_object(handler, what="target"))
    server = handler_class(**settings)
    server.prepare()
    _send(responses, {"ready": True})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _send(responses, _handle(server, json.loads(line)))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            _send(responses, {"error": f"the process that measured it died: {how}"})


def _handle(handler: Handler, request: Json) -> Json:
    try:
        return handler.handle(request)
    except KDSearchError as error:
        return {"error": str(error)}
    except Exception:  # a file may make a runtime raise anything
        return {"error": traceback.format_exc(limit=-3)}


def _send(responses: TextIO, response: Json) -> None:
    responses.write(json.dumps(response) + "\n")
    responses.flush()
