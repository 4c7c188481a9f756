"""The model card of an exported student, in the Hugging Face form: YAML front matter, Markdown.

It states the content of metrics.json and config.yaml only, and is rewritten whenever they change.
The folder can be uploaded to a hub as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdsearch import atomic
from kdsearch.data.sizes import as_size
from kdsearch.deploy.card_program import program, timm_snippet
from kdsearch.deploy.suppression import Suppression
from kdsearch.deploy.timing import BUSY
from kdsearch.documents import MAX_BYTES, parse_json, parse_yaml, read_text
from kdsearch.errors import StudyError, printable
from kdsearch.study.chance import percent_of
from kdsearch.study.formatting import SPACE, counted, megabytes, milliseconds
from kdsearch.study.summary import TargetInfo
from kdsearch.tasks import Metric

METRICS, CARD, CONFIG = "metrics.json", "README.md", "config.yaml"
PICTURE = "validation.png"  # validation images with the answers to them, of some tasks
_SPLITS = ("validation", "test")
_FITTED = {
    "crop": "cut to its centre of",
    "pad": "scaled between black margins of",
    "squash": "stretched to",
}
_CLASSES = 32  # rows of a table
_OTHERS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5": "top-5",
    "pixel_accuracy": "pixel accuracy",
    "map": "mAP50-95",
    "recall_small": "recall of small objects",
    "recall_medium": "of medium ones",
    "recall_large": "of large ones",
}


def update(folder: Path, **facts: object) -> None:
    """Add facts to metrics.json in an exported folder, and rewrite its card."""
    file = folder / METRICS
    metrics = (read_metrics(folder) if file.exists() else {}) | facts
    atomic.write(file, json.dumps(metrics, indent=1) + "\n")
    config = parse_yaml(read_text(folder / CONFIG))
    atomic.write(folder / CARD, model_card(metrics, config))


def name_rights(folder: Path, *, license: str | None = None, author: str | None = None) -> None:
    """State the licence and the author of an exported folder; None leaves what it states."""
    rights = {"license": license, "author": author}
    given = {name: text for name, text in rights.items() if text is not None}
    if given:
        update(folder, **given)


def rights_of(folder: Path) -> dict[str, str]:
    """Return the licence and the author that an exported folder states; empty without one."""
    metrics = read_metrics(folder) if (folder / METRICS).is_file() else {}
    return {name: metrics[name] for name in ("license", "author") if name in metrics}


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json. Raises StudyError where it is damaged."""
    file = folder / METRICS
    try:
        metrics = parse_json(read_text(file, 64 * MAX_BYTES))
        if not isinstance(metrics, dict):
            raise ValueError(f"it holds a {type(metrics).__name__}")
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{file} is damaged ({error}); run the study, or `kdsearch distill`, again"
        ) from error
    return metrics


