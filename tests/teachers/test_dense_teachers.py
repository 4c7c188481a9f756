"""Any segmenter can teach one: its form, its stride and its classes; what cannot is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_masks
from torch import Tensor, nn
from toy_data import CPU, toy_data

from kdsearch import data as datasets
from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import SpecError
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model
from kdsearch.spec import DistillSpec, StudentSpec, TrainSpec
from kdsearch.teachers.evaluation import evaluate_teachers
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import train

FACTORIES = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    def __init__(self, classes=3, strides=(2, 2, 2)):
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 8, 12, 16)
        self.body = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=s, padding=1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, s in zip(widths, widths[1:], strides)
        ))
        self.classifier = nn.Conv2d(16, classes, 1)
        self.aux_classifier = nn.Conv2d(16, classes, 1)
    def forward(self, x):
        return self.classifier(self.body(x))

class Up(Net):
    def forward(self, x):
        deep = self.body(x)
        out, aux = (F.interpolate(head(deep), x.shape[2:], mode="bilinear", align_corners=False)
                    for head in (self.classifier, self.aux_classifier))
        return {"out": out, "aux": aux}

class Pair(Net):
    def forward(self, x):
        deep = self.body(x)
        both = self.classifier(deep), self.aux_classifier(deep)
        return both if self.training else both[0]

class Soft(Net):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)

class Pooled(Net):
    def forward(self, x):
        return super().forward(x).mean(dim=(2, 3))

class Hard(Net):
    def forward(self, x):
        return super().forward(x).argmax(dim=1).float()

class Broken(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

def coarse():
    return Net(strides=(2, 4, 4))
def fine():
    return Net(strides=(1, 2, 1))
def sized():
    network = Net()
    network.resolution = 128
    return network
def four():
    return Net(classes=4)
def named():
    network = Net(classes=4)
    network.classes = ["disc", "sky", "Ground", "lake"]
    return network
def binary():
    return Net(classes=1)
"""
SMALL = {"width": 0.25, "depth": 4, "head.channels": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("toys")
    return datasets.load(str(toy_masks.write(folder / "set")), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factories") / "mine.py"
    path.write_text(FACTORIES)
    return path


def load(name: object, data: ImageData, tmp_path: Path, **settings: object) -> Model:
    spec = TeacherSpec(name=str(name), **settings)  # type: ignore[arg-type]
    return load_teacher(spec, data, cache_dir=tmp_path / "cache", seed=0, device=CPU)


def refusal(name: object, data: ImageData, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(SpecError) as caught:
        load(name, data, tmp_path, **settings)
    return str(caught.value)


def side(model: Model, data: ImageData) -> Side:
    outputs = model.example(data.train.at(slice(2)), need=frozenset({"stages"}))
    return Side(outputs=outputs, resolution=model.preprocess.resolution, classes=model.classes)


def taught(data: ImageData, teachers: list[Model], **recipe: object) -> dict[str, float]:
    """Return the losses of an epoch of a student."""
    torch.manual_seed(0)
    student = build_student(StudentSpec(family="resnet", knobs=SMALL), data)
    session = Session(
        data=data,
        spec=TrainSpec(epochs=1, batch_size=4, optimizer="adamw", lr=1e-3),
        seed=0,
        view_seed=0,
        device=CPU,
        teachers=tuple(
            TeacherOutputs(each, Feed(data.train, CPU), view_seed=0) for each in teachers
        ),
    )
    distiller = Distiller(
        DistillSpec(**recipe),  # type: ignore[arg-type]
        task=tasks.of(data),
        student=side(student, data),
        teachers=[side(each, data) for each in teachers],
    )
    (epoch,) = train(student, distiller, session)
    return epoch.losses


KD, CWD = {"method": "kd"}, {"method": "cwd", "mapping": "logits"}
FITNET, IFVD = {"method": "fitnet", "mapping": "last"}, {"method": "ifvd"}


@pytest.mark.parametrize(
    ("factory", "recipe"),
    [
        *((factory, KD) for factory in ("Net", "Up", "Pair", "coarse", "fine", "sized")),
        *((factory, recipe) for recipe in (CWD, FITNET) for factory in ("Up", "coarse", "fine")),
        ("Up", IFVD),
    ],
)
def test_a_factory_teaches_logits_and_stages(
    factory: str, recipe: dict[str, str], data: ImageData, factories: Path, tmp_path: Path
) -> None:
    teacher = load(f"{factories}:{factory}", data, tmp_path)
    losses = taught(data, [teacher], **recipe)
    assert losses[recipe["method"]] > 0


def test_its_mean_iou_is_that_of_its_answer(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    teacher = load(f"{factories}:Up", data, tmp_path)
    found = evaluate_teachers([teacher], data.val, data, tasks.of(data), CPU)
    meter = tasks.of(data).meter(CPU)
    meter.add(
        teacher.network.module(teacher.preprocess(data.val.at(slice(None))))["out"], data.val.labels
    )
    assert found.value == pytest.approx(meter.value())
    assert set(found.details.metrics) == {"miou", "pixel_accuracy"}


def test_logits_to_compare_are_those_before_they_are_resized(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    model = load(f"{factories}:Up", data, tmp_path)
    images = data.val.at(slice(2))
    answer, outputs = model(images), model.features(images)
    assert answer.shape == (2, 3, 64, 64)
    assert outputs.logits.shape == (2, 3, 8, 8)
    torch.testing.assert_close(
        nn.functional.interpolate(outputs.logits, (64, 64), mode="bilinear"), answer
    )
    assert outputs.embedding.shape == (2, 16)
    assert [stage.shape[1:] for stage in outputs.stages] == [(8, 32, 32), (12, 16, 16), (16, 8, 8)]


def test_a_resolution_is_the_longer_side_of_a_canvas(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    model = load(f"{factories}:sized", data, tmp_path)
    assert model.preprocess.size == tasks.of(data).input_size(data.size, 128)
    assert max(model.preprocess.size) == 128


def test_probabilities_become_their_logarithms(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    soft, plain = (load(f"{factories}:{name}", data, tmp_path) for name in ("Soft", "Net"))
    images = data.val.at(slice(2))
    torch.testing.assert_close(soft(images), plain(images).log_softmax(dim=1))


def test_classes_that_it_knows_by_name_are_taught_alone(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    teacher = load(f"{factories}:named", data, tmp_path)
    assert teacher.classes == (0, 2)  # of ground, box, disc
    images = data.val.at(slice(2))
    whole = teacher.network(teacher.preprocess(images))
    torch.testing.assert_close(teacher(images), whole[:, [2, 0]])
    assert taught(data, [teacher], method="kd")["kd"] > 0
    found = evaluate_teachers([teacher], data.val, data, tasks.of(data), CPU)
    box = found.details.scores.values[1]  # type: ignore[union-attr]
    assert box == 0
    with pytest.raises(SpecError, match="logits of all classes at each position"):
        taught(data, [teacher], method="cwd", mapping="logits")
    whole_teacher = load(f"{factories}:Net", data, tmp_path)
    with pytest.raises(SpecError, match="all have to know all classes"):
        taught(data, [teacher, whole_teacher], method="kd")


def test_teachers_of_several_strides_answer_and_teach_together(
    data: ImageData, factories: Path, tmp_path: Path
) -> None:
    teachers = [load(f"{factories}:{name}", data, tmp_path) for name in ("coarse", "fine", "Up")]
    assert taught(data, teachers, method="kd")["kd"] > 0
    images = data.val.at(slice(2))
    blended = tasks.of(data).stacked([teacher(images) for teacher in teachers])
    assert blended.shape == (2, 3, 3, 64, 64)
    assert evaluate_teachers(teachers, data.val, data, tasks.of(data), CPU).value > 0


@pytest.mark.parametrize("factory", ["four", "Up", "Soft"])
def test_epochs_fit_a_head_of_the_classes_of_the_data(
    factory: str, data: ImageData, factories: Path, tmp_path: Path
) -> None:
    teacher = load(f"{factories}:{factory}", data, tmp_path, epochs=1)
    assert teacher(data.val.at(slice(2))).shape[:2] == (2, 3)
    assert not teacher.training


def test_weights_of_a_factory_are_loaded(data: ImageData, factories: Path, tmp_path: Path) -> None:
    state = load(f"{factories}:Up", data, tmp_path).network.module.state_dict()
    state["classifier.bias"] = torch.tensor([1.0, 2.0, 3.0])
    torch.save(state, tmp_path / "weights.pt")
    model = load(f"{factories}:Net", data, tmp_path, weights=str(tmp_path / "weights.pt"))
    assert model.network.module.classifier.bias.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("Pooled", r"a segmenter must answer with logits .*'out', not \[2, 3\]"),
        ("Hard", r"a segmenter must answer with logits .*, not \[2, 8, 8\]"),
        ("Broken", "answers with NaN or infinity"),
        ("four", "gives 4 numbers a position, and knows none of the 3 classes .*--teacher-epochs"),
        ("binary", "gives 1 numbers a position"),
    ],
)
def test_what_cannot_teach_is_refused_with_its_reason(
    factory: str, reason: str, data: ImageData, factories: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=reason):
        load(f"{factories}:{factory}", data, tmp_path)


@pytest.mark.parametrize("name", ["timm:resnet18", "open_clip:ViT-B-32", "cifar_resnet20"])
def test_a_teacher_of_classes_of_images_is_refused_by_name(
    name: str, data: ImageData, tmp_path: Path
) -> None:
    text = refusal(name, data, tmp_path)
    assert "gives one class an image, and the data 'set' have one a pixel" in text
    assert "smp:ARCHITECTURE/ENCODER" in text
    assert "timm:NAME" not in text


def test_a_segmenter_is_refused_by_name_for_classes_of_images(tmp_path: Path) -> None:
    text = refusal("smp:unet/resnet18", toy_data(channels=3), tmp_path)
    assert "gives one class a pixel, and the data 'toy' have one an image" in text
    assert "timm:NAME" in text
    assert "smp:ARCH" not in text


def segmenter(name: str, classes: int) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(0)
    network: nn.Module = get_model(
        name, weights=None, weights_backbone=None, num_classes=classes
    ).eval()
    return network


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_a_segmenter_of_torchvision_takes_a_file(
    name: str, data: ImageData, tmp_path: Path
) -> None:
    network = segmenter(name, 3)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    teacher = load(f"torchvision:{name}", data, tmp_path, weights=str(tmp_path / "w.pt"))
    images = data.val.at(slice(2))
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(teacher.preprocess(images))["out"])
    assert teacher.preprocess.size == data.size
    outputs = teacher.features(images)
    assert len(outputs.stages) > 1
    assert taught(data, [teacher], method="fitnet+kd")["fitnet"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50"])
def test_a_large_segmenter_of_torchvision_shows_its_stages_before_its_auxiliary_head(
    name: str, data: ImageData, tmp_path: Path
) -> None:
    state = segmenter(name, 21).state_dict()
    state |= {"aux_classifier.4.bias": torch.zeros(21)}  # as in files with an auxiliary head
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SpecError, match="knows none of the 3 classes"):
        load(f"torchvision:{name}", data, tmp_path, weights=str(tmp_path / "w.pt"))
    torch.save(segmenter(name, 3).state_dict(), tmp_path / "w.pt")
    teacher = load(f"torchvision:{name}", data, tmp_path, weights=str(tmp_path / "w.pt"))
    outputs = teacher.features(data.val.at(slice(2)))
    assert outputs.logits.shape == (2, 3, 8, 8)  # output stride 8, not resized
    assert [tuple(stage.shape[2:]) for stage in outputs.stages][-1] == (8, 8)


def test_a_segmenter_that_torchvision_has_not_is_refused_with_those_it_has(
    data: ImageData, tmp_path: Path
) -> None:
    text = refusal("torchvision:resnet18", data, tmp_path)
    assert "no segmentation model 'resnet18'" in text
    assert "fcn_resnet50" in text


class TwoHeads(nn.Module):
    """An auxiliary head is called after the one that answers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU())
        self.main, self.aux = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        deep = self.body(x)
        return {"out": self.main(deep), "aux": self.aux(deep)}


def test_the_head_is_the_one_that_answers() -> None:
    tapped = Tapped(TwoHeads(), in_channels=1, resolution=8, is_dense=True)
    assert tapped.head is not None
    assert tapped.head.name == "main"
    assert tapped.is_linear
    with pytest.raises(SpecError, match="a classifier must answer with logits"):
        Tapped(TwoHeads(), in_channels=1, resolution=8)


@pytest.mark.parametrize("name", ["unet/resnet18", "fpn/resnet18", "segformer/mit_b0"])
def test_networks_of_smp_take_a_file(name: str, data: ImageData, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    arch, encoder = name.split("/")
    network = smp.create_model(arch, encoder, encoder_weights=None, classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    teacher = load(f"smp:{name}", data, tmp_path, weights=str(tmp_path / "w.pt"))
    images = data.val.at(slice(2))
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(teacher.preprocess(images)))
    assert taught(data, [teacher], method="fitnet+kd")["fitnet"] > 0


def test_an_unknown_network_of_smp_is_refused_by_name(data: ImageData, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    assert "(did you mean 'unet'?)" in refusal("smp:unett/resnet18", data, tmp_path, epochs=1)
    assert "smp does not build unet on 'nope'" in refusal("smp:unet/nope", data, tmp_path, epochs=1)


def test_smp_needs_weights_or_epochs(data: ImageData, tmp_path: Path) -> None:
    text = refusal("smp:unet/resnet18", data, tmp_path)
    assert "needs --teacher-weights FILE, or --teacher-epochs N" in text
