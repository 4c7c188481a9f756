"""Packages that kdsearch can do without, and the command that installs one.

The requirements are those of the extras in pyproject.toml; a test compares them. Messages name the
requirement itself: on the package index the name `kdsearch` belongs to another project.
"""

from __future__ import annotations

EXTRAS = {
    "clip": "open-clip-torch>=3.0",
    "smp": "segmentation-models-pytorch>=0.5",
    "mlflow": "mlflow-skinny>=3.5",
    "wandb": "wandb>=0.21",
    "postgres": "psycopg[binary]>=3.2",
    "ray": "ray[tune]>=2.50",
    "executorch": "executorch>=1.5",
    "litert": "ai-edge-litert>=2.3",
    "openvino": "openvino>=2026.1",
    "mnn": "MNN>=3.6",
    "ncnn": "ncnn>=1.0.20261020",
    "pnnx": "pnnx>=20261020",
}


def install(extra: str) -> str:
    """Return the command that installs an extra, in quotes that a shell needs."""
    return f'pip install "{EXTRAS[extra]}"'
