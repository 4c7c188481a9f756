"""AutoML for knowledge distillation in computer vision, under a budget that holds."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from kdsearch.errors import (
    BudgetError,
    CostError,
    DataError,
    ExportError,
    KDSearchError,
    SpaceError,
    SpecError,
    StopStudy,
    StudyError,
    StudyInterruptedError,
    TrainingError,
    TrialsFailedError,
)
from kdsearch.version import VERSION

if TYPE_CHECKING:
    from kdsearch import methods, tasks
    from kdsearch.models import students
    from kdsearch.space import SearchSpace
    from kdsearch.spec import Budget, Candidate, Cost, TrialRecord
    from kdsearch.study.callbacks import Callback
    from kdsearch.study.config import StudyConfig
    from kdsearch.workflows.api import check, distill, export_study, measure, run
    from kdsearch.workflows.load import Study, load_study
    from kdsearch.workflows.search import search

__all__ = [
    "Budget",
    "BudgetError",
    "Callback",
    "Candidate",
    "Cost",
    "CostError",
    "DataError",
    "ExportError",
    "KDSearchError",
    "SearchSpace",
    "SpaceError",
    "SpecError",
    "StopStudy",
    "Study",
    "StudyConfig",
    "StudyError",
    "StudyInterruptedError",
    "TrainingError",
    "TrialRecord",
    "TrialsFailedError",
    "__version__",
    "check",
    "distill",
    "export_study",
    "load_study",
    "measure",
    "methods",
    "run",
    "search",
    "students",
    "tasks",
]
__version__ = VERSION

# Imported at first use: Optuna takes half a second, torch two.
_MODULES = {
    "kdsearch.space": ("SearchSpace",),
    "kdsearch.spec": ("Budget", "Candidate", "Cost", "TrialRecord"),
    "kdsearch.study.callbacks": ("Callback",),
    "kdsearch.study.config": ("StudyConfig",),
    "kdsearch.workflows.api": ("check", "distill", "export_study", "measure", "run"),
    "kdsearch.workflows.load": ("Study", "load_study"),
    "kdsearch.workflows.search": ("search",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_REGISTRIES = {
    "methods": "kdsearch.methods",
    "students": "kdsearch.models.students",
    "tasks": "kdsearch.tasks",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name in _REGISTRIES:
        return import_module(_REGISTRIES[name])
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
