"""A zero-shot teacher is an image tower and texts: cosines, its tower's stages, a head for life."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_data import CPU, tiny_network, toy_data

from kdsearch.data.base import ImageData
from kdsearch.deploy.flops import count
from kdsearch.errors import SpecError
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.teachers.zero_shot import TEMPLATES, is_tag, prompts, zero_shot

WIDTH = 6
DATA = toy_data()
FACTORIES = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_zero_shot import WIDTH, texts, tower
from kdsearch.teachers.zero_shot import zero_shot

def three():
    network = zero_shot(tower(), texts(3))
    network.mean, network.std, network.resolution = (0.25,), (0.5,), 16
    return network
def five():
    network = zero_shot(tower(), texts(5))
    network.mean, network.std = (0.25,), (0.5,)
    return network
"""


def tower(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_network(classes=WIDTH)


def texts(classes: int = 3) -> Tensor:
    """Return embeddings of different lengths."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(classes, WIDTH, generator=generator) * torch.arange(1, classes + 1)[:, None]


class Named(nn.Module):
    """Answers as no tower may."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"embedding": x}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=5,
        num_heads=2,
        num_classes=WIDTH,
    )


def load(
    name: str,
    tmp_path: Path,
    data: ImageData = DATA,
    *,
    weights: str | None = None,
    epochs: int | None = None,
) -> Model:
    spec = TeacherSpec(name=name, weights=weights, epochs=epochs)
    return load_teacher(spec, data, cache_dir=tmp_path / "cache", seed=0, device=CPU)


def refusal(
    name: str, tmp_path: Path, *, weights: str | None = None, epochs: int | None = None
) -> str:
    with pytest.raises(SpecError) as caught:
        load(name, tmp_path, weights=weights, epochs=epochs)
    return str(caught.value)


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """Return a user's file of factories."""
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES.format(tests=str(Path(__file__).parent)))
    return path


def test_logits_are_scaled_cosines_of_image_and_text() -> None:
    """Radford et al. 2021, figure 3: logits = scale * I @ T.T of unit vectors."""
    network = zero_shot(tower(), texts(), scale=20.0).eval()
    x = torch.rand(4, 1, 8, 8)
    image = network.tower(x)
    cosine = F.cosine_similarity(image[:, None], texts()[None], dim=2)
    torch.testing.assert_close(network(x), 20 * cosine)


@pytest.mark.parametrize(
    ("make", "shape", "stages"),
    [
        (tower, (1, 8, 8), [(8, 8, 8), (16, 4, 4), (16, 2, 2)]),
        (vit, (3, 32, 32), [(24, 4, 4)] * 4),
    ],
    ids=["a CNN", "a ViT"],
)
def test_its_taps_are_the_unit_embedding_and_the_stages_of_the_tower(
    make: Callable[[], nn.Module], shape: tuple[int, int, int], stages: list[tuple[int, ...]]
) -> None:
    network = zero_shot(make(), texts())
    tapped = Tapped(network, in_channels=shape[0], resolution=shape[1]).eval()
    x = torch.rand(3, *shape)
    outputs = tapped.features(x)
    expected = F.normalize(network.tower(x), dim=1)
    torch.testing.assert_close(outputs.embedding, expected)
    torch.testing.assert_close(outputs.logits, outputs.embedding @ network.head.weight.T)
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == stages
    alone = Tapped(network.tower, in_channels=shape[0], resolution=shape[1]).eval().features(x)
    torch.testing.assert_close(outputs.stages, alone.stages)
    assert count(network, input_shape=shape)[0] > 3 * WIDTH


def test_as_many_classes_as_the_embedding_is_wide_confuses_no_tap() -> None:
    tapped = Tapped(zero_shot(tower(), texts(WIDTH)), in_channels=1, resolution=8).eval()
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(tapped.features(x).embedding.norm(dim=1), torch.ones(3))


def test_the_embedding_is_the_first_output_of_a_tower() -> None:
    class Talkative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quiet = tower()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.quiet(x), x

    x = torch.rand(3, 1, 8, 8)
    expected = zero_shot(tower(), texts()).eval()(x)
    assert torch.equal(zero_shot(Talkative(), texts()).eval()(x), expected)


def test_towers_and_texts_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(SpecError, match=r"embeddings \[batch, 6\], as wide .* not \[2, 5\]"):
        zero_shot(tiny_network(classes=5), texts())(torch.rand(2, 1, 8, 8))
    with pytest.raises(SpecError, match="not <class 'dict'>"):
        zero_shot(Named(), texts())(torch.rand(2, 1, 8, 8))
    for bad in (torch.ones(6), torch.ones(1, 6), torch.zeros(3, 6), torch.full((3, 6), torch.nan)):
        with pytest.raises(SpecError, match=r"expected .classes, width., two classes or more"):
            zero_shot(tower(), bad)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SpecError, match="expected a number above 0"):
            zero_shot(tower(), texts(), scale)


