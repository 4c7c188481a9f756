from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import Study, make_study, rankings, surrounded

from kdsearch.report.page import render

pytestmark = pytest.mark.browser
POINTS = "#front .scatterlayer .points path"
BOTTOM = """() => {  // of the plot of the front, in pixels of the screen
    const figure = document.getElementById("front");
    const axis = figure._fullLayout.yaxis;
    return figure.getBoundingClientRect().y + axis._offset + axis._length;
}"""


class Opened:
    """An open report, with its console messages and its requests."""

    def __init__(self, context: Any, path: Path, study: Study, **size: int) -> None:
        summary, records = study
        html = render(summary, records, rankings=rankings(records), notes=[], command="kdsearch")
        path.write_text(html, encoding="utf-8")
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page = page = context.new_page()
        if size:
            page.set_viewport_size(size)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: self.messages.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        self._devtools = context.new_cdp_session(page)
        self._devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri())

    def busy(self) -> float:
        """Return the seconds of CPU that the page's main thread has taken."""
        metrics = self._devtools.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    def settle(self) -> None:
        """Scroll through the page, so that every figure is drawn."""
        for figure in self.page.locator(".figure").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".main-svg").first.wait_for()


def test_the_page_works_offline_in_a_browser(browser_context: Any, tmp_path: Path) -> None:
    study = surrounded(make_study(pruned=3, name="<script>alert(1)</script>"))
    path = tmp_path / "report.html"
    opened = Opened(browser_context, path, study)
    page = opened.page
    page.wait_for_selector("#front .points path")

    # 20 complete, 3 pruned, 6 rejected, 2 controls, the teacher, the ring around the best
    assert page.locator(POINTS).count() == 33
    assert page.locator("#front .yerror").count() == len(study[0].front) + 2 + 1
    assert page.locator("#front .xerror").count() == len(study[0].front) + 2
    assert page.locator("h1").inner_text() == "<script>alert(1)</script>"
    opened.settle()
    assert page.locator(".figure").count() == page.locator(".js-plotly-plot").count() == 8
    _check_hover(page)
    _check_axis(page)
    _check_range(page)
    _check_sorting(page, len(study[1]))
    _check_filter(page, study)
    _check_details(page, study)
    _check_theme(page)
    _check_modebar(page)  # last: the notice of its download lies over the marks
    page.screenshot(path=tmp_path / "dark.png", full_page=True)
    assert opened.messages == []
    outside = [
        url for url in opened.requests if not url.startswith("blob:null/")
    ]  # the image it drew
    assert outside == [path.as_uri()]


@pytest.mark.parametrize("width", [375, 1200])
@pytest.mark.parametrize(
    "kinds",
    [
        {"complete": 0, "rejected": 0, "failed": 0},
        {"complete": 1, "rejected": 0, "failed": 0, "controls": 0, "epochs": 1},
        {"complete": 0, "rejected": 3, "failed": 0},
        {"pruned": 4},
    ],
    ids=["none", "one", "rejected", "many"],
)
def test_nothing_is_wider_than_the_screen(
    browser_context: Any, tmp_path: Path, width: int, kinds: dict[str, int]
) -> None:
    study = surrounded(make_study(**kinds))
    opened = Opened(browser_context, tmp_path / "report.html", study, width=width, height=844)
    opened.settle()
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for caption in page.locator("caption span").all():  # wraps, however wide its table is
        box = caption.bounding_box()
        assert box is None or 0 <= box["x"] < box["x"] + box["width"] <= width
    for figure in page.locator(".figure").all():
        box = figure.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= width
        for text in figure.locator(".shape-label text, .xtitle, .ytitle").all():
            inner = text.bounding_box()
            assert box["y"] - 1 <= inner["y"], text.text_content()
            assert inner["y"] + inner["height"] <= box["y"] + box["height"] + 1
    for figure in page.locator(".figure").all():  # the tool buttons are over nothing
        bar, drawn = figure.locator(".modebar").bounding_box(), figure.bounding_box()
        assert bar["y"] + bar["height"] <= drawn["y"]
        above = figure.locator("xpath=preceding-sibling::*[1]")
        if above.count() and (box := above.bounding_box()):
            assert box["y"] + box["height"] <= bar["y"] + 1
    for label in page.locator("#front .shape-label text").all():  # none reaches into the ticks
        bottom, inner = page.evaluate(BOTTOM), label.bounding_box()
        assert inner["y"] + inner["height"] <= bottom + 2, label.text_content()
    assert opened.messages == []


