"""Connect to Ray: a private one on this machine, or a cluster. No torch here.

Ray prints nothing, since our console does, and sends no usage statistics. No private attribute of
Ray is used.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdsearch.errors import StudyError
from kdsearch.spec import TrialRecord
from kdsearch.study.early_stopping import Rung, RungPruner

PRIVATE = "none"
_RUNNING = "auto"
_REACH_SECONDS = 10.0
_STORE_BYTES = 100 * 2**20  # of objects that Ray keeps in memory: ours are a few kB
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # its own is 15
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer one prints a table also when it is to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # the study is on disk
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
_ENDED = (
    "Ray has ended on this machine: one of its processes was killed, perhaps for memory; trials "
    "that ended are kept, and the same command resumes the study"
)
_ON_EXIT = "import sys\nif not sys.stdin.read(): print(sys.argv[1], file=sys.stderr)"
_IN_ACTORS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def connected(address: str = PRIVATE, *, cpus: int | None = None) -> Iterator[None]:
    """Hold a connection to Ray.

    address: `none` starts a private Ray on this machine, with that many CPUs and no dashboard, and
    ends it; `auto` joins the one that runs here; or `HOST:PORT` of a cluster that this machine is a
    node of. Raises StudyError when it cannot connect.
    """
    private: dict[str, Any] = {}
    where = address
    if address == PRIVATE:
        where = "local"
        private = {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    with quiet():
        try:
            _reach(address)
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": _IN_ACTORS},
                **private,
            )
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            cause = str(error).partition("\n")[0]
            raise StudyError(
                f"--ray-address {address}: {cause}; `ray start --head` starts a cluster, and "
                "--ray-address none a private one"
            ) from error
        try:
            with explained_exit():
                yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nothing answers, at once: Ray would try for minutes."""
    if address == _RUNNING:
        # Where `ray start` writes the address of the cluster that it started.
        kept = Path(
            os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray/ray_current_cluster"
        )
        address = kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""
        address = os.environ.get("RAY_ADDRESS") or address
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()


def room(gpus: float) -> int:
    """Return how many trials of one CPU and that share of a GPU fit on all nodes."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    shares = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(
        int(min(share.get("CPU", 0), share.get("GPU", 0) / gpus + 1e-9 if gpus else math.inf))
        for share in shares
    )


def node_error() -> StudyError | None:
    """Return the error that the Ray node of this process has ended; None while it is alive."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    if any(node["NodeID"] == here and node["Alive"] for node in nodes):
        return None
    return StudyError(_ENDED)


@contextmanager
def explained_exit() -> Iterator[None]:
    """Print why, where Ray ends this process: it does so at once, past Python, if its node ends.

    A child waits for the end of a pipe, and prints unless it was written to.
    """
    line = [sys.executable, "-I", "-S", "-c", _ON_EXIT, f"kdsearch: {_ENDED}"]
    child = subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        with suppress(OSError):  # somebody killed the child
            child.communicate(b"ended")


class PrunerActor:
    """A pruner in an actor on the driver's node; the handle can be sent to other actors."""

    def __init__(self, pruner: RungPruner) -> None:
        here = ray.get_runtime_context().get_node_id()
        self._actor: Any = (
            ray.remote(_Pruner)
            .options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
            )
            .remote(pruner)
        )

    def update(self, record: TrialRecord) -> None:
        """Add a trial that ended; returns when the next rung counts it."""
        ray.get(self._actor.update.remote(record))

    def __call__(self, rung: Rung) -> str | None:
        """Return the reason to prune the trial there, or None."""
        reason: str | None = ray.get(self._actor.decide.remote(rung))
        return reason


class _Pruner:
    def __init__(self, pruner: RungPruner) -> None:
        self._pruner = pruner

    def update(self, record: TrialRecord) -> None:
        self._pruner.update([record])

    def decide(self, rung: Rung) -> str | None:
        return self._pruner(rung)


@contextmanager
def quiet() -> Iterator[None]:
    """Set the environment variables that Ray reads, silence its log, restore its signal."""
    logger = logging.getLogger("ray")
    level, handler = logger.level, signal.getsignal(signal.SIGUSR1)
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if signal.getsignal(signal.SIGUSR1) is not handler:
            signal.signal(signal.SIGUSR1, handler)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