def test_a_users_zero_shot_teacher_keeps_its_preprocessing(factories: Path, tmp_path: Path) -> None:
    model = load(f"{factories}:three", tmp_path)
    assert model.preprocess.input_shape == (1, 16, 16)
    assert (model.preprocess.mean, model.preprocess.std) == ((0.25,), (0.5,))
    outputs = model.features(DATA.val.images[:5])
    assert outputs.logits.shape == (5, 3)
    assert outputs.embedding.shape == (5, WIDTH)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_image_attributes_of_a_timm_tower_apply_to_the_classifier() -> None:
    network = zero_shot(vit(), texts())
    assert network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert not hasattr(zero_shot(tower(), texts()), "pretrained_cfg")


@pytest.mark.parametrize("epochs", [None, 1])
def test_texts_of_other_classes_are_refused_whatever_the_epochs(
    epochs: int | None, factories: Path, tmp_path: Path
) -> None:
    message = refusal(f"{factories}:five", tmp_path, epochs=epochs)
    assert "its head is 5 texts and the data 'toy' has 3 classes (a, b, c)" in message
    assert "--teacher-epochs" not in message


def test_fine_tuning_moves_the_tower_and_leaves_the_texts(factories: Path, tmp_path: Path) -> None:
    before = load(f"{factories}:three", tmp_path).network.module
    after = load(f"{factories}:three", tmp_path, epochs=1).network.module
    assert torch.equal(after.head.weight, before.head.weight)
    assert not torch.equal(after.tower[0].weight, before.tower[0].weight)


def test_a_class_is_called_in_words() -> None:
    assert prompts("traffic_light")[0] == "a photo of a traffic light."
    assert len(set(prompts("cat"))) == len(TEMPLATES)


def test_a_tag_has_no_dot_and_no_slash() -> None:
    assert is_tag("laion2b_s34b_b79k")
    assert not is_tag("weights.pt")
    assert not is_tag("./openai")
    assert TeacherSpec(name="open_clip:ViT-B-32", weights="openai").weights_file is None
    file = TeacherSpec(name="open_clip:ViT-B-32", weights="./openai").weights_file
    assert file == Path("openai")


def test_without_open_clip_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    message = refusal("open_clip:ViT-B-32", tmp_path, weights="openai")
    assert message.startswith("--teacher open_clip:ViT-B-32 needs open_clip (")
    assert message.endswith('pip install "open-clip-torch>=3.0"`')
    assert "unknown teacher 'open_clip:'" in refusal("open_clip:", tmp_path)


CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 6,
            "width": 64,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
}


@pytest.mark.filterwarnings("default")  # the package's own, and those of what it imports
def test_an_open_clip_model_answers_as_open_clip_itself(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    towers = open_clip.CLIP(**CONFIG["model_cfg"]).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(towers.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    coloured = toy_data(channels=3, size=32)
    data = replace(coloured, classes=("traffic_light", "cat", "dog"))

    model = load(f"open_clip:local-dir:{tmp_path}", tmp_path, data)

    assert (model.preprocess.mean, model.preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert model.preprocess.input_shape == (3, 32, 32)
    with torch.no_grad():
        heads = open_clip.build_zero_shot_classifier(
            towers, open_clip.SimpleTokenizer(), ["traffic light", "cat", "dog"], TEMPLATES
        )
        images = towers.encode_image(model.preprocess(data.val.images[:8]), normalize=True)
        expected = towers.logit_scale.exp() * images @ heads
    outputs = model.features(data.val.images[:8])
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.embedding, images)
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == [(64, 4, 4)] * 4


@pytest.mark.filterwarnings("default")
def test_names_that_open_clip_does_not_know_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    cases = {
        ("ViT-B-33", "openai"): "open_clip has no model 'ViT-B-33' (did you mean 'ViT-B-32'?)",
        ("ViT-B-32", None): "needs --teacher-weights, a file, or a tag of open_clip's: openai",
        ("ViT-B-32", "opena"): "no such weights for 'ViT-B-32' (did you mean 'openai'?)",
        ("ViT-B-32", "no.pt"): "there is no file 'no.pt'",
        (f"local-dir:{tmp_path}", None): "cannot be loaded: ",
        (f"local-dir:{tmp_path}", "openai"): "has weights of its own",
    }
    for (model, weights), text in cases.items():
        assert text in refusal(f"open_clip:{model}", tmp_path, weights=weights)


@pytest.mark.filterwarnings("default")
def test_offline_a_tag_is_refused_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal("open_clip:ViT-B-32", tmp_path, weights="openai")
    assert "cannot be loaded: Failed to download weights for tag 'openai'" in message
    assert message.endswith("give a local file with --teacher-weights FILE")
    assert capsys.readouterr() == ("", "")
