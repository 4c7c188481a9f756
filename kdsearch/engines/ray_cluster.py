"""The Ray that trials run on: one of our own on this machine, or a cluster. No torch here.

It is kept silent, as our console tells what happens, and nothing is sent anywhere.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services, worker

from kdsearch.errors import StudyError

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
_IN_ACTORS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def connected(address: str = PRIVATE, *, cpus: int | None = None) -> Iterator[None]:
    """Hold a connection to Ray meanwhile, which sends nothing anywhere and prints nothing.

    address: `none` starts a Ray of our own on this machine, with that many CPUs to share out and
    no dashboard, and ends it; `auto` joins the one that runs here; or `HOST:PORT` of a cluster
    that this machine is a node of. Raises StudyError when it cannot be had.
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
                "--ray-address none a Ray of our own"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nothing answers; Ray would try for minutes, at a dead cluster's too."""
    if address == _RUNNING:
        address = services.canonicalize_bootstrap_address_or_die(address)
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()


def room(gpus: float) -> int:
    """Return how many trials of one CPU and that share of a GPU have room, on all nodes."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    shares = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(
        int(min(share.get("CPU", 0), share.get("GPU", 0) / gpus + 1e-9 if gpus else math.inf))
        for share in shares
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Set what Ray reads from the environment alone, silence it, give its signal back."""
    logger = logging.getLogger("ray")
    level, handler = logger.level, signal.getsignal(signal.SIGUSR1)
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger.setLevel(logging.CRITICAL)
    worker._worker_logs_enabled = False  # or it prints of each dead actor, to stdout
    try:
        yield
    finally:
        worker._worker_logs_enabled = True
        logger.setLevel(level)
        if signal.getsignal(signal.SIGUSR1) is not handler:
            signal.signal(signal.SIGUSR1, handler)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
