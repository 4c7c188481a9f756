"""A hub that is out of reach costs a teacher seconds, and only the block that asked is offline."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from kdsearch.models.inherit import source


@pytest.mark.parametrize("why", ["", "no route"])
def test_the_block_alone_is_offline(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "unreachable", lambda _: why)
    before = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    with source.quick_to_fail():
        assert constants.HF_HUB_OFFLINE is bool(why)
        assert socket.getdefaulttimeout() == source.REACH_SECONDS
    assert (constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()) == before


def test_a_silent_hub_costs_seconds_not_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(source, "REACH_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with source.quick_to_fail(), pytest.raises(OSError, match=r"offline|cache|connect"):
            hf_hub_download("timm/no-such-network", "model.safetensors")
    assert time.monotonic() - began < 30
