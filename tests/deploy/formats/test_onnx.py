"""The file says what the model says, at any batch size, and a wrong file is found out."""

from __future__ import annotations

import re

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from kdsearch.deploy.formats.onnx import OPSET, evaluate, onnx_bytes, to_onnx, verify
from kdsearch.deploy.latency import measure
from kdsearch.deploy.runtimes.onnxruntime import open_session
from kdsearch.deploy.targets import parse_target
from kdsearch.errors import CostError, ExportError
from kdsearch.tasks.classification import Classification

TASK = Classification()

SHAPE = (3, 16, 16)


def tiny_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 5),
    )


def tiny_vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5
    )


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight and statistic away from its initial value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        for _ in range(3):
            net.train()(2 * torch.randn(8, *SHAPE, generator=generator) + 1)
    return net


def images(n: int = 64) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net = trained(tiny_cnn())
    path = tmp_path_factory.mktemp("cnn") / "new" / "student.onnx"
    to_onnx(net, input_shape=SHAPE, path=path, metadata={"classes": "cat,dog", "mean": "0.5"})
    return net, path


def test_file_agrees_with_a_trained_cnn(exported):
    net, path = exported

    agreement = verify(net, path, images(200).split(64), TASK)

    assert agreement.same == 1.0
    assert agreement.max_rel < 1e-4
    assert agreement.n == 200


def test_file_agrees_with_a_trained_vit(tmp_path):
    net = trained(tiny_vit())
    to_onnx(net, input_shape=SHAPE, path=tmp_path / "vit.onnx", metadata={})

    assert verify(net, tmp_path / "vit.onnx", [images()], TASK).max_rel < 1e-4


def test_multihead_attention_exports_and_prints_nothing(tmp_path, capfd):
    net = trained(
        VisionTransformer(
            image_size=16,
            patch_size=8,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=16,
            num_classes=5,
        )
    )
    to_onnx(net, input_shape=SHAPE, path=tmp_path / "vit.onnx", metadata={})

    assert verify(net, tmp_path / "vit.onnx", [images()], TASK).max_rel < 1e-4
    assert measure(onnx_bytes(net, input_shape=SHAPE), shape=SHAPE).ms > 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
def test_file_takes_any_batch(exported, batch):
    net, path = exported
    session = open_session(path)

    (logits,) = session.run(["logits"], {"input": images(batch).numpy()})

    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), net.eval()(images(batch)))
    assert session.get_inputs()[0].shape == ["batch", *SHAPE]


def test_metadata_comes_back_from_the_runtime(exported):
    _, path = exported

    kept = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map

    assert kept == {"classes": "cat,dog", "mean": "0.5"}


def test_file_stands_alone_and_does_not_say_where_it_was_made(exported):
    _, path = exported
    proto = onnx.load(path)

    assert [file.name for file in path.parent.iterdir()] == ["student.onnx"]
    assert proto.opset_import[0].version == OPSET
    assert b".py" not in path.read_bytes()
    onnx.checker.check_model(proto, full_check=True)


def test_export_and_pricing_leave_the_model_as_it_was(tmp_path):
    net = tiny_cnn().train()
    net[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    to_onnx(net, input_shape=SHAPE, path=tmp_path / "a.onnx", metadata={})
    onnx_bytes(net, input_shape=SHAPE)

    assert torch.equal(torch.rand(1), expected)  # the global generator was not touched
    assert [module.training for module in net.modules()] == flags
    assert all(weight.requires_grad for weight in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])


def test_verify_finds_a_file_of_other_weights(exported):
    _, path = exported

    with pytest.raises(ExportError, match=r"disagrees with its Sequential: Agreement\(same=0\."):
        verify(trained(tiny_cnn(), seed=9), path, [images()], TASK)


