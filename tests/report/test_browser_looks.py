"""The page in light and dark, on a phone and on paper: no message, no serious finding of axe."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from made_up import make_study, rankings, surrounded
from test_student_layers import FILE

from kdsearch.report.page import render
from kdsearch.study.timeline import Span, arranged

pytestmark = [pytest.mark.browser, pytest.mark.slow]
AXE = "axe-core@4.10.3"
SERIOUS = ("serious", "critical")
SIZES = {"wide": (1400, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the source of axe-core, which npm fetches, or skip."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    line = [npm, "pack", "--silent", AXE]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm has no {AXE}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a page with every section."""
    from dataclasses import replace

    summary, records = surrounded(make_study(complete=40, pruned=4))
    spans = arranged(
        [Span(trial=r.number, begin=10.0 * i, end=10.0 * i + 9) for i, r in enumerate(records)]
    )
    html = render(
        replace(summary, file=FILE),
        records,
        rankings=rankings(records),
        notes=["A note"],
        command="kdsearch run",
        spans=spans,
    )
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    return file


def opened(context: Any, path: Path, size: str, scheme: str) -> tuple[Any, list[str]]:
    """Return the page with every figure drawn, and its console messages."""
    page, messages = context.new_page(), list[str]()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    for figure in page.locator(".figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
    return page, messages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious(
    browser_context: Any, path: Path, axe: str, size: str, scheme: str
) -> None:
    page, messages = opened(browser_context, path, size, scheme)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (each["id"], each["nodes"][0]["html"][:200])
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]
    assert serious == []
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_of_the_choices_lies_over_another_on_a_phone(
    browser_context: Any, path: Path, scheme: str
) -> None:
    page, messages = opened(browser_context, path, "phone", scheme)
    texts = page.locator("#parallel .annotation-text").all()
    boxes = [(text.text_content(), text.bounding_box()) for text in texts]
    assert len(boxes) > 12  # name, lowest and highest of each axis
    for i, (name, one) in enumerate(boxes):
        assert 0 <= one["x"] <= one["x"] + one["width"] <= SIZES["phone"][0]
        for other, two in boxes[:i]:
            apart = any(
                a[side] + a[size] <= b[side]
                for side, size in (("x", "width"), ("y", "height"))
                for a, b in ((one, two), (two, one))
            )
            assert apart, (name, other)
    assert messages == []


def test_print_is_light_has_every_figure_and_no_controls(browser_context: Any, path: Path) -> None:
    page, messages = opened(browser_context, path, "wide", "dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert not any(one.is_visible() for one in page.locator("nav, .copy, #theme, .choice").all())
    assert page.locator(".figure .main-svg").first.is_visible()
    pdf = page.pdf(format="A4")
    pages = pdf.count(b"/Type /Page\n") or pdf.count(b"/Type /Page ")
    assert 4 <= pages <= 14
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert messages == []
