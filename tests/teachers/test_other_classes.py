"""A teacher whose head is not the data's teaches what it knows, and a line says what that is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn
from toy_data import CPU, toy_data

from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError
from kdsearch.models.model import Known, Model
from kdsearch.tasks.classification import Classification
from kdsearch.teachers.classes import known_of, names_of, read_classes
from kdsearch.teachers.evaluation import evaluate_teachers
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec

DATA = toy_data()
FACTORIES = """
import sys
sys.path.insert(0, {tests!r})
import torch
from torch import nn
from toy_data import tiny_network

def grey(network):
    network.mean, network.std, network.resolution = (0.35,), (0.3,), 8
    return network
def named(*names):
    network = grey(tiny_network(classes=len(names)))
    network.classes = list(names)
    return network
def some():
    return named("x", "c", "y", "a")
def permuted():
    return named("B", "c", "A")
def foreign():
    return grey(tiny_network(classes=7))
def headless():
    return grey(tiny_network()[:-1])
class HF(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny_network()[:5]
    def forward(self, x):
        maps = self.body(x)
        tokens = maps.flatten(2).transpose(1, 2)
        return dict(last_hidden_state=tokens, pooler_output=maps.mean((2, 3)))
def transformers_like():
    return grey(HF())
def softmax():
    return grey(nn.Sequential(*tiny_network(), nn.Softmax(1)))
def half():
    return grey(tiny_network()).half()
def broken():
    network = grey(tiny_network())
    nn.init.constant_(network[7].weight, float("nan"))
    return network
def frozen():
    return grey(tiny_network(classes=5)).requires_grad_(False)
class ConvHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = tiny_network()[:5]
        self.conv = nn.Conv2d(16, classes, 1)
    def forward(self, x):
        return self.conv(self.body(x)).mean((2, 3))
def convolution():
    return grey(ConvHead(9))
def silent():
    return tiny_network(channels=3)
def sideless():
    network = tiny_network()
    network.mean, network.std = (0.35,), (0.3,)
    return network
def fails_inside():
    class Net(nn.Module):
        def forward(self, x):
            raise ValueError("seven")
    return grey(Net())
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES.format(tests=str(Path(__file__).parent)))
    return path


def load(
    name: str, tmp_path: Path, data: ImageData = DATA, **settings: object
) -> tuple[Model, str]:
    """Return a teacher and its notes."""
    notes: list[str] = []
    spec = TeacherSpec(name=name, **settings)  # type: ignore[arg-type]
    model = load_teacher(
        spec, data, cache_dir=tmp_path / "cache", seed=0, device=CPU, note=notes.append
    )
    return model, "; ".join(notes)


def refusal(name: str, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(SpecError) as caught:
        load(name, tmp_path, **settings)
    return str(caught.value)


def test_classes_are_found_by_name() -> None:
    names = [("cat", "house cat"), ("Hot_Dog",), ("crane",), ("crane",), ("dog",)]
    assert known_of(names, ["dog", "hot-dog", "bird"]) == Known(columns=(4, 1), classes=(0, 1))
    assert known_of(names, ["hot dog", "house cat"]) == Known(columns=(1, 0), classes=None)
    # Two columns are called crane: neither is used. One common class counts as none.
    assert known_of(names, ["crane", "dog", "x"]) == Known()
    assert known_of(None, ["a", "b"]) == Known()


@pytest.mark.parametrize(
    "content",
    ['["cat", "dog"]', '{"0": "cat", "1": "dog"}', '{"dog": 1, "cat": 0}', "cat\ndog\n"],
)
def test_class_names_are_read_from_any_usual_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / ("names.json" if content[0] in "[{" else "names.txt")
    path.write_text(content)
    assert read_classes(path) == ("cat", "dog")


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"a": 0}', "{", '["a", "a"]', '{"0": "a", "2": "b"}']
)
def test_a_file_without_names_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(SpecError, match="--teacher-classes"):
        read_classes(path)


