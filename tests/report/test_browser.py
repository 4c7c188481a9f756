from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import importances, make_study

from kdsearch.report import render, write

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture
def browser_context(tmp_path: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS.split(),
            color_scheme="light",
        )
        yield context
        context.close()


def test_the_page_works_offline_in_a_browser(browser_context: Any, tmp_path: Path) -> None:
    summary, records = make_study(name="<script>alert(1)</script>")
    write(
        tmp_path / "report.html",
        render(summary, records, importances=importances(records), notes=[], command="kdsearch"),
    )
    page = browser_context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#front .points path")

    # 20 complete, 6 infeasible, 2 controls, the teacher, the ring around the best
    assert page.locator("#front .points path").count() == 30
    assert page.locator("h1").inner_text() == "<script>alert(1)</script>"
    _check_modebar(page)
    _check_hover(page)
    _check_axis(page)
    _check_sorting(page, len(records))
    _check_theme(page)
    assert said == []
    outside = [url for url in asked if not url.startswith("blob:null/")]  # the image it drew
    assert outside == [(tmp_path / "report.html").as_uri()]


def _check_modebar(page: Any) -> None:
    """Nothing on the page offers to send the study away."""
    titles = page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
    assert set(titles) == {
        "Download plot as a PNG",
        "Zoom",
        "Pan",
        "Zoom in",
        "Zoom out",
        "Reset axes",
    }
    with page.expect_download() as download:
        page.locator("#front .modebar-btn").first.dispatch_event("click")
    assert download.value.suggested_filename.endswith(".png")


def _check_hover(page: Any) -> None:
    page.locator("#front").scroll_into_view_if_needed()
    point = page.locator("#front .points path").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector("#front .hoverlayer text")
    said = page.locator("#front .hoverlayer").text_content()
    assert "method.name = " in said
    assert "validation accuracy" in said


def _check_axis(page: Any) -> None:
    page.locator(".choice button", has_text="FLOPs").press("Enter")
    axis = page.evaluate("document.getElementById('front').layout.xaxis")
    assert "multiply-adds" in axis["title"]["text"]
    assert page.locator("#front .points path").count() == 30


def _check_sorting(page: Any, rows: int) -> None:
    header = page.locator(".sortable th", has_text="latency")
    column = "rows => rows.map(row => row.cells[5].textContent)"
    for order in ("ascending", "descending"):
        header.locator("button").press("Enter")
        assert header.get_attribute("aria-sort") == order
        cells = page.locator(".sortable tbody tr").evaluate_all(column)
        known = [float(cell) for cell in cells if cell]
        assert known == sorted(known, reverse=order == "descending")
        assert len(cells) == rows
        assert cells[len(known) :] == [""] * (rows - len(known))  # what is missing stays last


def _check_theme(page: Any) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        "document.querySelector('#front .xtick text').style.fill]"
    )
    light = page.evaluate(colours)
    page.locator("#theme").click()
    page.wait_for_function(f"JSON.stringify({colours}) != {light!r}".replace("'[", "["))
    dark = page.evaluate(colours)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