def test_verify_finds_a_small_error_that_keeps_every_prediction(exported):
    net, path = exported
    scaled = nn.Sequential(net, Scale(1.01))

    with pytest.raises(ExportError, match=r"same=1\.0.*max_rel <= 0\.0001"):
        verify(scaled, path, [images()], TASK)


def test_verify_refuses_nan(exported):
    net, path = exported

    with pytest.raises(ExportError, match="nan"):
        verify(nn.Sequential(net, Scale(float("nan"))), path, [images()], TASK)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


def test_verify_tries_a_batch_of_one_and_one_of_many(tmp_path):
    # the file's logits depend on the batch size: as Constant says for 7, not for a single image
    net = BatchSized()
    to_onnx(net, input_shape=SHAPE, path=tmp_path / "a.onnx", metadata={})

    with pytest.raises(ExportError, match="disagrees with its Constant"):
        verify(Constant(), tmp_path / "a.onnx", [images(8)], TASK)


class BatchSized(nn.Module):
    """Logits that lean on how many images come together."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) * image.shape[0]


class Constant(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) * 7


def test_accuracy_is_the_share_of_labels_that_the_file_hits(exported):
    net, path = exported
    with torch.no_grad():
        labels = net.eval()(images(100)).argmax(1)
    labels[:25] = (labels[:25] + 1) % 5

    parts = zip(images(100).split(30), labels.split(30), strict=True)
    assert evaluate(path, parts, TASK)[0] == 0.75


def test_images_of_another_shape_are_an_export_error(exported):
    with pytest.raises(ExportError, match=re.escape("cannot run images (8, 3, 8, 8)")):
        evaluate(exported[1], [(torch.zeros(8, 3, 8, 8), torch.zeros(8))], TASK)


class TwoOutputs(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image.mean((2, 3)), image


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, -1)


class ConstantBatch(nn.Module):
    """`len` is a plain int: the exporter takes 2 for a constant, and says nothing."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) * torch.ones(len(image), 1)


class FixedShape(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) @ torch.ones(4, 2)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (TwoOutputs(), "TwoOutputs returns 2 tensors"),
        (FixedBatch(), "FixedBatch has a fixed batch size: batch images give 2 rows"),
        (ConstantBatch(), "ConstantBatch has a fixed batch size: 2 images give 2 rows"),
        (FixedShape(), "FixedShape does not export to ONNX at 3x16x16"),
    ],
)
def test_model_that_cannot_be_shipped_is_refused_and_no_file_is_left(net, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        to_onnx(net, input_shape=SHAPE, path=tmp_path / "a.onnx", metadata={})

    assert not list(tmp_path.iterdir())


def test_pricing_refuses_a_model_that_does_not_run():
    with pytest.raises(CostError, match="FixedShape does not export to ONNX at 3x16x16"):
        onnx_bytes(FixedShape(), input_shape=SHAPE)


def test_pricing_wakes_what_initialisation_put_to_sleep():
    net = timm.create_model("resnet18", num_classes=5, zero_init_last=True)
    asleep = [name for name, weight in net.named_parameters() if not weight.any()]
    assert asleep

    proto = onnx.load_from_string(onnx_bytes(net, input_shape=(3, 32, 32)))

    weights = [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    assert all(weight.any() for weight in weights)
    assert len(proto.SerializeToString()) > 0.99 * 4 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("make", [tiny_cnn, tiny_vit])
def test_pricing_file_runs_at_the_wanted_shape(make):
    first = onnx_bytes(make(), input_shape=SHAPE)

    assert measure(first, shape=SHAPE, target=parse_target("cpu", batch=3)).ms > 0


def test_pricing_works_on_maps_of_one_pixel():
    net = nn.Sequential(nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    assert measure(onnx_bytes(net, input_shape=SHAPE), shape=SHAPE).ms > 0


def test_pricing_is_the_same_file_each_time():
    net = tiny_cnn()

    assert onnx_bytes(net, input_shape=SHAPE) == onnx_bytes(net, input_shape=SHAPE)
