"""Each method has the value and the gradients of its formula, written straight-line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import formulas, method_cost
from benchmarks.formulas.base import Known
from kdsearch import methods
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs, gradient_of

B, K = 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
SHAPES = [(B, 6, 8, 8), (B, 6, 4, 4), (B, 6, 2, 2)]
HEAD = torch.linspace(-1, 1, K * 6, dtype=torch.float64).sin().reshape(K, 6)
SAMPLES = 40


def network_says(*, seed):
    """Return Outputs that hang together as a network's do, and the maps that they come from."""
    random = torch.Generator().manual_seed(seed)
    maps, attention = (
        [
            torch.randn(b, c * wide, h, w, generator=random, dtype=torch.float64).requires_grad_()
            for b, c, h, w in SHAPES
        ]
        for wide in (1, 3)
    )
    embedding = maps[-1].mean((2, 3))
    outputs = Outputs(embedding @ HEAD.T, embedding, tuple(maps), tuple(attention))
    return outputs, [*maps, *attention]


def result_of(make, name):
    """Return a loss, its gradients in the student, and the length of that in its own weights."""
    student, made_of = network_says(seed=0)
    teacher = gradient_of(network_says(seed=1)[0]).map(torch.Tensor.detach)
    teacher = replace(teacher, index=torch.arange(B))
    mine, theirs = (method_cost.signal(methods.get(name), side) for side in (student, teacher))
    torch.manual_seed(2)
    loss = make(mine, theirs)
    torch.manual_seed(3)
    value = loss(mine, theirs, TARGET)
    value.backward()
    own = [p.grad.norm() for p in loss.parameters()] if isinstance(loss, nn.Module) else []
    return value, *(found.grad for found in made_of), torch.tensor(own).norm()


def test_every_method_that_teaches_has_a_formula():
    of_all_tasks = (name for name in methods.names() if not methods.get(name).tasks)
    assert formulas.names() == tuple(name for name in of_all_tasks if name != "none")


@pytest.mark.parametrize("name", formulas.names())
def test_formula_gives_the_value_and_the_gradients_of_the_method(name):
    def of_package(student, teacher):
        loss = methods.get(name)()
        known = Setting(samples=SAMPLES, batch_size=B, teacher_head=(HEAD, None))
        loss.prepare(student, teacher, known)
        return loss

    def by_hand(student, teacher):
        known = Known(samples=SAMPLES, head=(HEAD, None))
        loss = formulas.formula(name, student, teacher, known)
        return loss.double() if isinstance(loss, nn.Module) else loss

    torch.testing.assert_close(
        result_of(by_hand, name), result_of(of_package, name), rtol=1e-5, atol=1e-9
    )


def test_formula_that_is_not_the_methods_is_refused(monkeypatch):
    monkeypatch.setitem(formulas.FORMULAS, "kd", formulas.FORMULAS["hard_label"])
    with pytest.raises(ValueError, match="kd: the loss is"):
        method_cost.compare("kd", method_cost.cnn_pair(2), method_cost.step_of, seconds=0.0)
