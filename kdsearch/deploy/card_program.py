"""The part of a model card that runs its file: predict.py, Python, and timm where that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROGRAM = """
## Use

`python predict.py IMAGE ...` {script}; it needs onnxruntime, numpy and
pillow alone. From Python:

```python
import json

import onnxruntime
from predict import {names}

session = onnxruntime.InferenceSession("student.onnx")
metadata = session.get_modelmeta().custom_metadata_map  # mean, std, resolution, ...
(answer,) = session.run(None, {{"input": network_input("image.png", metadata)}})
{snippet}```
"""


def program(task: Mapping[str, Any]) -> str:
    """Return how to run the file, to the names of classes where the task has them."""
    names = ", ".join(sorted({"network_input", *task["names"]}))
    snippet = "".join(f"{line}\n" for line in task["snippet"])
    text = _PROGRAM.format(script=task["script"], names=names, snippet=snippet)
    return text if "json." in snippet else text.replace("import json\n\n", "")


def timm_snippet(
    config: Mapping[str, Any], metadata: Mapping[str, str], task: Mapping[str, Any]
) -> str:
    """Return code that loads the weights with timm, for a whole network of timm; else ''.

    config, task: of config.yaml and metrics.json. metadata: of the ONNX file.
    """
    library, _, name = config["student"].partition(":")
    has_less = any(f"student.{knob}" in config.get("set", {}) for knob in ("depth", "cut"))
    if library != "timm" or task["head_outputs"] is None or has_less:
        return ""
    import timm

    network = timm.get_pretrained_cfg(name)
    side = f", img_size={metadata['resolution']}" if network and network.fixed_input_size else ""
    return f"""

The same network in timm:

```python
import timm

network = timm.create_model(
    "{name}", checkpoint_path="student.safetensors",
    num_classes={task["head_outputs"]}, in_chans={metadata["channels"]}{side},
).eval()
```
"""
