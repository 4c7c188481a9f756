"""Stages and embeddings of networks nobody prepared; the expected sizes are from their papers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from threading import Barrier

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models import students
from kdsearch.models.features import (
    Outputs,
    Tapped,
    gradient_at,
    gradient_of,
    head_of,
)
from kdsearch.models.maps import evenly_spaced, grid_of, tokens_to_map
from kdsearch.spec import StudentSpec

SIDE = 64
CLASSES = 10


def timm_model(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **options)


def torchvision_model(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, num_classes=CLASSES, **options)


def swin() -> nn.Module:
    return timm_model(
        "swin_tiny_patch4_window7_224",
        img_size=SIDE,
        embed_dim=24,
        depths=(1, 1, 2, 1),
        num_heads=(1, 1, 2, 2),
    )


# (builder, [(stride, channels) of each stage], width of the embedding)
KNOWN: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, int]], int]] = {
    "timm resnet18": (
        lambda: timm_model("resnet18"),
        [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
        512,
    ),
    "timm mobilenetv3_small_050": (
        lambda: timm_model("mobilenetv3_small_050"),
        [(2, 16), (4, 8), (8, 16), (16, 24), (32, 288)],
        1024,
    ),
    "timm convnext_atto": (
        lambda: timm_model("convnext_atto"),
        [(4, 40), (8, 80), (16, 160), (32, 320)],
        320,
    ),
    "timm vit_tiny (blocks 3, 6, 9, 12)": (
        lambda: timm_model("vit_tiny_patch16_224", img_size=SIDE),
        [(16, 192)] * 4,
        192,
    ),
    "timm swin (channels last)": (swin, [(4, 24), (8, 48), (16, 96), (32, 192)], 192),
    "timm regnetx_002": (
        lambda: timm_model("regnetx_002"),
        [(2, 32), (4, 24), (8, 56), (16, 152), (32, 368)],
        368,
    ),
    "timm repvit_m0_9": (
        lambda: timm_model("repvit_m0_9"),
        [(2, 24), (4, 48), (8, 96), (16, 192), (32, 384)],
        384,
    ),
    "torchvision mobilenet_v3_small": (
        lambda: torchvision_model("mobilenet_v3_small"),
        [(2, 16), (4, 16), (8, 24), (16, 48), (32, 576)],
        1024,
    ),
    "torchvision shufflenet_v2_x0_5": (
        lambda: torchvision_model("shufflenet_v2_x0_5"),
        [(2, 24), (4, 24), (8, 48), (16, 96), (32, 1024)],
        1024,
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(SIDE, 8, 5, 2, 32, 64, num_classes=CLASSES),
        [(8, 32)] * 4,
        32,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_stages_and_embedding_of_known_networks(name: str) -> None:
    torch.manual_seed(0)
    make, stages, width = KNOWN[name]
    network = Tapped(make(), in_channels=3, resolution=SIDE, num_classes=CLASSES).eval()
    x = torch.randn(3, 3, SIDE, SIDE)

    with torch.no_grad():
        outputs = network.features(x)
        logits = network(x)

    assert [(SIDE // map_.shape[2], map_.shape[1]) for map_ in outputs.stages] == stages
    assert all(map_.shape[0] == 3 and map_.shape[2] == map_.shape[3] for map_ in outputs.stages)
    assert outputs.embedding.shape == (3, width)
    torch.testing.assert_close(outputs.logits, logits)


def test_head_on_the_embedding_gives_the_logits() -> None:
    network = Tapped(timm_model("resnet18"), in_channels=3, resolution=SIDE).eval()

    with torch.no_grad():
        outputs = network.features(torch.randn(2, 3, SIDE, SIDE))
        again = network.module.get_classifier()(outputs.embedding)

    torch.testing.assert_close(again, outputs.logits)


def test_convolution_as_head_is_read_before_it() -> None:
    network = Tapped(torchvision_model("squeezenet1_0"), in_channels=3, resolution=SIDE).eval()

    with torch.no_grad():
        outputs = network.features(torch.randn(2, 3, SIDE, SIDE))

    assert [map_.shape[1:] for map_ in outputs.stages] == [
        (96, 29, 29),
        (256, 14, 14),
        (512, 7, 7),
        (512, 3, 3),
    ]
    torch.testing.assert_close(outputs.embedding, outputs.stages[-1].mean(dim=(2, 3)))


def test_last_vit_stage_is_the_last_blocks_tokens() -> None:
    vit = timm_model("vit_tiny_patch16_224", img_size=SIDE, depth=4)
    network = Tapped(vit, in_channels=3, resolution=SIDE).eval()
    x = torch.randn(2, 3, SIDE, SIDE)

    with torch.no_grad():
        last = network.features(x).stages[-1]
        tokens = vit.forward_features(x)

    assert [stage.name for stage in network.stages] == [f"blocks.{i}" for i in range(4)]
    normed = vit.norm(last.flatten(2).transpose(1, 2))
    torch.testing.assert_close(normed, tokens[:, 1:], atol=1e-5, rtol=1e-4)


def toy() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def test_stages_are_the_last_output_at_each_size() -> None:
    module = toy()
    network = Tapped(module, in_channels=1, resolution=8)
    x = torch.randn(2, 1, 8, 8)

    outputs = network.features(x)

    torch.testing.assert_close(outputs.stages[0], module[:3](x))
    torch.testing.assert_close(outputs.stages[1], module[:6](x))
    torch.testing.assert_close(outputs.embedding, module[:8](x))


def test_probe_changes_neither_statistics_nor_flags_nor_random_state() -> None:
    module = toy().train()
    module[4].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = [part.training for part in module.modules()]
    state = torch.get_rng_state()

    Tapped(module, in_channels=1, resolution=8)

    assert [part.training for part in module.modules()] == flags
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_hook_stays_after_features_even_when_it_fails() -> None:
    network = Tapped(toy(), in_channels=1, resolution=8)

    network.features(torch.randn(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        network.features(torch.randn(2, 3, 8, 8))

    for part in network.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_gradient_reaches_the_network_through_every_output() -> None:
    network = Tapped(toy(), in_channels=1, resolution=8)
    first = network.module[0]

    for pick in (lambda o: o.logits, lambda o: o.embedding, lambda o: o.stages[0]):
        network.zero_grad()
        pick(network.features(torch.randn(2, 1, 8, 8))).square().sum().backward()
        assert first.weight.grad is not None
        assert first.weight.grad.abs().sum() > 0


@dataclass
class Answer:
    logits: Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body = toy()
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    "wrap",
    [Answer, lambda z: (z, z), lambda z: {"loss": 0, "logits": z}],
    ids=["object", "tuple", "dict"],
)
def test_logits_are_found_in_whatever_is_answered(wrap: Callable[[Tensor], object]) -> None:
    network = Tapped(Wrapped(wrap), in_channels=1, resolution=8, num_classes=CLASSES)
    x = torch.randn(2, 1, 8, 8)

    torch.testing.assert_close(network(x), network.module.body(x))
    assert len(network.features(x).stages) == 2


def test_a_stage_called_twice_is_its_last_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.head = nn.Linear(1, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x)).mean(dim=(2, 3)))

    network = Tapped(Twice(), in_channels=1, resolution=8)
    x = torch.randn(2, 1, 8, 8)

    (stage,) = network.features(x).stages

    torch.testing.assert_close(stage, network.module.conv(network.module.conv(x)))


def test_what_is_no_classifier_of_these_images_is_refused() -> None:
    with pytest.raises(SpecError, match=r"logits \[batch, classes\], not \[2, 4, 8, 8\]"):
        Tapped(toy()[:3], in_channels=1, resolution=8)
    with pytest.raises(SpecError, match="answers with 10 classes, the data has 7"):
        Tapped(toy(), in_channels=1, resolution=8, num_classes=7)
    with pytest.raises(SpecError, match="fails on an input of 3 x 8 x 8"):
        Tapped(toy(), in_channels=3, resolution=8)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_tokens_lie_row_by_row_without_prefix(prefix: int) -> None:
    grid = torch.arange(2 * 5 * 12.0).reshape(2, 5, 3, 4)
    tokens = torch.cat([torch.full((2, prefix, 5), -1.0), grid.flatten(2).transpose(1, 2)], dim=1)

    assert grid_of(tokens.shape[1], (48, 64)) == (3, 4)
    torch.testing.assert_close(tokens_to_map(tokens, (3, 4)), grid)


@pytest.mark.parametrize("count", [1, 4, 5, 49, 50, 196, 198])
def test_tokens_of_a_square_lie_on_the_largest_square(count: int) -> None:
    assert grid_of(count, (224, 224)) == (isqrt(count), isqrt(count))


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "convnext", "vit", "deit"])
def test_stages_keep_the_proportions_of_the_images(family: str) -> None:
    size = (32, 48)
    network = students.build(
        StudentSpec(family=family), in_channels=1, num_classes=3, data_size=size
    ).eval()
    own = network.features(torch.zeros(2, 1, *size)).stages
    found = Tapped(network, in_channels=1, resolution=size).features(torch.zeros(2, 1, *size))
    assert own
    assert found.stages
    for stage in (*own, *found.stages):
        assert 2 * stage.shape[3] == 3 * stage.shape[2]


@pytest.mark.parametrize(
    ("total", "expected"),
    [(12, (2, 5, 8, 11)), (6, (0, 2, 3, 5)), (4, (0, 1, 2, 3)), (2, (0, 1)), (0, ())],
)
def test_evenly_spaced_ends_at_the_last(total: int, expected: tuple[int, ...]) -> None:
    assert evenly_spaced(total, 4) == expected


def patch_tokens(name: str) -> tuple[Tapped, list[nn.Module]]:
    """Return a transformer and its blocks whose tokens are its stages."""
    if name == "torchvision":
        network = torchvision.models.VisionTransformer(SIDE, 8, 4, 2, 32, 64, num_classes=CLASSES)
        blocks = list(network.encoder.layers)
    else:
        network = timm_model(name, img_size=SIDE, depth=4)
        blocks = list(network.blocks)
    tapped = Tapped(network, in_channels=3, resolution=SIDE).eval()
    return tapped, blocks


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "torchvision"]
)
def test_attention_is_made_of_query_key_and_value_of_each_stage(name: str) -> None:
    """Attended and projected, they give what the module gives on the same tokens."""
    torch.manual_seed(0)
    network, blocks = patch_tokens(name)
    parts = [block.self_attention if name == "torchvision" else block.attn for block in blocks]
    read: list[Tensor] = []
    for part in parts:
        part.register_forward_pre_hook(lambda _, args: read.append(args[0]))

    with torch.no_grad():
        shown = network.features(torch.randn(2, 3, SIDE, SIDE))
        assert len(shown.attention) == len(shown.stages) == 4
        for part, made, stage in zip(parts, shown.attention, shown.stages, strict=True):
            tokens = read.pop(0)
            dim, grid = tokens.shape[2], stage.shape[2:]
            assert made.shape == (2, 3 * dim, *grid)
            split = made.flatten(2).reshape(2, 3, part.num_heads, -1, grid.numel())
            mixed = nn.functional.scaled_dot_product_attention(*split.transpose(3, 4).unbind(1))
            mixed = mixed.transpose(1, 2).flatten(2)
            inside = tokens[:, tokens.shape[1] - grid.numel() :]
            if name == "torchvision":
                again, expected = part.forward(inside, inside, inside)[0], part.out_proj(mixed)
            else:
                again, expected = part.forward(inside), part.proj(mixed)
            torch.testing.assert_close(expected, again, atol=1e-5, rtol=1e-4)


def test_attention_is_left_out_when_not_needed() -> None:
    network, _ = patch_tokens("torchvision")
    x = torch.randn(2, 3, SIDE, SIDE)

    with torch.no_grad():
        shown, spared = (network.features(x, attention=requested) for requested in (True, False))

    assert len(shown.attention) == 4
    assert spared.attention == ()
    torch.testing.assert_close(spared.stages, shown.stages)


@pytest.mark.parametrize("make", [swin, lambda: timm_model("resnet18")], ids=["swin", "resnet"])
def test_windows_and_convolutions_tell_no_attention(make: Callable[[], nn.Module]) -> None:
    network = Tapped(make(), in_channels=3, resolution=SIDE).eval()

    with torch.no_grad():
        assert network.features(torch.randn(2, 3, SIDE, SIDE)).attention == ()


def test_two_heads_are_given_in_training_and_averaged() -> None:
    module = timm_model("deit_tiny_distilled_patch16_224", img_size=SIDE, depth=2)
    module.set_distilled_training(True)
    network = Tapped(module, in_channels=3, resolution=SIDE, num_classes=CLASSES)
    x = torch.randn(2, 3, SIDE, SIDE)

    shown = network.train().features(x)
    requested = network.eval().features(x)

    tokens = module.forward_features(x)
    heads = (module.head(tokens[:, 0]), module.head_dist(tokens[:, 1]))
    torch.testing.assert_close(shown.heads, heads)
    torch.testing.assert_close(shown.logits, (heads[0] + heads[1]) / 2)
    torch.testing.assert_close(network.train()(x), shown.logits)
    assert requested.heads == ()
    torch.testing.assert_close(requested.logits, shown.logits)


def student(family: str) -> nn.Module:
    spec = StudentSpec(family=family)
    return students.build(spec, in_channels=3, num_classes=CLASSES, data_size=16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tapped(timm_model("resnet18"), in_channels=3, resolution=SIDE),
        lambda: Tapped(
            timm_model("vit_tiny_patch16_224", img_size=SIDE), in_channels=3, resolution=SIDE
        ),
        lambda: Tapped(timm_model("efficientvit_b0"), in_channels=3, resolution=SIDE),
        lambda: student("resnet"),
        lambda: student("vit"),
    ],
    ids=["resnet", "vit", "efficientvit", "student resnet", "student vit"],
)
def test_head_makes_the_answer_of_the_embedding(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    side = SIDE if isinstance(network, Tapped) else 16

    with torch.no_grad():
        shown = network.features(torch.randn(2, 3, side, side))
        head = head_of(network)
        assert head is not None
        torch.testing.assert_close(nn.functional.linear(shown.embedding, *head), shown.logits)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "squeezenet1_0"])
def test_two_heads_and_heads_before_the_average_are_no_head(name: str) -> None:
    is_timm = name.startswith("deit")
    module = timm_model(name, img_size=SIDE, depth=2) if is_timm else torchvision_model(name)

    assert head_of(Tapped(module, in_channels=3, resolution=SIDE)) is None


def test_gradient_of_a_linear_head_is_its_row_over_the_positions() -> None:
    module = toy()
    network = Tapped(module, in_channels=1, resolution=8).requires_grad_(False)
    x = torch.randn(3, 1, 8, 8, requires_grad=True)

    shown = gradient_of(network.features(x))

    rows = module[8].weight[shown.logits.argmax(1)] / 16
    assert shown.gradient is not None
    assert not shown.gradient.requires_grad
    torch.testing.assert_close(shown.gradient, rows[:, :, None, None].expand(3, 6, 4, 4))


def average_vit() -> nn.Module:
    return timm_model(
        "vit_tiny_patch16_224", img_size=SIDE, depth=2, global_pool="avg", class_token=False
    )


@pytest.mark.parametrize("name", ["vit (average)", "swin", "student vit"])
def test_gradient_reaches_stages_of_tokens_as_a_small_step_does(name: str) -> None:
    """A step e in one value of the deepest stage moves the score by e * gradient."""
    torch.manual_seed(0)
    if name == "student vit":
        network = student("vit").double().eval()
    else:
        module = (swin() if name == "swin" else average_vit()).double()
        network = Tapped(module, in_channels=3, resolution=SIDE).eval()
    side = SIDE if isinstance(network, Tapped) else 16
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)

    shown = gradient_of(network.features(x))
    assert shown.gradient is not None

    place = (1, 3, 1, 0)  # sample, channel, row, column
    step = torch.zeros_like(shown.stages[-1])
    step[place] = 1e-5

    def push(found: Tensor) -> Tensor:
        moves = step.permute(0, 2, 3, 1)
        return found + (moves if found.ndim == 4 else moves.flatten(1, 2))

    if isinstance(network, Tapped):
        last = network.module.get_submodule(network.stages[-1].name)
        handle = last.register_forward_hook(lambda _, args, out: push(out))
    else:
        handle = network.norm.register_forward_pre_hook(lambda _, args: push(args[0]))
    with torch.no_grad():
        moved = network(x)
    handle.remove()
    predicted = shown.logits.argmax(1, keepdim=True)
    rise = (moved - shown.logits).gather(1, predicted).sum() / 1e-5
    torch.testing.assert_close(shown.gradient[place], rise.detach(), rtol=1e-3, atol=1e-9)
    assert shown.gradient.abs().sum() > 0


def test_gradient_without_a_graph_or_stages_is_refused() -> None:
    network = Tapped(toy(), in_channels=1, resolution=8)
    x = torch.randn(2, 1, 8, 8)

    with torch.no_grad(), pytest.raises(SpecError, match="gradients enabled"):
        gradient_of(network.features(x))
    shown, other = network.features(x), network.features(x)
    with pytest.raises(SpecError, match="no gradient leads from the logits"):
        gradient_at(shown.logits.sum(), other.stages[-1])
    flat = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), in_channels=1, resolution=8)
    with pytest.raises(SpecError, match="the network shows none"):
        gradient_of(flat.features(x))


def test_threads_that_share_a_network_hear_their_own_passes() -> None:
    """Trials packed on a GPU are threads, and ask one teacher about batches of their own."""
    torch.manual_seed(0)
    tapped = Tapped(timm_model("resnet18").eval(), in_channels=3, resolution=SIDE)
    batches = [torch.randn(size, 3, SIDE, SIDE) for size in (1, 2, 3, 5)]
    with torch.no_grad():
        alone = [tapped.features(batch) for batch in batches]
    together = Barrier(len(batches))

    def ask(batch: Tensor) -> list[Outputs]:
        together.wait(20)
        with torch.no_grad():
            return [tapped.features(batch) for _ in range(4)]

    with ThreadPoolExecutor(len(batches)) as pool:
        shown = list(pool.map(ask, batches))
    for expected, answers in zip(alone, shown, strict=True):
        for answer in answers:
            for mine, theirs in zip(answer.tensors(), expected.tensors(), strict=True):
                torch.testing.assert_close(mine, theirs)
