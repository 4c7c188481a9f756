"""The model card of a shipped student, in the Hugging Face form: YAML front matter, Markdown.

It says what metrics.json and config.yaml beside it hold, and nothing else: whoever adds to them
writes it anew. The folder can be uploaded to a hub as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdsearch import atomic
from kdsearch.deploy.timing import BUSY
from kdsearch.study.summary import TargetInfo

METRICS, CARD, CONFIG = "metrics.json", "README.md", "config.yaml"
_SPLITS = ("validation", "test")
_PROGRAM = """
## Use

`python predict.py IMAGE ...` prints what `student.onnx` sees; it needs onnxruntime, numpy and
pillow alone. From Python:

```python
import onnxruntime
from predict import network_input

session = onnxruntime.InferenceSession("student.onnx")
said = session.get_modelmeta().custom_metadata_map  # classes, mean, std, resolution
(logits,) = session.run(["logits"], {"input": network_input("image.png", said)})
```
"""


def update(folder: Path, **facts: object) -> None:
    """Add facts to a shipped folder's metrics.json, and write its card anew."""
    file = folder / METRICS
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    metrics |= facts
    atomic.write(file, json.dumps(metrics, indent=1) + "\n")
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    atomic.write(folder / CARD, model_card(metrics, config))


def model_card(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the card of what metrics.json and config.yaml hold."""
    parts = (
        f"---\n{yaml.safe_dump(_head(metrics, config), sort_keys=False)}---",
        f"# {config['student']} for {metrics['data']['name']}",
        _summary(metrics, config),
        _PROGRAM.strip() + timm_snippet(config["student"], metrics["metadata"]),
        "\n".join(_results(metrics)),
        "\n".join(_files(metrics)),
        "\n".join(_data(metrics)),
        "\n".join(_training(metrics, config)),
        "\n".join(_limits(metrics)),
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _head(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    """Return the front matter; a hub shows the results below `model-index` beside the model."""
    name = metrics["data"]["name"]
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": "accuracy", "value": metrics["accuracy"][split]}],
        }
        for split in _SPLITS
        if split in metrics["accuracy"]
    ]
    return {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "license": "unknown",
        "tags": ["knowledge-distillation", "kdsearch", "onnx"],
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{config['student']} for {name}", "results": results}],
    }


def _summary(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    onnx, method = metrics["onnx"], config["method"]
    taught = f"Distilled from {metrics['teacher']['name']} by {method}"
    if not _is_taught(metrics):
        taught = f"Trained without a teacher ({method})"
    return (
        f"{taught}, chosen by kdsearch: "
        f"{metrics['flops'] / 1e6:.4g} million multiply-adds (each counted once), "
        f"{metrics['params']:,} parameters, {_latency(onnx)} on {TargetInfo(**metrics['target'])}."
    )


def _is_taught(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics.get("is_taught", True))  # what shipped before it was told had one


def _latency(measured: Mapping[str, float]) -> str:
    low, high = measured["latency_low_ms"], measured["latency_high_ms"]
    return f"{measured['latency_ms']:.3g} ms ({low:.3g} to {high:.3g})"


def _results(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield accuracies beside the teacher's, and what was found of the gain."""
    teacher, images = metrics["teacher"], metrics["data"]["images"]
    seeds = metrics.get("seeds", {})
    yield "## Results\n\n| accuracy | this student | its teacher | images | other seeds |"
    yield "|---|---|---|---|---|"
    for split in _SPLITS:
        if split in metrics["accuracy"]:
            told, own = teacher.get(split), metrics["accuracy"][split]
            beside = "" if told is None else f"{100 * told:.2f} %"
            spread = _spread(seeds.get(split))
            yield f"| {split} | {100 * own:.2f} % | {beside} | {images[split]} | {spread} |"
    yield f"| validation, by student.onnx | {100 * metrics['onnx']['val']:.2f} % | | | |"
    if seeds:
        yield "\nOther seeds: mean and standard deviation of the same recipe under several of them,"
        yield "and where one more would end in 95 % of the cases."
    yield (
        "\nThe validation images chose this student; the test images were read once, after that."
        if "test" in metrics["accuracy"]
        else "\nThe validation images chose this student, so its figure there is flattered."
    )
    if metrics.get("notes"):
        yield ""
        yield from (f"- {note}" for note in metrics["notes"])
    busy = metrics["onnx"].get("contention")
    beside = " It was busy meanwhile." if busy is not None and busy > BUSY else ""
    yield (
        "\nMilliseconds are of undisturbed runs, and in brackets where 95 % of fresh processes "
        f"lie, slower moments of the machine included, on {metrics['machine']}: "
        f"{TargetInfo(**metrics['target'])}.{beside}"
    )


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    mean, sd, low, high = (100 * found[name] for name in ("mean", "sd", "low", "high"))
    return f"{mean:.2f} ± {sd:.2f} ({low:.2f} to {high:.2f}), {len(found['values'])} seeds"


def _files(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files, each as it was measured, with why one is not to be shipped."""
    onnx = metrics["onnx"]
    yield "## Files\n\n| file | bytes | validation | latency | |\n|---|---|---|---|---|"
    yield (
        f"| `student.onnx` | {onnx['bytes']:,} | {100 * onnx['val']:.2f} % | {_latency(onnx)} | "
        f"opset {onnx['opset']} |"
    )
    for file in metrics.get("files", {}).values():
        if file["name"] != "student.onnx":
            took = {f"latency_{name}": value for name, value in file["latency"].items()}
            latency = f"{_latency(took)}, {TargetInfo(**file['target'])}"
            why = "; ".join(file["misses"])
            yield (
                f"| `{file['name']}` | {file['bytes']:,} | {100 * file['val']:.2f} % | {latency} | "
                f"{f'not to be shipped: {why}' if why else file['runtime']} |"
            )
    yield (
        "\n`student.safetensors` holds the weights, `config.yaml` the recipe, `metrics.json` all "
        "that was measured. `python predict.py IMAGE --model FILE` asks any of the files."
    )


def _data(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the data, and how images go in and answers come out."""
    said, images = metrics["metadata"], metrics["data"]["images"]
    mean, std = ([round(value, 4) for value in json.loads(said[name])] for name in ("mean", "std"))
    side, channels, classes = said["resolution"], said["channels"], json.loads(said["classes"])
    yield "## Data\n"
    yield f"{metrics['data']['name']}: " + ", ".join(f"{n} {name}" for name, n in images.items())
    yield "images.\n"
    yield f"- Input `input`: float32 [batch, {channels}, {side}, {side}]: pixels / 255, minus mean,"
    yield f"  over std. mean {mean}, std {std}."
    order = ", ".join(classes)
    yield f"- Output `logits`: float32 [batch, {len(classes)}], in the order of: {order}."


def _training(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recipe, and how to train it again."""
    yield "## Training\n"
    yield f"Teacher {metrics['teacher']['name']}." if _is_taught(metrics) else "No teacher."
    yield "`kdsearch distill --config config.yaml` trains it again, from the folder that its paths"
    yield "are relative to.\n\n```yaml"
    yield yaml.safe_dump(dict(config), sort_keys=False).strip()
    yield "```"


def _limits(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures do not say, and what whoever publishes this must still decide."""
    yield "## Limits and licence\n"
    yield f"- It knows these {len(json.loads(metrics['metadata']['classes']))} classes alone, and"
    yield "  gives every image one of them. It was judged on images like those it was trained on."
    if _is_taught(metrics):
        yield "- What its teacher gets wrong it was taught."
    yield "- Shares of classes are not calibrated."
    yield "- A latency holds for the machine and the target named beside it; measure on your own:"
    yield "  `kdsearch measure student.onnx`."
    yield "- The licence of the weights follows from those of the data and of the teacher, which"
    yield "  kdsearch does not know: set `license` above before you publish."


def timm_snippet(family: str, said: Mapping[str, str]) -> str:
    """Return how timm alone loads the weights, where the network is one of its own.

    said: the file's metadata.
    """
    library, _, name = family.partition(":")
    if library != "timm":
        return ""
    import timm

    config = timm.get_pretrained_cfg(name)
    side = f", img_size={said['resolution']}" if config and config.fixed_input_size else ""
    return f"""

The same network in timm:

```python
import timm

network = timm.create_model(
    "{name}", checkpoint_path="student.safetensors",
    num_classes={len(json.loads(said["classes"]))}, in_chans={said["channels"]}{side},
).eval()
```
"""
