"""Every format: written, loaded in a fresh process by its runtime alone, near its network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from kdsearch.deploy import runtimes
from kdsearch.deploy.formats import FORMATS, get
from kdsearch.deploy.formats._program import program_of
from kdsearch.deploy.formats.base import EXACT, ROUNDED, Agreement, Source, Tolerance, agreement_of
from kdsearch.deploy.formats.onnx import to_onnx
from kdsearch.errors import ExportError, SpecError
from kdsearch.tasks.classification import Classification

TASK = Classification()

SHAPE = (3, 16, 16)
ROOT = Path(__file__).parents[3]
LITERT = ROOT / "results" / ".cache" / "litert-env"
ANSWER = """
import sys
from pathlib import Path
import numpy as np
from kdsearch.deploy import runtimes
run = runtimes.load(sys.argv[1], Path(sys.argv[2]))
images = np.load(sys.argv[3])
seven = np.concatenate([run(np.ascontiguousarray(images[i : i + 7])) for i in range(0, 70, 7)])
assert run(images).shape[0] == 70
one = np.concatenate([run(images[i : i + 1]) for i in range(70)])
np.save(sys.argv[4], np.stack([one, seven]))
print("torch" in sys.modules)
"""


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 3),
    )


def vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3
    )


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise with one of three colours strong, and which: what a short training learns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randn(n, *SHAPE, generator=generator)
    images[torch.arange(n), labels] += 1
    return images, labels


def trained(net: nn.Module) -> nn.Module:
    """Move every weight away from where it began, zero gains above all, and learn the colours."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim <= 1:
                weight.add_(0.3 * torch.rand(weight.shape))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    images, labels = pictures(96, seed=3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.train()(images), labels).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[cnn, vit])
def source(request, tmp_path_factory) -> Source:
    net = trained(request.param())
    folder = tmp_path_factory.mktemp(request.param.__name__)
    to_onnx(net, input_shape=SHAPE, path=folder / "student.onnx", metadata={"classes": '["a"]'})
    return Source(
        network=net,
        input_shape=SHAPE,
        onnx=folder / "student.onnx",
        calibration_images=lambda: pictures(96, seed=3)[0].split(16),
    )


def convert_to_litert(source: Source) -> None:
    """Let the script convert where its environment has been made."""
    if (LITERT / ".ok").is_file():
        get("torch_export")().write(source, source.onnx.with_name("student.pt2"))
        line = ["scripts/to_litert.sh", str(source.onnx.parent), str(LITERT)]
        subprocess.run(line, cwd=ROOT, capture_output=True, check=True)


def written(name: str, source: Source, folder: Path) -> Path:
    """Write the file of a format, or skip where its packages are not installed."""
    kind = get(name)
    path = folder / f"student{kind.suffix}"
    if name == "litert" and not source.onnx.with_name("student.tflite").is_file():
        convert_to_litert(source)
    try:
        kind().write(source, path)
        runtimes.require(kind.runtime)
    except runtimes.Unavailable as error:
        pytest.skip(str(error))
    except ExportError as error:
        if name != "ncnn" or "ncnn has no layer" not in str(error):
            raise
        assert isinstance(source.network, timm.models.VisionTransformer)
        pytest.skip(str(error))
    return path


def answers(name: str, path: Path, images: Tensor, folder: Path) -> tuple[Tensor, bool]:
    """Return logits [2, N, K], singly and in sevens, of a fresh process; whether it has torch."""
    inputs, outputs = folder / "images.npy", folder / "logits.npy"
    np.save(inputs, images.numpy())
    line = [
        sys.executable,
        "-c",
        ANSWER,
        get(name).runtime,
        str(path),
        str(inputs),
        str(outputs),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(outputs)), json.loads(done.stdout.splitlines()[-1].lower())


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_new_process_gives_the_answers_of_the_network(name, source, tmp_path):
    path = written(name, source, tmp_path)
    images, labels = pictures(70, seed=1)

    (singly, sevens), has_torch = answers(name, path, images, tmp_path)

    expected = source.network(images)
    for found in (singly, sevens):
        agreement = agreement_of(expected, found, TASK)
        assert get(name).tolerance.accepts(agreement), agreement
        right = (found.argmax(1) == labels).float().mean()
        assert (expected.argmax(1) == labels).float().mean() > 0.9
        assert right >= (expected.argmax(1) == labels).float().mean() - 0.03
    assert has_torch == (get(name).runtime in ("torch_export", "executorch"))


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_file_does_not_say_where_it_was_made(name, source, tmp_path):
    path = written(name, source, tmp_path)

    for file in tmp_path.iterdir():
        assert str(Path(torch.__file__).parent).encode() not in file.read_bytes(), file
        assert str(Path(__file__).parent).encode() not in file.read_bytes(), file
    assert path.is_file()


