"""The record of a study that `kdsearch.run`, `search` and `load_study` return. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdsearch.errors import StudyError
from kdsearch.spec import Budget, TrialRecord
from kdsearch.study.config import OBJECTIVE, StudyConfig
from kdsearch.study.open import load_study as open_to_read
from kdsearch.study.study import OpenStudy


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it was when it was read; load it again to see later trials.

    trials: all, oldest first. front: the non-dominated trials, cheapest first. best: the trial
    whose student was exported, else the most accurate one of the front; None without a front.

    Example: kdsearch.load_study("results/phones").best.params
    """

    path: Path
    config: StudyConfig
    trials: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    best: TrialRecord | None
    storage: str | None = field(default=None, repr=False)  # may hold a password

    @classmethod
    def read(cls, study: OpenStudy, storage: str | None = None) -> Study:
        """Return the record of an open study."""
        front = study.front()
        exported = study.facts.best
        best = next((r for r in front if r.number == exported), front[-1] if front else None)
        return cls(
            path=study.path,
            config=study.config,
            trials=tuple(study.records()),
            front=tuple(front),
            best=best,
            storage=storage,
        )

    @property
    def name(self) -> str:
        """Return the name of the study's folder."""
        return self.path.name

    @property
    def budget(self) -> Budget:
        """Return the limits of the study, in the units of Cost."""
        return self.config.budget

    def report(self) -> Path:
        """Write report.html, front.json and the other derived files again; return report.html.

        Raises StudyError for a study of `kdsearch.search`, which has no teacher to report on.
        """
        if self.config.data == OBJECTIVE:
            raise StudyError("a study of kdsearch.search has no report; read its trials and front")
        from kdsearch.report.artifacts import write_derived  # and with it plotly

        write_derived(open_to_read(self.path, self.storage))
        return self.path / "report.html"


def load_study(path: Path | str, *, storage: str | None = None) -> Study:
    """Return the study in a folder; another process may be running it.

    storage: the database's URL with its password, for a study that keeps its trials there and
    needs one. Raises StudyError where there is no study.

    Example: kdsearch.load_study("results/phones").front
    """
    return Study.read(open_to_read(Path(path), storage), storage)
