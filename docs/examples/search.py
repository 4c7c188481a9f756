"""Search anything that has a score: here a synthetic accuracy over width and learning rate."""

import math

import kdsearch


def accuracy(params, report):
    """Return the final accuracy of a synthetic training; report it after each epoch."""
    best = 1 - 1 / (2 + params["width"] / 8) - 0.1 * abs(math.log10(params["lr"] / 0.1))
    for epoch in range(1, 11):
        if not report(epoch, best * (1 - 0.5**epoch)):
            break  # pruned
    return best


study = kdsearch.search(
    space={"width": {"int": [8, 64]}, "lr": {"float": [0.01, 1.0], "log": True}},
    evaluate=accuracy,
    cost=lambda params: {"flops": 1e4 * params["width"] ** 2},
    budget={"flops": 2e7},
    n_trials=30,
    epochs=10,
    stopping="safe",
    seed=0,
)
for record in study.front:
    print(f"trial {record.number}: {record.val:.3f} at {record.cost.flops / 1e6:.2f} MFLOPs")
