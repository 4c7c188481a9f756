"""The model card of a shipped student, in the Hugging Face form: YAML front matter, Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from kdsearch.model import Model
from kdsearch.summary import Target

_HEAD = {
    "library_name": "onnx",
    "pipeline_tag": "image-classification",
    "tags": ["knowledge-distillation", "kdsearch"],
}
_CARD = """---
{head}
---
# {family} student for {data}

Distilled and chosen by kdsearch. `config.yaml` holds the recipe:
`kdsearch distill --config config.yaml` trains it again.

| accuracy | |
|---|---|
{rows}

- {flops:,} multiply-adds (each counted once), {params:,} parameters.
- `student.onnx`: {ms:.4g} ms, spread {spread:.2g} ms, 95 % of processes {low:.4g} to
  {high:.4g}; {target}.
- Input `input`: float32 [batch, {channels}, {side}, {side}]: pixels / 255, minus mean, over std.
  mean {mean}, std {std}.
- Output `logits`: [batch, {n_classes}], in the order of: {classes}.

`python predict.py IMAGE ...` prints what it sees; it needs onnxruntime, numpy and pillow alone.
From Python:

```python
import onnxruntime
from predict import network_input

session = onnxruntime.InferenceSession("student.onnx")
said = session.get_modelmeta().custom_metadata_map  # classes, mean, std, resolution
(logits,) = session.run(["logits"], {{"input": network_input("image.png", said)}})
```
{timm}"""


def model_card(
    student: Model, data: str, classes: Sequence[str], metrics: Mapping[str, object]
) -> str:
    """Return the card; `metrics` is what `metrics.json` holds."""
    results, onnx, target = metrics["accuracy"], metrics["onnx"], metrics["target"]
    assert isinstance(results, Mapping)
    assert isinstance(onnx, Mapping)
    assert isinstance(target, Mapping)
    accuracies = {**results, "validation, by student.onnx": onnx["val"]}
    shown = student.preprocess
    return _CARD.format(
        head=yaml.safe_dump(_HEAD, sort_keys=False).strip(),
        family=student.name,
        data=data,
        rows="\n".join(f"| {name} | {100 * value:.2f} % |" for name, value in accuracies.items()),
        flops=metrics["flops"],
        params=metrics["params"],
        ms=onnx["latency_ms"],
        spread=onnx["latency_spread_ms"],
        low=onnx["latency_low_ms"],
        high=onnx["latency_high_ms"],
        target=Target(**target),
        channels=shown.channels,
        side=shown.resolution,
        mean=[round(value, 4) for value in shown.mean],
        std=[round(value, 4) for value in shown.std],
        n_classes=len(classes),
        timm=timm_snippet(student, len(classes)),
        classes=", ".join(classes),
    )


def timm_snippet(student: Model, n_classes: int) -> str:
    """Return how timm alone loads the weights, where the network is one of its own."""
    library, _, name = student.name.partition(":")
    if library != "timm":
        return ""
    shown = student.preprocess
    import timm

    config = timm.get_pretrained_cfg(name)
    side = f", img_size={shown.resolution}" if config and config.fixed_input_size else ""
    return f"""
The same network in timm:

```python
import timm

network = timm.create_model(
    "{name}", checkpoint_path="student.safetensors",
    num_classes={n_classes}, in_chans={shown.channels}{side},
).eval()
```
"""
