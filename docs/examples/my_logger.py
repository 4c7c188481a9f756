"""A logger of one's own: one line of JSON a trial."""

import json

from kdsearch.spec import TrialRecord
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy


class Lines(Logger):
    """Appends to trials.jsonl in the study's folder."""

    def __init__(self, study: OpenStudy) -> None:
        self._file = (study.path / "trials.jsonl").open("a", encoding="utf-8")

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write how a trial ended."""
        said = {"trial": record.number, "state": record.state, "val": record.val}
        print(json.dumps(said), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
