"""A training keeps the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from kdsearch.training import allocator

_FAULTS = """
import resource
import torch
{first}

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(9):
    torch.empty(1 << 23).fill_(1)
before = faults()
for _ in range(5):
    torch.empty(1 << 23).fill_(1)
print(faults() - before)
"""


def _page_faults(first: str) -> int:
    code = _FAULTS.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_blocks_that_are_freed_serve_the_next_step() -> None:
    keep = "from kdsearch.training.allocator import keep_freed_memory; keep_freed_memory()"
    assert _page_faults(keep) < _page_faults("") / 100


@pytest.mark.parametrize(("libc", "name"), [("musl", "PATH"), ("glibc", "MALLOC_ARENA_MAX")])
def test_other_libraries_and_the_settings_of_users_are_left_alone(
    libc: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "1"))
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory.__wrapped__()
