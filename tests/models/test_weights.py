"""Weights come from any usual file, never run code, and fit as a whole or not at all."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from toy_data import tiny_network

from kdsearch.errors import SpecError, StudyError
from kdsearch.models.weights import fit_weights, read_weights, save_weights

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return tiny_network()


def state() -> State:
    return {name: value.clone() for name, value in network().state_dict().items()}


def to_safetensors(content: State, path: Path) -> Path:
    safetensors.torch.save_file(content, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def to_pickle(content: object, path: Path) -> Path:
    torch.save(content, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def to_old_pickle(content: object, path: Path) -> Path:
    torch.save(content, path.with_suffix(".pth"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pth")


class Tied(nn.Module):
    """Its two layers have one weight; its view and its other view share memory in part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        whole = torch.arange(6.0)
        self.register_buffer("view", whole[:4])
        self.register_buffer("other", whole[2:])


def test_weights_that_changed_since_they_were_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(network(), path, {"fact": "1"})
    assert read_weights(path).keys() == network().state_dict().keys()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpecError, match="changed since it was written"):
        read_weights(path)


def test_tied_weights_and_views_are_written_and_read(tmp_path: Path) -> None:
    module, other = Tied(), Tied()
    save_weights(module, tmp_path / "tied.safetensors")
    found = read_weights(tmp_path / "tied.safetensors")
    assert_same(found, dict(module.state_dict()))
    fit_weights(other, found, where="here")
    assert other.second.weight is other.first.weight
    assert torch.equal(other.first.weight, module.first.weight)
    del found["second.weight"]  # as Hugging Face writes them
    fit_weights(Tied(), found, where="here")
    del found["first.weight"]
    with pytest.raises(SpecError, match=r"2 missing \(first.weight, second.weight\)"):
        fit_weights(Tied(), found, where="here")


WRITERS = [to_safetensors, to_pickle, to_old_pickle]
Write = Callable[[State, Path], Path]


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_kind_of_file_is_read(write: Write, prefix: str, tmp_path: Path) -> None:
    content = {f"{prefix}{name}": value for name, value in state().items()}
    assert_same(read_weights(write(content, tmp_path / "w")), state())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_a_checkpoint_is_unwrapped(wrapper: str, tmp_path: Path) -> None:
    content = {"epoch": 3, "lr": 0.1, wrapper: state()}
    assert_same(read_weights(to_pickle(content, tmp_path / "w")), state())


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    original = network(1).to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "folder" / "w.safetensors"
    save_weights(original, path)
    other = network(2)
    fit_weights(other, read_weights(path), where="w")
    assert_same(dict(other.state_dict()), dict(original.state_dict()))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_weights_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "file" / "w.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(StudyError, match="cannot write"):
            save_weights(network(), path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


class Evil:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {**state(), "more": evil}])
def test_a_pickle_runs_no_code(wrap: Callable[[Evil], object], tmp_path: Path) -> None:
    made = tmp_path / "made"
    files = [to_pickle(wrap(Evil(made)), tmp_path / "w"), tmp_path / "plain.pkl"]
    files[1].write_bytes(pickle.dumps(wrap(Evil(made))))
    for path in files:
        with pytest.raises(SpecError, match="never executed"):
            read_weights(path)
    assert not made.exists()


@pytest.mark.parametrize("write", WRITERS)
def test_a_damaged_file_is_refused_or_refused_by_the_network(write: Write, tmp_path: Path) -> None:
    """Truncated anywhere it is refused; a flipped byte may also hit a number."""
    path = write(state(), tmp_path / "w")
    whole = path.read_bytes()
    rng = random.Random(0)
    for length in {0, 1, 7, 8, 100, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(9))}:
        path.write_bytes(whole[:length])
        with pytest.raises(SpecError, match=path.name):
            fit_weights(network(), read_weights(path), where=path.name)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(min(len(whole), 2000))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with suppress(SpecError):
            fit_weights(network(), read_weights(path), where=path.name)


CONTENTS: dict[str, object] = {
    "a list": [1, 2],
    "nothing": {},
    "numbers": {"epoch": 3},
    "a network's name": "resnet",
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_without_a_state_dict_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="state_dict"):
        read_weights(to_pickle(CONTENTS[kind], tmp_path / "w"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(SpecError, match="there is no weights file"):
            read_weights(path)


def refusal(content: State) -> str:
    with pytest.raises(SpecError) as caught:
        fit_weights(network(), content, where="w.pt")
    return str(caught.value)


def test_what_does_not_fit_is_named() -> None:
    content = state()
    content["7.bias"] = torch.zeros(10)
    content["head.weight"] = content.pop("7.weight")
    assert refusal(content) == (
        "w.pt: the weights do not fit the network: 1 missing (7.weight); "
        "1 unexpected (head.weight); "
        "1 of another shape (7.bias: [10] in the file, [3] in the network)"
    )
    assert "9 missing (0.weight, 1.bias, 1.running_mean, …)" in refusal({"x": torch.zeros(1)})


def test_weights_that_do_not_fit_change_nothing() -> None:
    module = network(1)
    with pytest.raises(SpecError):
        fit_weights(module, {**state(), "more": torch.zeros(1)}, where="w")
    assert_same(dict(module.state_dict()), dict(network(1).state_dict()))


def test_the_count_of_batches_may_be_absent() -> None:
    content = state()
    del content["1.num_batches_tracked"]
    module = network(1)
    fit_weights(module, content, where="w")
    assert torch.equal(module[0].weight, content["0.weight"])


def test_names_left_out_keep_their_values() -> None:
    module = network(1)
    before = module[7].weight.clone()
    fit_weights(
        module,
        {**state(), "7.weight": torch.zeros(1)},
        where="w",
        but=frozenset({"7.weight"}),
    )
    assert torch.equal(module[7].weight, before)
    assert torch.equal(module[0].weight, state()["0.weight"])