@pytest.mark.parametrize("name", FORMATS.names())
def test_writing_prints_nothing_and_leaves_the_network(name, source, tmp_path, capfd):
    before = {key: value.clone() for key, value in source.network.state_dict().items()}
    capfd.readouterr()

    written(name, source, tmp_path)

    assert capfd.readouterr() == ("", "")
    for key, value in source.network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("name", "least", "most"), [("onnx_fp16", 0.4, 0.7), ("onnx_int8", 0.2, 0.6)]
)
def test_rounded_weights_are_smaller_by_what_they_lost(name, least, most, tmp_path):
    net = trained(nn.Sequential(nn.Flatten(), nn.Linear(768, 128), nn.ReLU(), nn.Linear(128, 3)))
    whole = tmp_path / "whole.onnx"
    to_onnx(net, input_shape=SHAPE, path=whole, metadata={})
    source = Source(
        network=net,
        input_shape=SHAPE,
        onnx=whole,
        calibration_images=lambda: pictures(96, seed=3)[0].split(16),
    )

    path = written(name, source, tmp_path)

    assert least < path.stat().st_size / whole.stat().st_size < most


@pytest.mark.parametrize("name", ["onnx_fp16", "onnx_int8"])
def test_metadata_outlives_the_rounding(name, source, tmp_path):
    session = runtimes.load("onnxruntime", written(name, source, tmp_path))._session

    assert session.get_modelmeta().custom_metadata_map["classes"] == '["a"]'


def test_int8_weights_have_a_scale_for_each_output_channel(source, tmp_path):
    import onnx

    proto = onnx.load(written("onnx_int8", source, tmp_path))

    scales = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    vectors = [a for name, a in scales.items() if name.endswith("_scale") and a.size > 1]
    kinds = {onnx.numpy_helper.to_array(t).dtype for t in proto.graph.initializer}
    assert vectors
    assert np.dtype(np.int8) in kinds


def test_tolerance_refuses_what_is_far_and_what_is_no_number():
    near = Agreement(same=1.0, max_abs=1e-6, max_rel=1e-5, n=9)
    far = Agreement(same=1.0, max_abs=1e-2, max_rel=2e-4, n=9)
    wrong = Agreement(same=0.96, max_abs=1.0, max_rel=1.0, n=9)
    nan = Agreement(same=1.0, max_abs=float("nan"), max_rel=float("nan"), n=9)

    assert [EXACT.accepts(a) for a in (near, far, wrong, nan)] == [True, False, False, False]
    assert [ROUNDED.accepts(a) for a in (near, far, wrong)] == [True, True, False]
    assert str(Tolerance(same=0.9)) == "same >= 0.9"


def test_the_error_for_an_unknown_format_names_the_nearest():
    message = r"unknown format 'onnx-int9' \(did you mean 'onnx-int8'\?\); known: .* onnx-fp16, .*"
    with pytest.raises(SpecError, match=message) as caught:
        get("onnx-int9")
    for name in str(caught.value).partition("known: ")[2].split(", "):
        assert "_" not in name
        assert get(name) is get(name.replace("-", "_"))


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, -1)


def test_a_network_of_one_batch_size_has_no_program():
    with pytest.raises(ExportError, match="FixedBatch does not export at 3x16x16"):
        program_of(FixedBatch(), input_shape=SHAPE)


def test_the_program_of_few_zeros_is_not_padded_by_its_example(tmp_path):
    net = trained(cnn())
    source = Source(network=net, input_shape=SHAPE, onnx=tmp_path, calibration_images=list)

    path = written("torch_export", source, tmp_path)

    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", runtimes.RUNTIMES.names())