def model_card(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the card for the content of metrics.json and config.yaml."""
    parts = (
        f"---\n{yaml.safe_dump(_head(metrics, config), sort_keys=False)}---",
        f"# {plain(config['student'])} for {plain(metrics['data']['name'])}",
        *([f"**{plain(metrics['warning'])}**"] if metrics.get("warning") else []),
        _summary(metrics, config),
        _sees(metrics),
        program(metrics["task"]).strip()
        + timm_snippet(config, metrics["metadata"], metrics["task"]),
        "\n".join(_results(metrics)),
        "\n".join(_by_class(metrics)),
        _pictures(metrics),
        "\n".join(_files(metrics)),
        "\n".join(_data(metrics)),
        "\n".join(_training(metrics, config)),
        "\n".join(_limits(metrics)),
    )
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _head(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    """Return the front matter; a hub shows the results of `model-index` with the model."""
    name, metric, tag = metrics["data"]["name"], metrics["metric"], metrics["task"]["pipeline_tag"]
    found = metrics[metric["key"]]
    results = [
        {
            "task": {"type": tag},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": metric["key"], "value": found[split]}],
        }
        for split in _SPLITS
        if split in found
    ]
    return {
        "library_name": "onnx",
        "pipeline_tag": tag,
        "license": metrics.get("license") or "unknown",
        **({"authors": [metrics["author"]]} if metrics.get("author") else {}),
        "tags": ["knowledge-distillation", "kdsearch", "onnx"],
        "metrics": [metric["key"]],
        "model-index": [{"name": f"{config['student']} for {name}", "results": results}],
    }


def _summary(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    onnx, method = metrics["onnx"], config["method"]
    taught = f"Distilled from {plain(metrics['teacher']['name'])} by {plain(method)}"
    if not metrics["is_taught"]:
        taught = f"Trained without a teacher ({plain(method)})"
    elif (epochs := metrics.get("taught_epochs")) is not None:
        taught += f" for {counted(epochs, 'epoch')}, until it reached its teacher"
        taught = taught.replace(SPACE, " ")
    return (
        f"{taught}, chosen by kdsearch: "
        f"{metrics['flops'] / 1e6:.4g} million multiply-adds (each counted once), "
        f"{metrics['params']:,} parameters, {megabytes(onnx['bytes']).replace(SPACE, ' ')}, "
        f"{_latency(onnx)} on {TargetInfo(**metrics['target'])}."
    )


def _latency(measured: Mapping[str, float]) -> str:
    parts = (measured[f"latency_{name}"] for name in ("ms", "low_ms", "high_ms"))
    return milliseconds(*parts).replace(SPACE, " ")


def _sees(metrics: Mapping[str, Any]) -> str:
    """Return the classes that the student knows, '' for a task without classes."""
    classes = json.loads(metrics["metadata"].get("classes", "[]"))
    if not classes:
        return ""
    more = f" and {len(classes) - _CLASSES} more" if len(classes) > _CLASSES else ""
    return f"It knows {len(classes)} classes: {', '.join(map(plain, classes[:_CLASSES]))}{more}."


def _results(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metric of student and teacher; metrics.json has the findings on the gain."""
    metric = Metric(**metrics["metric"])
    found, teacher, images = metrics[metric.key], metrics["teacher"], metrics["data"]["images"]
    seeds = metrics.get("seeds", {})
    yield f"## Results\n\n| {metric.label} | this student | its teacher | images | other seeds |"
    yield "|---|---|---|---|---|"
    for split in _SPLITS:
        if split in found:
            theirs, own = teacher.get(split), _with_noise(metric, found[split], images[split])
            teachers = "" if theirs is None else metric.text(theirs)
            spread = _spread(metric, seeds.get(split))
            yield f"| {split} | {own} | {teachers} | {images[split]} | {spread} |"
    yield f"| validation, by student.onnx | {metric.text(metrics['onnx']['val'])} | | | |"
    yield "\n\u00b1: one standard error over images."
    if seeds:
        yield "\nOther seeds: mean and standard deviation of the same recipe under several seeds,"
        yield "and the 95 % prediction interval for one more."
    yield (
        "\nThe validation images chose this student; the test images were read once, after that."
        if "test" in found
        else "\nThe validation images chose this student, so its value there is optimistic."
    )
    busy = metrics["onnx"].get("contention")
    busy_note = " The machine was busy." if busy is not None and busy > BUSY else ""
    how = (
        "Milliseconds are of one round by the clock; `kdsearch measure student.onnx` takes more."
        if metrics["onnx"].get("one_round")
        else "Milliseconds are those of undisturbed runs; in brackets the 95 % range over new "
        "processes, slow phases of the machine included."
    )
    where = TargetInfo(**metrics["target"])
    if nms := metrics["onnx"].get("nms"):
        how += f" The network alone is timed: {Suppression(**nms)}."
    yield f"\n{how} Machine: {metrics['machine']}; {where}.{busy_note}"


def _with_noise(metric: Metric, value: float, images: int) -> str:
    """Return a metric with its standard error on so many images."""
    if not images:
        return metric.text(value)
    error = metric.number(metric.standard_error(value, images))
    return f"{metric.number(value)} \u00b1 {error} {metric.unit}".strip()


def _by_class(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the accuracy of each class, or of the worst; nothing for a task without classes."""
    found = metrics.get("details", {})
    classes = json.loads(metrics["metadata"].get("classes", "[]"))
    split = next((name for name in ("test", "validation") if name in found), None)
    if split is not None and found[split].get("scores"):
        yield from _by_score(found[split], classes, split)
        return
    if split is None or not found[split]["images"]:
        return
    counts = found[split]["images"], found[split]["right"], found[split]["answered"]
    rows = [row for row in zip(classes, *counts, strict=True) if row[1]]
    shown = sorted(rows, key=lambda row: row[2] / row[1])[:_CLASSES]
    yield f"## By class, {split}\n\n{_others(found[split])}\n"
    yield "| class | images | right, % | answers |\n|---|---|---|---|"
    for name, images, right, answered in shown:
        yield f"| {plain(name)} | {images} | {100 * right / images:.1f} | {answered} |"
    if len(rows) > len(shown):
        yield f"\nThe {len(shown)} worst of {len(rows)} classes."


def _others(details: Mapping[str, Any]) -> str:
    """Return the other metrics of an evaluation, and where its confusion is."""
    metrics = details.get("metrics", {}).items()
    values = ", ".join(f"{_OTHERS[name]} {value:.4f}" for name, value in metrics if name in _OTHERS)
    confusion = "`metrics.json` has the confusion" if details.get("confusion") else ""
    return " ".join(f"{sentence}." for sentence in (values, confusion) if sentence)


def _by_score(details: Mapping[str, Any], classes: Sequence[str], split: str) -> Iterator[str]:
    """Yield the score of each class with its noise, or of the worst."""
    scores = details["scores"]
    parts = zip(classes, scores["values"], scores["errors"], scores["shares"], strict=True)
    rows = sorted((row for row in parts if row[1] is not None), key=lambda row: float(row[1]))
    yield f"## By class, {split}\n\n{_others(details)}\n"
    yield f"| class | {scores['label']}, % | of labels, % |\n|---|---|---|"
    for name, value, error, share in rows[:_CLASSES]:
        yield f"| {plain(name)} | {percent_of(value, error)} | {100 * share:.2f} |"
    if len(rows) > _CLASSES:
        yield f"\nThe {_CLASSES} worst of {len(rows)} classes."
    yield "\n\u00b1: one standard error over images."


def _pictures(metrics: Mapping[str, Any]) -> str:
    """Return the figures of a detector and the picture of validation images, '' without any."""
    figures = metrics.get("figures", {}).items()
    parts = [f"![{title}]({name})" for name, title in figures]
    if name := metrics.get("picture"):
        parts.append(f"## Validation images\n\n![validation images and answers]({name})")
    return "\n\n".join(parts)


def _spread(metric: Metric, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    mean, sd, low, high = (metric.number(found[name]) for name in ("mean", "sd", "low", "high"))
    return f"{mean} ± {sd} ({low} to {high}), {len(found['values'])} seeds"


def _files(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files with their measurements, or the reason not to use one."""
    onnx, metric = metrics["onnx"], Metric(**metrics["metric"])
    yield "## Files\n\n| file | bytes | validation | latency | |\n|---|---|---|---|---|"
    yield (
        f"| `student.onnx` | {onnx['bytes']:,} | {metric.text(onnx['val'])} | {_latency(onnx)} | "
        f"opset {onnx['opset']} |"
    )
    for file in metrics.get("files", {}).values():
        if file["name"] != "student.onnx":
            took = {f"latency_{name}": value for name, value in file["latency"].items()}
            latency = f"{_latency(took)}, {TargetInfo(**file['target'])}"
            why, val = "; ".join(file["misses"]), metric.text(file["val"])
            yield (
                f"| `{file['name']}` | {file['bytes']:,} | {val} | {latency} | "
                f"{f'do not use: {why}' if why else file['runtime']} |"
            )
    for file in metrics.get("files", {}).values():
        if file.get("output"):
            yield f"\n`{file['name']}` answers with {plain(file['output']).replace('&#96;', '`')}."
    yield (
        "\n`student.safetensors` holds the weights, `config.yaml` the recipe, `metrics.json` all "
        "measurements. `python predict.py IMAGE --model FILE` runs any of the files."
    )


def _data(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the data, and the form of input and output."""
    metadata, images = metrics["metadata"], metrics["data"]["images"]
    mean, std = (
        [round(value, 4) for value in json.loads(metadata[name])] for name in ("mean", "std")
    )
    (height, width), channels = as_size(json.loads(metadata["resolution"])), metadata["channels"]
    stored = " x ".join(map(str, as_size(json.loads(metadata["image_size"]))))
    task = metrics["task"]
    yield "## Data\n"
    yield f"{plain(metrics['data']['name'])}: " + ", ".join(
        f"{n} {name}" for name, n in images.items()
    )
    yield "images.\n"
    yield f"- Input `input`: float32 [batch, {channels}, {height}, {width}]: pixels / 255, minus"
    yield f"  mean, over std. mean {mean}, std {std}."
    yield f"- An image is {_FITTED[metadata.get('fit', 'crop')]} {stored} pixels, as"
    yield "  predict.py does."
    checked = metrics["onnx"].get("predict_py")
    if checked is not None:
        same = round(checked["same"] * checked["n"])
        yield f"- predict.py answers {same:,} of {checked['n']:,} validation files as in training."
    yield f"- Output `{task['output_name']}`: {plain(task['output'])}."


def _training(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recipe, and the command that trains it again."""
    yield "## Training\n"
    yield f"Teacher {plain(metrics['teacher']['name'])}." if metrics["is_taught"] else "No teacher."
    yield "`kdsearch distill --config config.yaml` trains it again, from the folder that its paths"
    yield "are relative to.\n\n```yaml"
    yield yaml.safe_dump(dict(config), sort_keys=False).strip()
    yield "```"


def _limits(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the limits of the numbers, and what to decide before publishing."""
    yield "## Limits and licence\n"
    yield from (f"- {limit}" for limit in metrics["task"]["limits"])
    if metrics["is_taught"]:
        yield "- The student also learned the errors of its teacher."
    yield "- A latency holds for the stated machine and target only; to measure on yours:"
    yield "  `kdsearch measure student.onnx`."
    if metrics.get("license"):
        by = f", by {plain(metrics['author'])}" if metrics.get("author") else ""
        yield f"- Licence: {plain(metrics['license'])}{by}."
        return
    yield "- The licence of the weights follows from those of the data and of the teacher, which"
    yield "  kdsearch does not know: set it by `--license` of `run` or `export` before you publish."


def plain(text: str) -> str:
    """Return a text from outside on one line, without HTML, table cells or control characters."""
    shown = printable(text)
    for mark in ("&", "<", ">", "|", "`"):
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return shown
