"""The functions of `import kdsearch`: typed arguments in, one workflow each. `search` is apart.

An argument of None is not given: a resumed study keeps its own value, a new one takes the default
of `StudyConfig` or `RunOptions`. Torch is imported when a function runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.space import Params
from kdsearch.spec import Budget, Candidate, StudentSpec
from kdsearch.study.budget_shares import budget_fields
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import config_of, free_name, study_path
from kdsearch.study.options import RunOptions, options_of
from kdsearch.workflows.load import Study, load_study

if TYPE_CHECKING:
    from kdsearch.workflows.check_report import CheckReport
    from kdsearch.workflows.distill import Distilled
    from kdsearch.workflows.export import Exported
    from kdsearch.workflows.measure import Measured

OUT = "results"


def run(
    *,
    data: str | Path | None = None,
    image_size: int | None = None,
    fit: str | None = None,
    max_megapixels: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    subset: int | None = None,
    flip: bool | None = None,
    metric: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    teacher_classes: str | None = None,
    teacher_epochs: int | None = None,
    pretrained_weights: str | None = None,
    student_weights: str | None = None,
    budget: Budget | None = None,
    budget_with_nms: bool | None = None,
    target: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    stopping: str | None = None,
    sampler: str | None = None,
    explore: str | None = None,
    min_accuracy: float | None = None,
    from_study: str | Path | None = None,
    space: str | Path | None = None,
    trials: int | None = None,
    spend: int | None = None,
    time_limit: float | None = None,
    flat_after: int | None = None,
    until: float | None = None,
    refit: int | None = None,
    seeds: int | None = None,
    refit_epochs: int | None = None,
    baselines: bool | None = None,
    device: str | None = None,
    workers: int | str | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    gpus_per_trial: float | None = None,
    trial_timeout: float | None = None,
    storage: str | None = None,
    log: Sequence[str] | None = None,
    callback: Callback | None = None,
    out: Path | str = OUT,
    name: str | None = None,
) -> Study:
    """Search a student that fits the budget, distil it, export it and write the report.

    The arguments are those of `kdsearch run`, whose help describes them; times are in seconds. An
    existing `name` under `out` resumes that study. Raises BudgetError when nothing fits the budget,
    and another KDSearchError for arguments that cannot run.

    Example: kdsearch.run(data="images/", teacher="timm:resnet50.a1_in1k", trials=50,
    budget=kdsearch.Budget(latency_ms=10)).best
    """
    given = _given(locals(), leave_out=("budget", "callback", "out", "name"))
    options = {key: given.pop(key) for key in options_of(RunOptions) if key in given}
    from kdsearch.workflows.run import run_study

    done = run_study(
        {**given, **budget_fields(budget)},
        callback or Callback(),
        out=Path(out),
        name=name,
        options=RunOptions(**options),  # type: ignore[arg-type]
    )
    return load_study(done.path, storage=storage)


def distill(
    candidate: Candidate | Params,
    *,
    data: str | Path | None = None,
    image_size: int | None = None,
    fit: str | None = None,
    max_megapixels: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    subset: int | None = None,
    flip: bool | None = None,
    metric: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    teacher_classes: str | None = None,
    teacher_epochs: int | None = None,
    pretrained_weights: str | None = None,
    student_weights: str | None = None,
    target: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    callback: Callback | None = None,
    out: Path | str = OUT,
    name: str | None = None,
) -> Distilled:
    """Distil one student, without a search, and export it to `out/name/best`.

    candidate: a Candidate, or parameters by their names in a search space, as a trial's `params`.
    The other arguments are those of `kdsearch distill`.

    Example: kdsearch.distill({"student.family": "resnet", "method.name": "kd", "train.epochs": 30},
    data="images/")
    """
    given = _given(locals(), leave_out=("candidate", "device", "callback", "out", "name"))
    if isinstance(candidate, Mapping):
        candidate = Candidate.from_params(candidate)
    from kdsearch.workflows.distill import distill as distill_one

    stem = f"{candidate.student.family}-{candidate.distill.method}"
    return distill_one(
        candidate,
        config_of(given),
        out=Path(out),
        name=free_name(Path(out), stem) if name is None else name,
        device=device,
        callback=callback or Callback(),
    )


def measure(
    model: str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    classes: int = 1000,
    knobs: Params | None = None,
    target: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> Measured:
    """Return the FLOPs, parameters and latency of one model.

    model: a student family, `timm:NAME`, `torchvision:NAME`, or a file `*.onnx`. input_shape:
    channels, height, width; None: that of a file, or (3, 224, 224). knobs: of a family, as
    {"width": 0.5}.

    Example: kdsearch.measure("resnet", input_shape=(3, 32, 32), classes=10).flops
    """
    config = config_of(_given({"target": target, "threads": threads, "batch": batch}))
    from kdsearch.workflows.measure import measure_model

    return measure_model(
        StudentSpec(family=model, knobs=dict(knobs or {})),
        config,
        input_shape=input_shape,
        note=Callback().on_message,
        classes=classes,
    )


def check(
    *,
    data: str | Path | None = None,
    image_size: int | None = None,
    fit: str | None = None,
    max_megapixels: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    subset: int | None = None,
    flip: bool | None = None,
    metric: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    teacher_classes: str | None = None,
    teacher_epochs: int | None = None,
    pretrained_weights: str | None = None,
    student_weights: str | None = None,
    seed: int | None = None,
    space: str | Path | None = None,
    params: Params | None = None,
    device: str = "auto",
    callback: Callback | None = None,
    out: Path | str = OUT,
) -> CheckReport:
    """Check, before a study, which methods can be used, and how accurate the teacher is.

    params: values that win over those of the space, such as {"train.batch_size": 32}. The other
    arguments are those of `kdsearch check`.

    Example: kdsearch.check(data="images/", teacher="timm:resnet50.a1_in1k").notes
    """
    given = _given(locals(), leave_out=("space", "params", "device", "callback", "out"))
    from kdsearch.workflows.check import check as check_config

    return check_config(
        config_of(given),
        callback or Callback(),
        out=Path(out),
        space=None if space is None else str(space),
        params=params,
        device=device,
    )


def export_study(
    study: Study | Path | str,
    formats: Sequence[str] = ("onnx-int8", "torch-export"),
    *,
    trial: int | None = None,
    max_drop: float = 0.01,
    fold_preprocess: bool = False,
    argmax: bool = False,
    nms: bool = False,
    target: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
    storage: str | None = None,
    callback: Callback | None = None,
) -> Exported:
    """Export the student of a study in other formats; load and measure each file.

    study: a Study, or the folder of a study or of a distillation. The other arguments are those of
    `kdsearch export`.

    Example: kdsearch.export_study("results/phones", ["onnx-int8"]).best
    """
    given = _given({"target": target, "threads": threads, "batch": batch})
    if isinstance(study, Study):
        storage = study.storage if storage is None else storage
        study = study.path
    from kdsearch.workflows.export import export_study as export

    path = study_path(Path(study).parent, Path(study).name)
    return export(
        path,
        formats,
        callback or Callback(),
        out=path.parent,
        trial=trial,
        storage=storage,
        max_drop=max_drop,
        is_folded=fold_preprocess,
        is_decoded=argmax,
        is_suppressed=nms,
        given=given,
    )


def _given(arguments: Mapping[str, object], leave_out: Sequence[str] = ()) -> dict[str, object]:
    """Return the arguments that the caller gave, paths as text and sequences as tuples."""
    found: dict[str, object] = {}
    for name, value in arguments.items():
        if value is not None and name not in leave_out:
            found[name] = str(value) if isinstance(value, Path) else value
    if "log" in found:
        found["log"] = tuple(found["log"])  # type: ignore[arg-type]
    return found
