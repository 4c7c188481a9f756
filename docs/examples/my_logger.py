"""Your own logger: one line of JSON a trial."""

import json

from kdsearch.spec import TrialRecord
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy


class Lines(Logger):
    """Append to trials.jsonl in the folder of the study."""

    def __init__(self, study: OpenStudy) -> None:
        self._file = (study.path / "trials.jsonl").open("a", encoding="utf-8")

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write the number, state and score of a trial."""
        line = {"trial": record.number, "state": record.state, "val": record.val}
        print(json.dumps(line), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
