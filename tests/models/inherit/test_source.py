"""Weights come from a file, a cache or a server; a missing one is one message within seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torchvision.models import ResNet18_Weights

from kdsearch.errors import SpecError
from kdsearch.models.inherit import source
from kdsearch.models.inherit.source import file_of, key_of, locate, read_files


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_files_are_read_by_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    one.touch(), two.touch()
    found = read_files(f"timm:resnet18={one}, lite0={two}")
    assert found == {"timm:resnet18": one, "lite0": two}
    assert file_of("timm:resnet18.a1_in1k", found) == one
    assert file_of("timm:lite0", found) == two
    assert file_of("torchvision:resnet18", found) is None
    assert read_files(str(one), "--student-weights", sole="vit") == {"vit": one}
    assert read_files(None) == {}


@pytest.mark.parametrize("text", ["resnet18", "=a.pth", "resnet18="])
def test_a_file_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="expected NAME=FILE"):
        read_files(text)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match=r"there is no file .no\.pth"):
        read_files("lite0=no.pth")


def test_a_key_follows_the_content(tmp_path: Path) -> None:
    file, other = tmp_path / "a.pth", tmp_path / "b.pth"
    file.write_bytes(b"weights"), other.write_bytes(b"weights")
    before = key_of(file)
    assert before == key_of(other) == "9a129038d9a00aed"  # sha256sum
    file.write_bytes(b"Weights!")
    assert key_of(file) != before


def test_a_cached_file_needs_no_server(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_open", lambda server: pytest.fail("asked a server"))
    file = empty_caches / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save({}, file)
    assert locate(["torchvision:resnet18"], {}) == {"torchvision:resnet18": file}


def test_one_message_names_all_that_is_missing(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SpecError) as error:
        locate(["timm:resnet18", "torchvision:resnet18", "mine"], {})
    text = str(error.value)
    assert f"Download {constants.ENDPOINT}/timm/resnet18.a1_in1k/resolve/main/" in text
    assert "give --pretrained-weights timm:resnet18=FILE" in text
    assert f"Download {ResNet18_Weights.DEFAULT.url} " in text
    assert "no pretrained weights of 'mine': give --pretrained-weights mine=FILE" in text


def test_what_one_server_did_not_send_is_one_sentence_and_a_line_for_each_file(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = constants.ENDPOINT
    with pytest.raises(SpecError) as error:
        locate(["timm:resnet18", "timm:resnet34"], {})
    assert str(error.value).splitlines() == [
        "the pretrained weights of timm:resnet18 and timm:resnet34 are not on this machine, and "
        f"{hub} cannot send them (HF_HUB_OFFLINE is set). Download these elsewhere and give "
        "--pretrained-weights timm:resnet18=FILE,timm:resnet34=FILE, or start from scratch: "
        "student.init scratch",
        f"  timm:resnet18: {hub}/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
        f"  timm:resnet34: {hub}/timm/resnet34.a1_in1k/resolve/main/model.safetensors",
    ]


def test_a_silent_server_is_not_waited_for(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(source, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(source, "_silent", {})
    tried = []

    def silent(server: str) -> None:
        tried.append(server)
        time.sleep(20)

    monkeypatch.setattr(source, "_open", silent)
    began = time.perf_counter()
    with pytest.raises(SpecError, match=r"no answer within 0.2 s"):
        locate(["torchvision:resnet18", "torchvision:resnet34"], {})
    assert time.perf_counter() - began < 10
    assert len(tried) == 1
