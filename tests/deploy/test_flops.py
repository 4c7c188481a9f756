"""FLOPs in closed form, against torch's own counter, and with nothing left out."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.deploy import flops
from kdsearch.deploy.flops import count
from kdsearch.errors import CostError


class Attention(nn.Module):
    """[1, C, H, W] -> tokens -> one attention layer of a ViT -> logits."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).flatten(2)).mean(1)


class Calls(nn.Module):
    """One function as a network."""

    def __init__(self, function: object, *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(modules)

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image, *self.inner)


def test_convolution_counts_its_closed_form():
    # out 7x5 (stride 2, padding 1 on 13x9); each output value: 3 inputs x 3x3; 16 channels
    net = nn.Conv2d(3, 16, 3, stride=2, padding=1)

    flops, params = count(net, input_shape=(3, 13, 9))

    assert flops == 7 * 5 * 16 * 3 * 9
    assert params == 16 * 3 * 9 + 16


@pytest.mark.parametrize(("groups", "inputs_per_output"), [(1, 8), (4, 2), (8, 1)])
def test_groups_divide_the_flops_of_a_convolution(groups, inputs_per_output):
    net = nn.Conv2d(8, 16, 3, padding=1, groups=groups)

    flops, _ = count(net, input_shape=(8, 6, 6))

    assert flops == 6 * 6 * 16 * inputs_per_output * 9


def test_transposed_convolution_counts_every_input_value():
    net = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)

    flops, _ = count(net, input_shape=(6, 5, 5))

    assert flops == 5 * 5 * 6 * (4 // 2) * 9


def test_linear_counts_in_times_out():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))

    assert count(net, input_shape=(3, 4, 4)) == (48 * 10, 48 * 10 + 10)


def test_attention_counts_its_two_products():
    # N = 16 tokens, D = 12: QKV 3ND^2, projection ND^2, QK^T N^2 D, AV N^2 D
    flops, _ = count(Attention(12, heads=3), input_shape=(12, 4, 4))

    assert flops == 16 * 4 * 12**2 + 2 * 16**2 * 12


def test_multihead_attention_counts_as_much_as_fused_attention():
    net = Calls(
        lambda image, layer: layer(*[image.flatten(2).transpose(1, 2)] * 3)[0].mean(1),
        nn.MultiheadAttention(12, 3, batch_first=True),
    )

    flops, _ = count(net, input_shape=(12, 4, 4))

    assert flops == 16 * 4 * 12**2 + 2 * 16**2 * 12


def test_values_wider_than_keys_are_counted_by_their_width():
    # 1 head, 16 queries and 4 keys of width 12, values of width 24
    def attend(image: Tensor) -> Tensor:
        query = image.flatten(2).transpose(1, 2).unsqueeze(1)
        key = query[:, :, :4]
        return F.scaled_dot_product_attention(query, key, torch.cat([key, key], -1)).flatten(1)

    flops, _ = count(Calls(attend), input_shape=(12, 4, 4))

    assert flops == 16 * 4 * (12 + 24)


def test_product_with_a_broadcast_first_factor_is_counted_whole():
    mixer = nn.Linear(16, 5, bias=False)
    net = Calls(lambda image, layer: layer.weight @ image.flatten(2).transpose(1, 2), mixer)

    flops, _ = count(net, input_shape=(7, 4, 4))

    assert flops == 5 * 16 * 7


def test_vit_tiny_equals_its_closed_form():
    # D = 192, N = 197: per block 12 N D^2 + 2 N^2 D, of which attention's products are 178.8 M in
    # all; 196 patches of 768 values; the head; and fvcore's 5 per value for 25 LayerNorms
    net = timm.create_model("vit_tiny_patch16_224")

    flops, params = count(net, input_shape=(3, 224, 224))

    products = 12 * (12 * 197 * 192**2 + 2 * 197**2 * 192) + 196 * 768 * 192 + 192 * 1000
    assert round(products / 1e6) == 1254
    assert flops == products + 25 * 197 * 192 * 5
    assert params == 5_717_416


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "mobilevit_xxs"]
)
def test_timm_networks_are_counted_by_both_counters(name):
    flops, params = count(timm.create_model(name), input_shape=(3, 64, 64))

    assert flops > 1e6
    assert params > 1e5


def test_element_wise_operators_cost_nothing():
    bare = nn.Conv2d(3, 8, 3)
    dressed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Hardswish(inplace=True), nn.Dropout())

    shape = (3, 8, 8)
    assert count(dressed, input_shape=shape) == count(bare, input_shape=shape)


def test_operator_without_a_count_is_named_with_how_often():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, image: Tensor) -> Tensor:
            once, _ = self.lstm(image.flatten(2).squeeze(0))
            return self.lstm(once)[0]

    with pytest.raises(CostError, match=r"Recurrent: no FLOP count for aten::lstm \(2 times\)"):
        count(Recurrent(), input_shape=(3, 2, 2))


def test_two_counters_that_disagree_are_an_error(monkeypatch):
    monkeypatch.setattr(flops, "_attention", lambda inputs, outputs: 0)

    with pytest.raises(CostError, match=r"fvcore counts 0\.009 M multiply-adds, torch 0\.015 M"):
        count(Attention(12, heads=3), input_shape=(12, 4, 4))


def test_image_that_does_not_fit_names_network_and_shape():
    with pytest.raises(CostError, match="Conv2d cannot be traced on an image of 4x8x8"):
        count(nn.Conv2d(3, 8, 3), input_shape=(4, 8, 8))


@pytest.mark.parametrize("channels", [3, 4])  # 4 fails in the trace, with fvcore's hooks in place
def test_model_comes_out_as_it_went_in(channels):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
    net[1].eval()
    net[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    grads = [weight.requires_grad for weight in net.parameters()]

    try:
        count(net, input_shape=(channels, 8, 8))
    except CostError:
        assert channels == 4

    assert [module.training for module in net.modules()] == flags
    assert [weight.requires_grad for weight in net.parameters()] == grads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.backends.mha.get_fastpath_enabled()


def test_module_that_is_never_called_costs_parameters_only():
    body = nn.Conv2d(3, 8, 3)
    with_spare = Calls(lambda image, used, spare: used(image), body, nn.Linear(5, 5))

    flops, params = count(with_spare, input_shape=(3, 8, 8))

    assert flops == count(body, input_shape=(3, 8, 8))[0]
    assert params == count(body, input_shape=(3, 8, 8))[1] + 30
