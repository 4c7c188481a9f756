"""What a study found of the training that ships, in its metrics.json and card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kdsearch.data.base import ImageData
from kdsearch.deploy import model_card
from kdsearch.report.artifacts import summarise
from kdsearch.spec import TrialRecord
from kdsearch.study.study import OpenStudy
from kdsearch.workflows.ends import ends
from kdsearch.workflows.picture import write_figures

_SPLITS = ("validation", "test")


def state_results(
    study: OpenStudy,
    ships: TrialRecord,
    folder: Path,
    findings: Sequence[str],
    data: ImageData,
) -> None:
    """State what was found of the training that ships in its metrics.json and card."""
    facts = study.facts
    found = {"validation": ships.val or 0.0, "test": facts.test[ships.number]}
    details = {split: facts.details[f"{ships.number} {split}"] for split in _SPLITS}
    write_figures(folder, details, facts.classes)
    model_card.update(
        folder,
        **{study.metric.key: found},
        teacher=teacher_of(study),
        notes=findings,
        seeds=seeds_of(study),
        ends=ends(study.config.search_space(), ships.params, data),
        details={split: asdict(found) for split, found in details.items()},
    )


def seeds_of(study: OpenStudy) -> dict[str, object]:
    """Return the spread of the exported recipe over seeds, by split; empty without refits."""
    recipe = summarise(study).best_recipe()
    spreads = {} if recipe is None else {"validation": recipe.val, "test": recipe.test}
    return {split: asdict(spread) for split, spread in spreads.items() if spread is not None}


def teacher_of(study: OpenStudy) -> dict[str, object]:
    """Return the teacher's name and its metric by split."""
    teacher = study.facts.teacher_entry()
    return {"name": study.config.teacher, "validation": teacher.val, "test": teacher.test}
