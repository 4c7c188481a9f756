#!/usr/bin/env bash
# student.pt2 -> student.tflite in FOLDER, such as results/NAME/best, by LiteRT's own converter. It pins
# another torch than ours, so it lives in an environment of its own (about 5 GB, made once).
#   kdsearch export NAME --format torch-export
#   scripts/to_litert.sh results/NAME/best
#   kdsearch export NAME --format litert          # verified and measured
set -euo pipefail
folder=${1:?usage: scripts/to_litert.sh FOLDER [ENVIRONMENT]}
environment=${2:-results/.cache/litert-env}
here=$(cd "$(dirname "$0")/.." && pwd)

if [ ! -f "$environment/.ok" ]; then
  uv=$(command -v uv || echo "$here/.venv/bin/uv")
  "$uv" venv --quiet --allow-existing --python 3.11 "$environment"
  "$uv" pip install --quiet --python "$environment/bin/python" litert-torch==0.10.0
  touch "$environment/.ok"
fi

"$environment/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import litert_torch
import torch

folder = Path(sys.argv[1])
program = torch.export.load(folder / "student.pt2")
(_, shape) = next(
    (node.name, node.meta["val"].shape)
    for node in program.graph.nodes
    if node.name in program.graph_signature.user_inputs
)
image = torch.zeros(1, *map(int, shape[1:]))  # one image: its kernels do not resize attention
converted = litert_torch.convert(program.module(), (image,))
partial = folder / "student.tflite.part"
converted.export(str(partial))
partial.replace(folder / "student.tflite")
print(f"{folder / 'student.tflite'}: {(folder / 'student.tflite').stat().st_size:,} bytes")
PYTHON