def test_a_network_states_its_names_in_several_ways() -> None:
    network = nn.Linear(2, 2)
    assert names_of(network, 2, is_library=False) is None
    network.config = SimpleNamespace(id2label={0: "cat", 1: "dog"})  # type: ignore[assignment]
    assert names_of(network, 2, is_library=False) == [("cat",), ("dog",)]
    imagenet = names_of(nn.Linear(2, 2), 1000, is_library=True)
    assert imagenet is not None
    assert imagenet[0] == ("n01440764", "tench", "Tinca tinca")


def test_a_head_of_some_classes_gives_their_logits_in_the_datas_order(
    mine: Path, tmp_path: Path
) -> None:
    model, notes = load(f"{mine}:some", tmp_path)
    assert model.classes == (0, 2)  # a and c; their columns are 3 and 1
    images = DATA.val.images[:5]
    whole = model.network(model.preprocess(images))
    torch.testing.assert_close(model(images), whole[:, [3, 1]])
    torch.testing.assert_close(model.features(images).logits, whole[:, [3, 1]])
    assert "knows 2 of the 3 classes by name (a, c)" in notes
    weight, bias = model.head or (None, None)
    assert weight is not None
    assert weight.shape == (2, 64)
    assert bias is not None


def test_a_head_in_another_order_is_put_in_order(mine: Path, tmp_path: Path) -> None:
    model, notes = load(f"{mine}:permuted", tmp_path)
    assert model.classes is None
    assert model.known == Known(columns=(2, 0, 1), classes=None)
    assert not notes


def test_a_file_of_names_comes_before_the_order(mine: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(list("cxyzwab")))
    model, _ = load(f"{mine}:foreign", tmp_path, classes=str(path))
    assert model.known == Known(columns=(5, 6, 0), classes=None)
    path.write_text('["a", "b"]')
    message = refusal(f"{mine}:foreign", tmp_path, classes=str(path))
    assert "2 names, and the head of" in message


@pytest.mark.parametrize(
    ("name", "width"), [("foreign", 64), ("headless", 64), ("transformers_like", 16)]
)
def test_other_heads_teach_by_features_alone(
    name: str, width: int, mine: Path, tmp_path: Path
) -> None:
    model, notes = load(f"{mine}:{name}", tmp_path)
    outputs = model.features(DATA.val.images[:4])
    assert model.classes == ()
    assert torch.equal(outputs.logits, torch.zeros(4, 1))
    assert outputs.embedding.shape == (4, width)
    assert outputs.stages
    assert "it teaches by features and relations alone" in notes


def test_a_headless_vit_of_timm_gives_its_answer_as_embedding(tmp_path: Path) -> None:
    path = tmp_path / "vit.py"
    path.write_text(
        "import timm\n\ndef vit():\n"
        "    network = timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=32,\n"
        "                                depth=2, embed_dim=48, num_heads=3)\n"
        "    network.resolution = 32\n"
        "    return network\n"
    )
    model, notes = load(f"{path}:vit", tmp_path, toy_data(channels=3, size=32))
    assert "knows none of the 3 classes (it gives 48 numbers" in notes
    outputs = model.features(toy_data(channels=3, size=32).val.images[:2])
    answer = model.network.module(model.preprocess(toy_data(channels=3, size=32).val.images[:2]))
    torch.testing.assert_close(outputs.embedding, answer)
    assert outputs.stages[-1].shape == (2, 48, 2, 2)
    assert outputs.attention[0].shape == (2, 3 * 48, 2, 2)


