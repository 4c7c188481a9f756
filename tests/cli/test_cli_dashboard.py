"""The dashboard in a browser, on a study that was run: what is ours is there, all of it local."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from shell import Shell, start

pytestmark = pytest.mark.browser


@contextmanager
def served(shell: Shell, name: str) -> Iterator[str]:
    """Give the address of the dashboard on a study, once it is printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with start(["dashboard", name, "--out", str(shell.out), "--port", port]) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline().endswith(
                f": http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
            )
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=20)
    assert server.returncode == 0


def test_the_dashboard_shows_our_metrics_front_and_notes_and_loads_nothing_else(
    browser_context: Any, shell: Shell, tmp_path: Path
) -> None:
    answer = shell.run("--name", "seen", "--budget-mflops", "0.05", "--trials", "3")
    assert answer.code == 0, answer
    shipped = json.loads((shell.out / "seen" / "front.json").read_text())["shipped"]["trial"]
    expected: list[str] = []
    requested: list[str] = []
    browser_context.on("request", lambda request: requested.append(request.url))
    page = browser_context.new_page()
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.on("console", lambda message: expected.append(message.text))
    page.on("pageerror", lambda error: expected.append(str(error)))
    with served(shell, "seen") as address:
        page.goto(address)
        page.get_by_text("1. seen").click()
        figure = page.locator(".js-plotly-plot", has_text="Front of seen, within 50 k FLOPs")
        figure.locator(".points path").first.wait_for()
        legend = set(figure.locator(".legendtext").all_text_contents())
        assert legend >= {"front", "control", "teacher", "to ship"}
        shown = " ".join(page.locator("body").inner_text().split())
        assert "Objective X: accuracy" in shown
        assert "Objective Y: flops" in shown
        page.screenshot(path=tmp_path / "study.png", full_page=True)
        page.goto(f"{page.url}/note")
        page.get_by_text(f"Ship trial {shipped}").wait_for()
        page.get_by_text("of validation accuracy over the same student").first.wait_for()
        page.screenshot(path=tmp_path / "note.png", full_page=True)
        assert {urlsplit(url).netloc for url in requested} == {urlsplit(address).netloc}
    assert expected == []