def test_a_damaged_file_is_an_export_error(name, tmp_path):
    (tmp_path / "torn").write_bytes(b"x" * 300)
    try:
        runtimes.require(name)
    except runtimes.Unavailable as error:
        pytest.skip(str(error))

    with pytest.raises(ExportError, match="torn"):
        runtimes.load(name, tmp_path / "torn")
    with pytest.raises(ExportError, match="there is no file"):
        runtimes.load(name, tmp_path / "absent")


ALONE = {
    "onnxruntime": (
        ["onnxruntime", "numpy"],
        """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
run = lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]
""",
    ),
    "openvino": (
        ["openvino", "numpy"],
        """
import openvino
hint = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = openvino.Core().compile_model(path, "CPU", hint)
run = lambda x: compiled(x)[0]
""",
    ),
    "torch_export": (
        ["torch==2.15.0", "numpy"],
        """
import torch
program = torch.export.load(path).module()
run = lambda x: program(torch.from_numpy(x)).detach().numpy()
""",
    ),
    "executorch": (
        ["torch==2.15.0", "executorch", "numpy"],
        """
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(path)
forward = program.load_method("forward")
run = lambda x: forward.execute([torch.from_numpy(x)])[0].numpy()
""",
    ),
    "mnn": (
        ["MNN", "numpy"],
        """
import MNN
network = MNN.nn.load_module_from_file(path, [], [])
def run(x):
    given = MNN.expr.const(x, list(x.shape), MNN.expr.NCHW, MNN.expr.float)
    return MNN.expr.convert(network.onForward([given])[0], MNN.expr.NCHW).read()
""",
    ),
    "ncnn": (
        ["ncnn", "numpy"],
        """
import ncnn
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(path)
net.load_model(path.replace(".param", ".bin"))
def run(x):
    answers = []
    for image in x:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image).clone())
        answers.append(numpy.array(extractor.extract("out0")[1]))
    return numpy.stack(answers)
""",
    ),
    "litert": (
        ["ai-edge-litert", "numpy"],
        """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(path)
interpreter.allocate_tensors()
place = interpreter.get_input_details()[0]["index"]
out = interpreter.get_output_details()[0]["index"]
def run(x):
    answers = []
    for image in x:
        interpreter.set_tensor(place, image[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(out))
    return numpy.concatenate(answers)
""",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", runtimes.RUNTIMES.names())
def test_every_file_runs_where_its_runtime_is_installed_alone(runtime, tmp_path):
    net = trained(cnn())
    whole = tmp_path / "student.onnx"
    to_onnx(net, input_shape=SHAPE, path=whole, metadata={})
    source = Source(
        network=net,
        input_shape=SHAPE,
        onnx=whole,
        calibration_images=lambda: pictures(96, seed=3)[0].split(16),
    )
    packages, code = ALONE[runtime]
    folder = tmp_path / "files"
    folder.mkdir()
    names = [name for name in FORMATS.names() if get(name).runtime == runtime]
    paths = {name: written(name, source, folder) for name in names}
    python = environment(tmp_path / "venv", packages)
    images = pictures(7, seed=1)[0]
    np.save(tmp_path / "x.npy", images.numpy())

    for name, path in paths.items():
        script = (
            f"import numpy\npath = {str(path)!r}\n{code}\n"
            "for module in ('kdsearch', 'timm'):\n"
            "    import importlib.util; assert importlib.util.find_spec(module) is None\n"
            f"numpy.save('y.npy', run(numpy.load('x.npy')))"
        )
        line = [str(python), "-I", "-c", script]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = agreement_of(net(images), torch.from_numpy(np.load(tmp_path / "y.npy")), TASK)
        assert get(name).tolerance.accepts(found), (name, found)


def environment(folder: Path, packages: list[str]) -> Path:
    """Return the interpreter of a fresh environment with these packages, or skip without them."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).is_file():
        pytest.skip("uv is not installed")
    subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    line = [uv, "pip", "install", "-q", "--python", str(python), *packages]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no registry: {done.stderr.strip().splitlines()[-1]}")
    return python
