"""Kill a study at random moments until it is done, and compare it with one that nobody touched.

Each study begins with an empty cache but for latencies and forms of steps, which are measured and
would differ; it is killed, looked at, and resumed until it ends by itself. Then comes the next one.
With two workers ten trials are asked for, which the sampler draws at random: which candidates there
are does not depend on the order in which they end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from kdsearch.spec import TrialRecord
from kdsearch.study.open import load_study

_LINES = 6  # printed by a run at most before it is stopped: about as many trials
_STOPS = 6  # of a study at most; then it ends by itself
KEPT_OF_CACHE = ("latency", "execution", "baselines")
TRIALS = {1: 12, 2: 10}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
Found: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What an uninterrupted study found, and where what it measured lies."""

    found: Found
    seconds: float
    cache: Path


def main(argv: Sequence[str]) -> int:
    """Return 0 when nothing was lost, doubled or changed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kill -9")
    parser.add_argument("--stops", type=int, default=10, help="half SIGTERM, half SIGINT")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found there too")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would have it ignored
    chance = random.Random(given.seed)
    plan = ["kill"] * given.kills + ["term", "int"] * (given.stops // 2)
    chance.shuffle(plan)
    with TemporaryDirectory() as name:
        result = _tortured(Path(name), plan, chance, given.epochs)
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    return 0 if not result["wrong"] else 1


def _tortured(folder: Path, plan: list[str], chance: random.Random, epochs: int) -> Found:
    """Use up the plan, a study after the other, with one worker and with two in turn."""
    whole = {workers: _uninterrupted(folder, workers, epochs) for workers in TRIALS}
    moments: Counter[str] = Counter()
    wrong: list[str] = []
    studies = {workers: 0 for workers in TRIALS}
    done = 0
    while plan:
        workers = 1 + done % 2
        out = folder / f"out-{done}"
        for kept in KEPT_OF_CACHE:
            if (whole[workers].cache / kept).is_dir():
                shutil.copytree(whole[workers].cache / kept, out / ".cache" / kept)
        wrong += _until_done(out, workers, epochs, plan, chance, moments)
        wrong += _differences(whole[workers].found, found_in(out / "it"))
        studies[workers] += 1
        done += 1
        shutil.rmtree(out)
    return {
        "stopped": dict(sorted(moments.items())),
        "studies": {f"{workers} workers": count for workers, count in studies.items()},
        "trials": {f"{workers} workers": count for workers, count in TRIALS.items()},
        "uninterrupted_seconds": {w: round(one.seconds, 1) for w, one in whole.items()},
        "complete": {w: len(_complete(one.found)) for w, one in whole.items()},
        "front": {w: one.found["front"] for w, one in whole.items()},
        "wrong": wrong,
    }


def command(out: Path, workers: int, epochs: int) -> list[str]:
    """Return how the study is begun, and gone on with."""
    flags = ["--name", "it", "--out", str(out), "--trials", str(TRIALS[workers])]
    flags += [
        "--teacher-epochs",
        "4",
        "--epochs",
        str(epochs),
        "--workers",
        str(workers),
        "--budget-ms",
        "10",
    ]
    return [sys.executable, "-m", "kdsearch", "run", *flags]


def _uninterrupted(folder: Path, workers: int, epochs: int) -> Whole:
    out = folder / f"whole-{workers}"
    started = time.perf_counter()
    asked = command(out, workers, epochs)
    subprocess.run(asked, check=True, capture_output=True)
    return Whole(
        found=found_in(out / "it"),
        seconds=time.perf_counter() - started,
        cache=out / ".cache",
    )


def _until_done(
    out: Path,
    workers: int,
    epochs: int,
    plan: list[str],
    chance: random.Random,
    moments: Counter[str],
) -> list[str]:
    """Stop and resume a study until it ends by itself; return what went wrong."""
    wrong: list[str] = []
    before: dict[str, object] = {}
    stops = 0
    while True:
        started = time.perf_counter()
        how = plan[-1] if plan and stops < _STOPS else None
        code, said = _stopped(command(out, workers, epochs), how, chance)
        seconds = time.perf_counter() - started
        if code == 0 or how is None:
            wrong += [] if code == 0 else [f"status {code}: {said[-300:]}"]
            return wrong
        plan.pop()
        stops += 1
        # A signal ends a process by itself until `main` has begun to listen.
        if code != -SIGNALS[how] and (how == "kill" or code != 130 or "Traceback" in said):
            wrong.append(f"{how} after {seconds:.1f} s: status {code}: {said[-300:]}")
        when, after = _look(out / "it", TRIALS[workers])
        moments[f"{how}, {when}"] += 1
        print(f"{seconds:5.1f} s: {how}, {when}; {len(plan)} to come", file=sys.stderr, flush=True)
        wrong += [f"lost or changed after {how}: {d}" for d in before if after.get(d) != before[d]]
        before = after


def _stopped(asked: list[str], how: str | None, chance: random.Random) -> tuple[int, str]:
    """Run a study and stop it up to a second after one of its lines; return its status and errors.

    A line is a moment that does not depend on how busy the machine is.
    """
    with subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as driver:
        assert driver.stdout is not None
        line, later = chance.randint(0, _LINES), chance.uniform(0, 1)
        if how is not None:
            while line and driver.stdout.readline():
                line -= 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=later if line == 0 else 600)
            driver.send_signal(SIGNALS[how])
        said = driver.communicate(timeout=600)[1]
    return driver.returncode, said


def _look(path: Path, n_trials: int) -> tuple[str, dict[str, object]]:
    """Say at what a study was stopped, and open it: its completed trials, by what they are."""
    if not (path / "study.yaml").exists():
        return "before the search", {}
    if not (path / "study.db").exists():
        return "as the study was made", {}
    found = found_in(path)
    complete = _complete(found)
    ended = [d for d in found if d.startswith("draw")]
    when = "during the search" if len(ended) < n_trials else "after the search"
    return when, complete


def _complete(found: Found) -> dict[str, object]:
    return {key: told for key, told in found.items() if "'complete'" in str(told)}


def found_in(path: Path) -> Found:
    """Return every trial that ended, by its draw or control, and the front.

    Raises ValueError where one was told twice.
    """
    study = load_study(path)
    ended = [r for r in study.records() if r.state not in ("running", "interrupted")]
    numbers = {r.number: _name(r) for r in ended}
    found: Found = {}
    for record in ended:
        if _name(record) in found:
            raise ValueError(f"{_name(record)} was told twice")
        found[_name(record)] = _told(record)
    front = json.loads((path / "front.json").read_text()) if (path / "front.json").exists() else {}
    for entry in front.get("front", ()):
        found[f"test of {numbers[entry['trial']]}"] = entry["test"]
    found["front"] = sorted(numbers[record.number] for record in study.front())
    found["best"] = numbers.get(front["best"]) if front else None
    return found


def _name(record: TrialRecord) -> str:
    if record.kind:
        return f"{record.kind} {record.params['method.name']}"
    return f"draw {record.draw}"


def _told(record: TrialRecord) -> str:
    cost = record.cost
    return repr((record.state, dict(record.params), record.val, record.curve, cost))


def _differences(whole: Found, found: Found) -> list[str]:
    names = sorted(whole.keys() | found.keys())
    pairs = {name: (whole.get(name), found.get(name)) for name in names}
    return [f"{name}: {a} -> {b}" for name, (a, b) in pairs.items() if a != b]
