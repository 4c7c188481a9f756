"""A checkpoint's weights are found whatever was saved with them, or it says how to save them."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from toy_data import tiny_network

from kdsearch.errors import SpecError
from kdsearch.models.weights import fit_weights, read_weights

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return tiny_network()


def state(seed: int = 0) -> State:
    return {name: value.clone() for name, value in network(seed).state_dict().items()}


def saved(content: object, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def loaded(content: object, tmp_path: Path, module: nn.Module | None = None) -> tuple[State, str]:
    """Return what a network holds after loading a file, and the notes."""
    notes: list[str] = []
    module = module or network(9)
    weights = read_weights(saved(content, tmp_path), notes.append)
    fit_weights(module, weights, where="w.pt", note=notes.append)
    return dict(module.state_dict()), "; ".join(notes).replace(f"{tmp_path}/", "")


def prefixed(prefix: str, weights: State) -> State:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def refusal(content: object, tmp_path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_weights(saved(content, tmp_path))
    return str(caught.value)


PREFIXES = (
    "module.", "module.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.",
    "net.", "backbone.", "_forward_module.model._orig_mod.", "student.encoder.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_any_name_is_removed(prefix: str, tmp_path: Path) -> None:
    found, notes = loaded(prefixed(prefix, state()), tmp_path)
    assert_same(found, state())
    assert not notes


def test_a_part_compiled_alone_has_its_names_back(tmp_path: Path) -> None:
    inside = {
        f"{n.partition('.')[0]}._orig_mod.{n.partition('.')[2]}": v for n, v in state().items()
    }
    assert_same(loaded(inside, tmp_path)[0], state())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.ModuleDict({"net": net})])
def test_the_network_may_have_the_prefix_and_the_file_none(
    wrap: type[nn.Module], tmp_path: Path
) -> None:
    module = wrap(network(9))
    loaded(state(), tmp_path, module)
    assert_same(dict(next(module.children()).state_dict()), state())


def test_a_lightning_checkpoint_loads_without_its_other_parts(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(
            prefixed("model.", state())
            | {"criterion.weight": torch.ones(3), "acc.n": torch.ones(1)}
        ),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1, "out": PosixPath("runs")},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    }
    found, notes = loaded(content, tmp_path)
    assert_same(found, state())
    assert "the weights under 'model.' are used; 2 tensors of other parts" in notes
    assert "criterion, acc" in notes


def test_a_checkpoint_of_timms_trainer_loads_with_its_average(tmp_path: Path) -> None:
    """As `timm/utils/checkpoint_saver.py` writes it."""
    content = {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": state(0),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{}]},
        "version": 2,
        "args": argparse.Namespace(lr=0.1, data_dir=PosixPath("images")),
        "state_dict_ema": state(1),
        "metric": np.float64(81.2),
    }
    found, notes = loaded(content, tmp_path)
    assert_same(found, state(1))
    assert notes == "w.pt: uses the weights 'state_dict_ema', not 'state_dict'"


@pytest.mark.parametrize(
    ("raw", "average"),
    [("model", "model_ema"), ("state_dict", "ema_state_dict"), ("params", "params_ema"),
     ("net", "ema.module"), ("model", "swa_model")],
)  # fmt: skip
def test_averaged_weights_come_before_others(raw: str, average: str, tmp_path: Path) -> None:
    outer, _, inner = average.partition(".")
    content = {raw: state(0), outer: {inner: state(1), "decay": 0.9} if inner else state(1)}
    found, notes = loaded(content, tmp_path)
    assert_same(found, state(1))
    assert f"uses the weights '{average}', not '{raw}'" in notes


def test_an_average_of_parameters_alone_takes_buffers_from_the_weights(tmp_path: Path) -> None:
    average = {name: value for name, value in state(1).items() if "running" not in name}
    del average["1.num_batches_tracked"]
    found, notes = loaded({"state_dict": state(0), "ema": average}, tmp_path)
    assert_same(found, state(0) | average)
    assert "and 3 tensors that it lacks" in notes


def test_an_averaged_model_of_torch_loads(tmp_path: Path) -> None:
    average = AveragedModel(network(0), use_buffers=True)
    found, notes = loaded(average.state_dict(), tmp_path)
    assert_same(found, state(0))
    assert "(n_averaged)" in notes


@pytest.mark.parametrize("wrapper", ["ema", "weights", "params", "my_very_own_name"])
def test_one_set_of_weights_is_found_under_any_name(wrapper: str, tmp_path: Path) -> None:
    content = {"info": {"epoch": 3}, wrapper: state(), "optim": {"m": {"w": torch.ones(1)}}}
    assert_same(loaded(content, tmp_path)[0], state())


def test_several_sets_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    message = refusal({"student": state(0), "teacher": state(1)}, tmp_path)
    assert "several sets of weights: 'student', 'teacher'" in message
    assert message.splitlines()[1].startswith("Save the one that is meant: torch.save(")


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("a"), np.zeros(2),
     torch.torch_version.TorchVersion("2.9"), PosixPath("a/b"), argparse.Namespace(a=[1])],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_values_beside_the_weights_are_read(value: object, tmp_path: Path) -> None:
    assert_same(loaded({"state_dict": state(), "more": value}, tmp_path)[0], state())


def test_reading_leaves_torchs_own_safe_list_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch keeps a set: it has no order
    loaded({"state_dict": state(), "more": argparse.Namespace()}, tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_whole_model_is_refused_in_two_lines_that_say_how_to_save(tmp_path: Path) -> None:
    first, second = refusal(network(), tmp_path).splitlines()
    assert (
        "holds more than weights (torch.nn.modules.container.Sequential), which is never" in first
    )
    assert second.endswith('torch.save(model.state_dict(), "weights.pt")')


@pytest.mark.filterwarnings("ignore:`torch.jit")  # how these files are made
def test_a_torchscript_program_is_refused_in_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(SpecError) as caught:
        read_weights(path)
    first, second = str(caught.value).splitlines()
    assert "is a TorchScript program, which is never executed" in first
    assert 'torch.save(torch.jit.load("w.pt").state_dict(), "weights.pt")' in second


def test_nan_and_integers_in_place_of_numbers_are_refused(tmp_path: Path) -> None:
    broken = state() | {"7.weight": torch.full((3, 64), float("nan"))}
    assert "holds NaN, in 7.weight" in refusal(broken, tmp_path)
    quantised = state() | {"7.weight": torch.ones(3, 64, dtype=torch.int8)}
    with pytest.raises(SpecError, match=r"1 of integers \(7.weight\)"):
        loaded(quantised, tmp_path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(kind: torch.dtype, tmp_path: Path) -> None:
    half = {n: v.to(kind) if v.is_floating_point() else v for n, v in state().items()}
    found, _ = loaded(half, tmp_path)
    assert found["0.weight"].dtype == torch.float32
    assert torch.equal(found["0.weight"], half["0.weight"].float())


def test_a_folder_names_the_file_inside(tmp_path: Path) -> None:
    safetensors.torch.save_file(state(), tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match=r"did you mean '.*model.safetensors'"):
        read_weights(tmp_path)


def test_auxiliary_heads_may_be_absent_on_either_side() -> None:
    def build(has_aux: bool) -> nn.Module:
        return torchvision.models.googlenet(
            num_classes=3, aux_logits=has_aux, init_weights=False, transform_input=False
        )

    plain, whole = build(False), build(True)
    for source, goal in ((plain, whole), (whole, plain)):
        fit_weights(goal, source.state_dict(), where="w")
        assert torch.equal(source.state_dict()["fc.weight"], goal.state_dict()["fc.weight"])


def test_a_real_architecture_behind_a_prefix_loads_whole() -> None:
    source, goal = (timm.create_model("resnet10t", num_classes=3) for _ in range(2))
    fit_weights(goal, prefixed("lit.net.", source.state_dict()), where="w")
    assert_same(dict(goal.state_dict()), dict(source.state_dict()))
