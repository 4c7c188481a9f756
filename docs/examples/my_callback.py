"""A callback: end the search once a student is good enough."""

import kdsearch
from kdsearch.spec import TrialRecord
from kdsearch.study.study import OpenStudy

ENOUGH = 0.95


def good_enough(study: OpenStudy, record: TrialRecord) -> None:
    """Stop the study after the first trial of at least 95 % on validation."""
    if record.state == "complete" and record.val is not None and record.val >= ENOUGH:
        raise kdsearch.StopStudy(f"trial {record.number} has {100 * record.val:.1f} %")
