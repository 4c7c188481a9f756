"""Loss scales: a term that is far larger or smaller than the task's loss.

One of the two then hardly takes part in the training: a frequent cause of a student that learns
nothing, or nothing by distillation. A term is small at first where the teacher is unsure, so it
is named only where it is far smaller.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST, LEAST = 10.0, 0.01  # of a term over the task


def unequal_terms(scales: Mapping[str, float]) -> dict[str, str]:
    """Return a warning for each term whose scale over the task's is not within LEAST and MOST.

    scales: the task's loss and each term times its weight, by name. A loss of 0 has no scale.
    """
    task = scales.get("task", 0.0)
    terms = {name: value for name, value in scales.items() if name != "task"}
    found = {}
    for name, value in terms.items():
        ratio = abs(value / task) if task else 0.0
        if ratio and not LEAST <= ratio <= MOST:
            knob = f"method.{name}.weight" if len(terms) > 1 else "method.weight"
            change = f"divide {knob} by" if ratio > 1 else f"multiply {knob} with"
            found[name] = (
                f"Loss scales in epoch 1: {name} {value:.3g} after its weight, task {task:.3g}; "
                f"{change} about {max(ratio, 1 / ratio):.2g}, or give the smaller one a larger "
                "share by method.alpha"
            )
    return found
