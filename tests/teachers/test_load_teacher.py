"""Any network can teach; what cannot is refused with what to type instead."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import CPU, tiny_network, toy_data

from kdsearch.data.base import ImageData, ImageSet
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.errors import SpecError
from kdsearch.models.cifar_resnet import DEPTHS, CifarResNet
from kdsearch.models.model import Model
from kdsearch.tasks.classification import Classification
from kdsearch.teachers import auto
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.autotune import Executions
from kdsearch.training.step import Execution
from kdsearch.training.trainer import Epoch
from kdsearch.training.validation import evaluate

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
DATA = toy_data()
FACTORIES = """
import sys
sys.path.insert(0, {tests!r})
from toy_data import tiny_network

thing = 3
def grey(network, mean=0.35, std=0.3):
    network.mean, network.std = (mean,), (std,)
    return network
def plain():
    return grey(tiny_network())
def sized(num_classes=7):
    return grey(tiny_network(classes=num_classes))
def prepared():
    network = grey(tiny_network(), mean=0.25, std=0.5)
    network.resolution = 16
    return network
def coloured():
    return tiny_network(channels=3)
def nothing():
    return None
def fails():
    raise FileNotFoundError("my_weights.pt")
def needs(path):
    return tiny_network()
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """Return a user's file of factories."""
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES.format(tests=str(Path(__file__).parent)))
    return path


def load(name: str, tmp_path: Path, data: ImageData = DATA, **settings: object) -> Model:
    weights, epochs = settings.get("weights"), settings.get("epochs")
    assert weights is None or isinstance(weights, Path)
    assert epochs is None or isinstance(epochs, int)
    spec = TeacherSpec(name=name, weights=weights and str(weights), epochs=epochs)
    return load_teacher(spec, data, cache_dir=tmp_path / "cache", seed=0, device=CPU)


