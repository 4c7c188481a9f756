"""A library's network is filled by its own rules, and by nothing but its own weights."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from kdsearch.errors import SpecError
from kdsearch.models.inherit.library import Statistics, pretrained_network, statistics_of


def test_all_tensors_are_those_of_the_file() -> None:
    given = timm.create_model("test_resnet", num_classes=9).state_dict()
    found = pretrained_network("timm:test_resnet", given, where="file").state_dict()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_gray_images_get_the_sum_of_the_first_layer_over_colours() -> None:
    given = timm.create_model("test_resnet").state_dict()
    found = pretrained_network("timm:test_resnet", given, where="file", in_channels=1).state_dict()
    first = next(name for name in given if given[name].ndim == 4)
    torch.testing.assert_close(found[first], given[first].sum(dim=1, keepdim=True))


def test_position_embeddings_are_resized() -> None:
    given = timm.create_model("test_vit").state_dict()
    found = pretrained_network("timm:test_vit", given, where="file", resolution=64)
    assert found(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_a_headless_file_gives_a_headless_network() -> None:
    given = timm.create_model("test_vit", num_classes=0).state_dict()
    assert pretrained_network("timm:test_vit", given, where="file").num_classes == 0


def test_auxiliary_heads_of_torchvision_are_left_out() -> None:
    network = torchvision.models.get_model("googlenet", init_weights=False)
    found = pretrained_network("torchvision:googlenet", network.state_dict(), where="file")
    assert found.aux1 is None


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18"])
def test_weights_of_another_network_are_refused(name: str) -> None:
    given = timm.create_model("test_resnet").state_dict()
    with pytest.raises(SpecError, match=f"file: these are not the weights of {name}"):
        pretrained_network(name, given, where="file")


def test_statistics_are_those_of_the_weights() -> None:
    assert statistics_of("timm:tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    assert statistics_of("torchvision:resnet18").mean == (0.485, 0.456, 0.406)
    gray = Statistics(mean=(0.2, 0.3, 0.4), std=(0.1, 0.1, 0.4)).for_channels(1)
    assert gray.mean == pytest.approx((0.3,))
    assert gray.std == pytest.approx((0.2,))