def test_weights_without_a_head_make_timms_network_headless(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    data = toy_data(channels=3, size=32)
    model, _ = load("timm:resnet10t", tmp_path, data, weights=str(tmp_path / "w.pt"))
    shown = model.preprocess(data.val.images[:2])
    assert model.classes == ()
    torch.testing.assert_close(
        model.features(data.val.images[:2]).embedding, source.eval()(shown), rtol=1e-4, atol=1e-5
    )


def test_probabilities_become_logits(mine: Path, tmp_path: Path) -> None:
    model, notes = load(f"{mine}:softmax", tmp_path)
    images = DATA.val.images[:5]
    probabilities = model.network.module(model.preprocess(images))
    torch.testing.assert_close(model(images), probabilities.log())
    torch.testing.assert_close(model(images).softmax(1), probabilities)
    assert "answers with probabilities" in notes
    assert "probabilities" in repr(model.network)  # the cache of outputs is named by it


def test_a_network_in_half_precision_is_widened(mine: Path, tmp_path: Path) -> None:
    model, _ = load(f"{mine}:half", tmp_path)
    assert model(DATA.val.images[:2]).dtype == torch.float32


def test_a_teacher_with_nan_is_refused(mine: Path, tmp_path: Path) -> None:
    assert "answers with NaN or infinity; its weights hold" in refusal(f"{mine}:broken", tmp_path)


@pytest.mark.parametrize("name", ["convolution", "frozen", "foreign", "headless"])
def test_any_head_is_replaced_for_fine_tuning(name: str, mine: Path, tmp_path: Path) -> None:
    model, _ = load(f"{mine}:{name}", tmp_path, epochs=1)
    assert model.classes is None
    assert model(DATA.val.images[:4]).shape == (4, 3)


def test_mean_and_std_are_asked_for(mine: Path, tmp_path: Path) -> None:
    message = refusal(f"{mine}:silent", tmp_path)
    assert "does not state the mean and std of its images" in message
    assert message.endswith(
        "network.mean, network.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)"
    )
    _, notes = load(f"{mine}:silent", tmp_path, toy_data(channels=3), epochs=1)
    assert "are assumed, and it is fine-tuned" in notes
    _, notes = load(f"{mine}:sideless", tmp_path)
    assert "states no resolution: it is shown images of 8 x 8 px" in notes


def test_an_error_in_forward_names_the_users_line(mine: Path, tmp_path: Path) -> None:
    line = FACTORIES.splitlines().index('            raise ValueError("seven")') + 1
    assert f"({mine}, line {line}): seven" in refusal(f"{mine}:fails_inside", tmp_path)


class Corner(nn.Module):
    """Embeds the brightness of the three corners that tell the toy classes apart."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 3]."""
        half = x.shape[2] // 2
        quarters = [x[:, :, :half, :half], x[:, :, :half, half:], x[:, :, half:, :half]]
        return torch.stack([part.mean((1, 2, 3)) for part in quarters], dim=1)


def value(teachers: list[Model]) -> float:
    return evaluate_teachers(teachers, DATA.val, DATA, Classification(DATA.classes), CPU).value


def test_features_alone_are_evaluated_by_the_nearest_class_mean(mine: Path, tmp_path: Path) -> None:
    from kdsearch.models.features import Tapped

    model, _ = load(f"{mine}:headless", tmp_path)
    tapped = Tapped(Corner(), in_channels=1, resolution=8, answers="embedding")
    corner = Model("corner", tapped, model.preprocess, Known())
    assert value([corner]) == 1.0


def test_a_teacher_of_some_classes_is_right_on_these_alone(mine: Path, tmp_path: Path) -> None:
    """A perfect one of two of three balanced classes answers 2 of 3 images."""
    from kdsearch.models.features import Tapped

    model, _ = load(f"{mine}:headless", tmp_path)
    tapped = Tapped(Corner(), in_channels=1, resolution=8, answers="embedding")
    some = Model("some", tapped, model.preprocess, Known(columns=(0, 2), classes=(0, 2)))
    assert evaluate_teachers(
        [some], DATA.val, DATA, Classification(DATA.classes), CPU
    ).value == pytest.approx(2 / 3)
    rest = Model("rest", tapped, model.preprocess, Known(columns=(1, 2), classes=(1, 2)))
    assert value([some, rest]) > 2 / 3
