"""The results of a study that has nothing left to do, or the reason why it ships nothing.

Nothing is written, trained or measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kdsearch.deploy.package import Package, read_package
from kdsearch.errors import BudgetError, TrialsFailedError
from kdsearch.report.artifacts import summarise
from kdsearch.study.config import config_of, read_config, resume_command, study_path
from kdsearch.study.open import load_study
from kdsearch.study.options import RunOptions
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import Summary
from kdsearch.workflows.resolve import refit_in, with_space

BEST = "best"  # the exported folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """The results of a study, and the exported folder."""

    path: Path
    summary: Summary
    package: Package
    notes: tuple[str, ...]


def finished(
    given: Mapping[str, object], out: Path, name: str | None, options: RunOptions
) -> Finalized | None:
    """Return the results of the study of that name if its plan is done and its best/ is whole.

    None where there is no study, or where the configuration or the options differ from its own:
    then the run starts, or is refused. Images and teacher are not read.
    """
    path = None if name is None else study_path(out, name)
    if path is None or (old := read_config(path)) is None:
        return None
    study = load_study(path, options.storage)
    facts, package = study.facts, read_package(path / BEST)
    pairs = (
        (options.spend, facts.spend),
        (options.flat_after, facts.flat_after),
        (options.until, facts.until),
        (refit_in(options), facts.refit),
    )
    has_more = options.trials is not None and options.trials > (facts.trials or 0)
    has_more |= any(now is not None and now != before for now, before in pairs)
    has_more |= bool(old.changes(config_of(with_space(given), old)))
    if not facts.is_finished or has_more or package is None:
        return None
    return Finalized(
        path=path,
        summary=summarise(study),
        package=package,
        notes=facts.notes,
    )


def set_aside(study: OpenStudy, note: Callable[[str], None]) -> None:
    """Move what is in best/ to exported/, with what was exported or put there."""
    best, shipped, folder = study.path / BEST, study.facts.shipped, study.path / "exported"
    if not best.is_dir():
        return
    name = "earlier" if shipped is None else f"{shipped:06d}"
    free = (folder / (f"{name}-{n}" if n > 1 else name) for n in count(1))
    kept = next(path for path in free if not path.exists())
    folder.mkdir(exist_ok=True)
    best.rename(kept)
    note(f"The earlier best/ is now {kept}, with all its files")


def about_finished(found: Finalized) -> str:
    """Return that nothing was done, and how to search further."""
    counts = found.summary.counts
    ended = counts.complete + counts.pruned + counts.rejected + counts.failed
    return (
        "The study is finished: nothing was trained, exported or measured. "
        f"`{resume_command(found.path)} --trials {2 * ended}` searches further"
    )


def empty_front(study: OpenStudy) -> BudgetError | TrialsFailedError:
    """Return why the front is empty: too low a metric, over the budget, or all trials failed."""
    if complete := study.complete():
        best = max(complete, key=lambda record: record.val or 0.0)
        return BudgetError(
            f"no student reaches --min-accuracy {study.config.min_accuracy}: the best of "
            f"{len(complete)}, trial {best.number}, has {study.metric.text(best.val or 0.0)} on "
            "validation. Train longer (--epochs), raise the budget, or lower --min-accuracy, with "
            "another --name."
        )
    records = searched(study.records())
    tried = [*records, *(r for r in study.records() if r.rejected_early)]
    priced = [r for r in tried if r.state == "rejected" and r.cost is not None]
    if not priced:
        reasons = Counter(record.reason for record in records).most_common(3)
        lines = "\n".join(f"  {count} x {reason}" for reason, count in reasons)
        log = study.path / "kdsearch.log"
        return TrialsFailedError(f"no trial of {len(records)} completed:\n{lines}\nDetails: {log}")
    cheapest = min(priced, key=lambda record: sum(max(0, v) for v in record.violations.values()))
    return BudgetError(
        f"nothing fits the budget: all {len(priced)} students are over it. The cheapest, trial "
        f"{cheapest.number} ({cheapest.params['student.family']}): {cheapest.reason}. "
        "Raise the budget, or give a --space with smaller students."
    )