def test_every_control_is_reachable_by_keyboard(browser_context: Any, tmp_path: Path) -> None:
    opened = Opened(browser_context, tmp_path / "report.html", surrounded(make_study()))
    opened.settle()
    page = opened.page
    wanted = page.evaluate(
        "[...document.querySelectorAll('button, summary, input, [tabindex=\"0\"]')]"
        ".filter(one => one.checkVisibility() && !one.closest('tbody, .figure'))"
        ".map((one, i) => one.dataset.seen = String(i))"
    )
    assert len(wanted) > 15
    page.evaluate("scrollTo(0, 0)")
    reached = set()
    for _ in range(400):  # the buttons of the figures and of 30 trials are stops too
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.seen"))
        if reached >= set(wanted):
            return
    assert set(wanted) - reached == set()


@pytest.mark.parametrize(("trials", "seconds", "megabytes"), [(1_000, 3, 8), (5_000, 6, 10)])
def test_a_large_study_opens_quickly(
    browser_context: Any, tmp_path: Path, trials: int, seconds: float, megabytes: float
) -> None:
    kinds = {"complete": 0.6, "rejected": 0.2, "pruned": 0.18, "failed": 0.02}
    study = surrounded(make_study(**{kind: int(share * trials) for kind, share in kinds.items()}))
    path, took = tmp_path / "report.html", []
    for _ in range(3):
        opened = Opened(browser_context, path, study)
        opened.page.wait_for_selector("#front .points path")
        took.append((opened.busy(), opened.page.evaluate("performance.now()") / 1_000))
        opened.page.close()
    busy, wall = (min(values) for values in zip(*took, strict=True))
    size = path.stat().st_size / 1e6
    print(f"{trials} trials: {size:.1f} MB, first plot: {busy:.2f} s of CPU, {wall:.2f} s by clock")
    assert size < megabytes
    assert busy < seconds  # the clock also counts what else the machine does


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


def _middle(page: Any, name: str) -> tuple[float, float]:
    """Return the middle of the first mark of a kind."""
    page.locator("#front").scroll_into_view_if_needed()
    place = page.evaluate(
        f"document.getElementById('front')._fullData.find(t => t.name === '{name}').uid"
    )
    box = page.locator(f"#front .trace{place} .points path").first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _check_hover(page: Any) -> None:
    x, y = _middle(page, "teacher")
    page.mouse.move(x - 30, y)
    page.mouse.move(x, y, steps=5)
    page.wait_for_selector("#front .hoverlayer text")
    hover = page.locator("#front .hoverlayer").text_content()
    assert "teacher resnet34" in hover
    assert "validation accuracy" in hover


def _check_axis(page: Any) -> None:
    page.locator(".choice button", has_text="FLOPs").press("Enter")
    axis = page.evaluate("document.getElementById('front').layout.xaxis")
    assert "multiply-adds" in axis["title"]["text"]
    assert page.locator(POINTS).count() == 33
    labels = page.locator("#front .shape-label").all_text_contents()
    assert labels == ["small", "large"]
    assert page.locator("#front .xerror").count() == 0
    page.locator(".choice button", has_text="latency").press("Enter")


def _check_range(page: Any) -> None:
    low = "document.getElementById('front').layout.yaxis.range[0]"
    close = page.evaluate(low)
    page.locator("#whole").press("Enter")
    assert page.evaluate(low) < close
    page.locator("#whole").press("Enter")
    assert page.evaluate(low) == close


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


def _check_filter(page: Any, study: Study) -> None:
    page.locator("#filter").fill("Rejected  student.resolution=16")
    wanted = {
        str(record.number)
        for record in study[1]
        if record.state == "rejected" and record.params["student.resolution"] == 16
    }
    assert 0 < len(wanted) < 6
    numbers = page.locator(".sortable tbody td:first-child").all_text_contents()
    assert set(numbers) == wanted
    shown = page.locator("#shown")
    assert shown.inner_text() == f"{len(wanted)} of {len(study[1])} rows"
    page.locator("#filter").fill("")
    rows = len(study[1])
    counted = shown.inner_text().replace("\u00a0", " ")
    assert counted == f"{rows} rows: {rows - 2} trials, 2 controls"


def _check_details(page: Any, study: Study) -> None:
    """A click on a point and on the number in the table show the same configuration."""
    page.mouse.click(*_middle(page, "rejected"))
    page.wait_for_selector("dialog[open]")
    shown = page.locator("#detail dl").inner_text()
    number = page.locator("#detail h2").inner_text().removeprefix("Trial ")
    assert [name for name in study[1][int(number)].params if name not in shown] == []
    page.keyboard.press("Escape")
    page.locator(f"[aria-label='configuration of trial {number}']").press("Enter")
    assert page.locator("#detail dl").inner_text() == shown
    page.locator("#detail button").press("Enter")
    assert page.locator("dialog[open]").count() == 0


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
