"""A smaller network of a family takes evenly spaced channels and blocks of a larger one."""

from __future__ import annotations

import pytest
import torch

from kdsearch.models import students
from kdsearch.models.inherit.select import fitted, uniform
from kdsearch.models.students._vit_parts import HEAD
from kdsearch.space import Value
from kdsearch.spec import StudentSpec


def network(family: str, side: int = 64, **knobs: Value) -> torch.nn.Module:
    spec = StudentSpec(family=family, knobs=knobs)
    return students.build(spec, in_channels=3, num_classes=4, data_size=side).eval()


def test_indices_are_every_kth_or_evenly_spaced() -> None:
    assert uniform(2, 8).tolist() == [0, 4]
    assert uniform(3, 8).tolist() == [0, 4, 7]  # 0, 3.5 and 7, half to even
    assert uniform(8, 8).tolist() == [*range(8)]


@pytest.mark.parametrize("family", students.names())
def test_an_equal_network_is_taken_whole(family: str) -> None:
    source, own = network(family), network(family)
    found = fitted(own.state_dict(), source.state_dict())
    own.load_state_dict(found)  # strictly
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(own(x), source(x))


@pytest.mark.parametrize("family", students.names())
def test_a_narrower_and_shallower_network_is_filled_whole(family: str) -> None:
    source, own = network(family, width=1.0, depth=12), network(family, width=0.5, depth=5)
    found = fitted(own.state_dict(), source.state_dict())
    assert found.keys() == own.state_dict().keys()
    own.load_state_dict(found)


def test_blocks_are_spaced_from_the_first_to_the_last() -> None:
    source, own = network("resnet", depth=16), network("resnet", depth=8)  # 4 and 2 a stage
    found, given = fitted(own.state_dict(), source.state_dict()), source.state_dict()
    for stage in range(4):
        for mine, theirs in ((0, 0), (1, 3)):
            leaf = "body.0.weight"
            expected = given[f"stages.{stage}.{theirs}.{leaf}"]
            assert torch.equal(found[f"stages.{stage}.{mine}.{leaf}"], expected)


def test_blocks_and_channels_that_the_source_lacks_stay_random() -> None:
    small, large = network("resnet", depth=4), network("resnet", depth=8, width=2.0)
    found = fitted(large.state_dict(), small.state_dict())
    assert not [name for name in found if name.endswith(".weight")]
    deeper = fitted(network("resnet", depth=8).state_dict(), small.state_dict())
    assert "stages.0.0.body.0.weight" in deeper
    assert "stages.0.1.body.0.weight" not in deeper


def test_whole_heads_of_query_key_and_value_are_taken() -> None:
    """The same per-head reference: rows of heads 0 and 2 of 4, in each third."""
    of, count = 4 * HEAD, 2 * HEAD
    given = torch.arange(3.0 * of)
    own = torch.zeros(3 * count)
    found = fitted({"blocks.0.qkv.bias": own}, {"blocks.0.qkv.bias": given})["blocks.0.qkv.bias"]
    rows = [given[part * of + head * HEAD :][:HEAD] for part in range(3) for head in (0, 2)]
    assert torch.equal(found, torch.cat(rows))


def test_a_smaller_kernel_is_the_centre_of_a_larger_one() -> None:
    given = torch.rand(4, 1, 7, 7)
    found = fitted({"stem.weight": torch.zeros(4, 1, 5, 5)}, {"stem.weight": given})
    assert torch.equal(found["stem.weight"], given[:, :, 1:6, 1:6])