def refusal(name: str, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(SpecError) as caught:
        load(name, tmp_path, **settings)
    return str(caught.value)


def weights_file(tmp_path: Path, classes: int) -> Path:
    torch.manual_seed(1)
    torch.save(tiny_network(classes=classes).state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_a_factory_from_a_file_is_taken_frozen_with_its_own_preprocessing(
    factories: Path, tmp_path: Path
) -> None:
    model = load(f"{factories}:prepared", tmp_path)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.preprocess.input_shape == (1, 16, 16)
    assert (model.preprocess.mean, model.preprocess.std) == ((0.25,), (0.5,))
    outputs = model.features(DATA.val.images[:5])
    assert outputs.logits.shape == (5, 3)
    assert outputs.embedding.shape == (5, 64)


def test_a_factory_without_a_word_on_it_is_shown_colour_images(
    factories: Path, tmp_path: Path
) -> None:
    preprocess = load(f"{factories}:coloured", tmp_path, toy_data(channels=3), epochs=1).preprocess
    assert preprocess.input_shape == (3, 8, 8)
    assert preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["plain", "sized"])
def test_weights_are_loaded_into_a_factorys_network(
    name: str, factories: Path, tmp_path: Path
) -> None:
    path = weights_file(tmp_path, 3)
    model = load(f"{factories}:{name}", tmp_path, weights=path)
    expected = torch.load(path, weights_only=True)
    for key, value in model.network.module.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_factory_that_takes_num_classes_is_given_those_of_the_weights(
    factories: Path, tmp_path: Path
) -> None:
    path = weights_file(tmp_path, 11)
    model = load(f"{factories}:sized", tmp_path, weights=path)
    assert model.network.module[7].out_features == 11
    assert model.classes == ()


def test_a_head_of_other_classes_is_replaced_when_epochs_are_given(
    factories: Path, tmp_path: Path
) -> None:
    path = weights_file(tmp_path, 11)
    model = load(f"{factories}:sized", tmp_path, weights=path, epochs=1)

    assert model(DATA.val.images).shape == (60, 3)
    assert not model.training
    # Fine-tuned, not trained anew: the body has hardly left the weights it was given.
    start = torch.load(path, weights_only=True)["3.weight"]
    body = model.network.module[3].weight
    assert not torch.equal(body, start)
    assert (body - start).abs().max() < 0.05


ERRORS = {
    "thing": "is not callable; expected a function or a class",
    "nothing": "returned NoneType, not a nn.Module",
    "fails": "fails to build: FileNotFoundError: my_weights.pt (",
    "needs": "fails to build: TypeError: ",
    "palin": "defines no 'palin' (did you mean 'plain'?)",
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_factory_that_gives_no_network_is_refused(
    name: str, factories: Path, tmp_path: Path
) -> None:
    assert ERRORS[name] in refusal(f"{factories}:{name}", tmp_path)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_teacher_is_trained_on_a_gpu_with_the_fastest_steps_there(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's name is given; the steps run where there is none."""
    fastest, forms = Execution(precision="bf16", is_channels_last=True), []
    monkeypatch.setattr(Executions, "fastest", lambda *_: fastest)
    monkeypatch.setattr(auto, "DeviceLock", lambda name: DeviceLock(folder=tmp_path))
    monkeypatch.setattr(
        auto, "train", lambda model, distiller, session, **_: forms.append(session.execution)
    )
    model, data = auto.build_auto(toy_data()), toy_data()
    auto.train_teacher(model, data, 1, cache_dir=tmp_path, seed=0, device=torch.device(device))
    assert forms == [fastest if device == "cuda" else Execution()]


def test_a_file_that_does_not_import_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    assert f"there is no file '{path}'" in refusal(f"{path}:f", tmp_path)
    path.write_text("import no_such_package")
    assert "fails to import: ModuleNotFoundError" in refusal(f"{path}:f", tmp_path)
    path.write_text("def f(:")
    assert "fails to import: SyntaxError" in refusal(f"{path}:f", tmp_path)
    assert "cannot import 'no.such.package'" in refusal("no.such.package:f", tmp_path)
    assert "cannot import '.relative'" in refusal(".relative:f", tmp_path)


NAMES = {
    "autp": "unknown teacher 'autp' (did you mean 'auto'?); accepted: auto, cifar_resnet",
    "resnet56": "(did you mean 'cifar_resnet56'?)",
    "": "unknown teacher ''",
    "timm:": "unknown teacher 'timm:'",
    "timm:resnt18": "timm has no model 'resnt18' (did you mean 'resnet18'?)",
    "timm:resnet18.no_such_tag": "timm has no weights 'no_such_tag' for 'resnet18'; it has",
    "torchvision:resnt18": (
        "torchvision has no classification model 'resnt18' (did you mean 'resnet18'?)"
    ),
    "cifar_resnet21": "cifar_resnet comes in 20, 32, 44, 56, 110",
    "cifar_resnet20": "needs --teacher-weights FILE, or --teacher-epochs N to train it",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, tmp_path: Path) -> None:
    assert NAMES[name] in refusal(name, tmp_path)


def test_a_spec_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(SpecError, match="--teacher-epochs 0: expected at least 1"):
        TeacherSpec(epochs=0)
    with pytest.raises(SpecError, match="--teacher-weights needs the network they belong to"):
        TeacherSpec(weights="w.pt")


def test_a_trained_teacher_is_cached_for_the_next_study(tmp_path: Path) -> None:
    received: list[int] = []

    def get(data: ImageData = DATA, seed: int = 0, epochs: int = 1) -> Model:
        def hear(epoch: Epoch, _: int) -> None:
            received.append(epoch.number)

        spec = TeacherSpec(epochs=epochs)
        return load_teacher(spec, data, cache_dir=tmp_path, seed=seed, device=CPU, on_epoch=hear)

    first, second = get(), get()
    assert received == [1]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert torch.equal(first(DATA.val.images), second(DATA.val.images))
    assert not second.training

    get(seed=1)
    get(epochs=2)
    get(data=toy_data(pad=0))
    assert received == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("damage", ["flipped", "half", "garbage"])
def test_a_damaged_cached_teacher_is_trained_again(damage: str, tmp_path: Path) -> None:
    lines: list[str] = []
    received: list[list[str]] = []

    def get() -> Model:
        def hear(epoch: Epoch, _: int) -> None:
            received.append(list(lines))

        spec = TeacherSpec(epochs=1)
        return load_teacher(
            spec, DATA, cache_dir=tmp_path, seed=0, device=CPU, on_epoch=hear, note=lines.append
        )

    first = get()
    assert received == [["Training the teacher for 1 epoch"]]  # said before the epoch ends
    (file,) = (tmp_path / "teachers").iterdir()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(b ^ 1 for b in content[middle : middle + 4])
    kinds = {"flipped": bytes(content), "half": bytes(content[:middle]), "garbage": b"\0" * 99}
    file.write_bytes(kinds[damage])
    second, third = get(), get()
    assert len(received) == 2
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.equal(value, third.state_dict()[name]), name


def test_the_teacher_that_is_trained_on_the_spot_learns(tmp_path: Path) -> None:
    assert evaluate(load("auto", tmp_path), DATA.val, Classification(), CPU) > 0.9


def test_cifar_resnets_are_those_of_the_paper() -> None:
    # He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85, 1.7 M; the exact counts are the sums over
    # the layers of the published weights (10 classes).
    counts = [sum(p.numel() for p in CifarResNet(depth, 10).parameters()) for depth in DEPTHS]
    assert counts == [269_722, 464_154, 658_586, 853_018, 1_727_962]
    assert CifarResNet(20, 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros() -> None:
    block = CifarResNet(20, 10).layer2[0].eval()
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)
    x = torch.arange(16.0 * 4 * 4).view(1, 16, 4, 4)
    with torch.no_grad():
        out = block(x)
    # 16 channels become 32: eight zeros, the sixteen, eight zeros; pixels (0, 0), (0, 2), (2, 0)...
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[0, 8], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert torch.equal(out[0, 23], torch.tensor([[240.0, 242.0], [248.0, 250.0]]))
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not beside the project")
def test_published_weights_load_strictly_and_classify(tmp_path: Path) -> None:
    import pyarrow.parquet
    from PIL import Image

    table = next(pyarrow.parquet.ParquetFile(CIFAR / "test.parquet").iter_batches(500))
    encoded = [row["bytes"] for row in table.column("img").to_pylist()]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in encoded])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    some = ImageSet(images, torch.tensor(table.column("label").to_pylist()))
    data = ImageData(
        name="cifar10",
        key="some",
        classes=tuple("0123456789"),
        train=some,
        val=some,
        test=some,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augment=toy_data().augment,
    )
    weights = CIFAR / "teachers" / "resnet20.safetensors"
    teacher = load("cifar_resnet20", tmp_path, data, weights=weights)
    assert evaluate(teacher, some, Classification(), CPU) >= 0.88
    with pytest.raises(SpecError, match="60 missing"):
        load("cifar_resnet32", tmp_path, data, weights=weights)
