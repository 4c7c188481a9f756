"""Targets by name: the device and runtime that latency is measured on, one file each.

`cmd:COMMAND` is a command of the user's own. Listing the names, and making a target, imports none
of their runtimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.registry import Registry
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TargetInfo

if TYPE_CHECKING:
    from kdsearch.deploy.targets.base import Target

TARGETS: Registry[Target] = Registry(
    "kdsearch.deploy.targets", "kdsearch.deploy.targets.base:Target", what="--target"
)


def parse_target(text: str, *, threads: int = 1, batch: int = 1) -> Target:
    """Return the target named `cpu`, `cmd:COMMAND` and so on. Raises SpecError."""
    name, _, command = text.partition(":")
    if name not in TARGETS.names():
        known = ["cmd:COMMAND" if known == "cmd" else known for known in TARGETS.names()]
        raise SpecError(
            f"unknown --target {text!r}{did_you_mean(name, known)}; known: {', '.join(known)}, "
            "where COMMAND gets the ONNX file and prints milliseconds"
        )
    return TARGETS.get(name)(threads=threads, batch=batch, command=command)


def require_target(config: StudyConfig) -> Target:
    """Return the target of a study. Raises SpecError where it cannot be used here."""
    target = parse_target(config.target, threads=config.threads, batch=config.batch)
    target.require()
    return target


def target_info(what: StudyConfig | Target) -> TargetInfo:
    """Return a target, or that of a study, as `front.json` states it."""
    if isinstance(what, StudyConfig):
        what = parse_target(what.target, threads=what.threads, batch=what.batch)
    return TargetInfo(
        device=what.device,
        runtime=what.command or what.runtime,
        threads=what.threads,
        batch=what.batch,
    )


def target_for(runtime: str, target: Target) -> Target:
    """Return `target` where it takes the files of a runtime, else the CPU by that runtime."""
    if runtime in target.takes:
        return target
    from kdsearch.deploy.targets._local import RuntimeTarget

    return RuntimeTarget(runtime=runtime, threads=target.threads, batch=target.batch)
