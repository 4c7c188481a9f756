from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up import LIMIT_MS, Study, make_study, ranked, rankings
from plotly.offline import get_plotlyjs

from kdsearch.report import markup, tables
from kdsearch.report import page as page_module
from kdsearch.report.importance import MOST
from kdsearch.report.page import render
from kdsearch.spec import Budget, Cost
from kdsearch.study.summary import TeacherEntry
from kdsearch.tasks.base import Metric

NOTE = "One accuracy of the 2,000 validation images has a standard error of 0.49 points."
COMMAND = "kdsearch run --name phones --budget-ms 2"
HOSTILE = "<script>alert(1)</script></script><!--\"'&"


def html_of(study: Study) -> str:
    summary, records = study
    return render(summary, records, rankings=rankings(records), notes=[NOTE], command=COMMAND)


def own(html: str) -> str:
    """Return the page without plotly.js, which is not ours to judge."""
    return html.replace(get_plotlyjs(), "")


def text_of(html: str) -> str:
    """Return what a reader sees, no-break spaces as spaces."""
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            if self.cdata_elem is None:
                seen.append(data)

    Reader().feed(re.sub('<span class="whole">(.*?)</span>', r"\1", own(html)))
    return " ".join(seen).replace("\u00a0", " ")


def payload(html: str, name: str = "front") -> dict[str, object]:
    found = re.search(rf'<script type="application/json" id="{name}-data">(.*?)</script>', html)
    assert found is not None
    return json.loads(found.group(1))  # type: ignore[no-any-return]


def trace(html: str, name: str, figure: str = "front") -> dict[str, list[object]]:
    return next(t for t in payload(html, figure)["data"] if t.get("name") == name)  # type: ignore


def test_plotly_is_inlined_exactly_once() -> None:
    assert html_of(make_study()).count(get_plotlyjs()) == 1


def test_nothing_outside_the_page_is_referred_to() -> None:
    page = own(html_of(make_study()))
    references = re.findall(r"""(?:\bsrc|\bhref|\baction)\s*=\s*["']?([^"'\s>]*)""", page)
    references += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    beside = {*page_module._LINKS, *page_module._FILES}  # in the folder of the page
    assert [r for r in references if not r.startswith(("#", "data:")) and r not in beside] == []
    assert not any(":" in name or name.startswith(("/", ".")) for name in beside)
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page


def test_only_the_pages_own_scripts_may_run() -> None:
    page = html_of(make_study())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    scripts = re.search(r"script-src ([^;]*)", policy.group(1))
    assert scripts is not None
    assert re.fullmatch(r"('sha256-[\w+/=]+' ?){2}", scripts.group(1))


def test_whatever_comes_from_the_study_is_escaped() -> None:
    summary, records = make_study(complete=4, failed=1, pruned=2, name=HOSTILE, family=HOSTILE)
    records = [replace(record, reason=HOSTILE) for record in records]
    summary = replace(
        summary,
        metric=Metric(key="odd", label=HOSTILE),
        teacher=replace(summary.teacher, name=HOSTILE),
    )
    html = render(
        summary,
        records,
        rankings=ranked(**{HOSTILE: 1.0, f"student.{HOSTILE}.width": 0.5}),
        notes=[HOSTILE],
        command=HOSTILE,
    )
    page = own(html)
    assert "<script>alert" not in page
    assert "<!--" not in page
    # the data of front, progress, slice, curves and trials, and the page's own two
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script>", page)) == 7
    assert text_of(html).count(HOSTILE) >= 6  # a reader sees it as it was written


def test_hover_text_holds_no_tag_but_its_own() -> None:
    data = payload(html_of(make_study(family=HOSTILE, controls=1)))["data"]
    texts = [text for one in data for text in one.get("hovertext", ())]  # type: ignore
    assert any("alert(1)" in text for text in texts)
    assert set(re.findall(r"<[^>]*>", "".join(texts))) == {"<b>", "</b>", "<br>"}


def test_the_verdict_has_units() -> None:
    summary, records = make_study()
    best = summary.best_entry()
    assert best is not None
    best = replace(
        best, val=0.9731, test=0.968, flops=3_210_000, params=272_000, latency_ms=1.834,
        latency_low_ms=1.791, latency_high_ms=1.878, config={"student.family": "resnet"},
    )  # fmt: skip
    teacher = TeacherEntry(
        name="resnet34", val=0.978, test=None, flops=321_000_000, params=2_720_000, latency_ms=None
    )
    summary = replace(summary, front=(best,), shipped=best, teacher=teacher)
    text = text_of(html_of((summary, records)))
    assert f"Ship trial {best.trial}, a resnet student, the best within the budget of 2 ms" in text
    assert "test accuracy 96.80 %, 1.83 ms." in text  # the teacher's latency is not known
    assert "1.83 ms (1.79 to 1.88)" in text
    assert "Latency is measured on cpu, onnxruntime, 1 thread, batch 1." in text
    assert "3.21 M FLOPs, 272 k parameters" in text
    assert "100\u00d7 fewer FLOPs than the teacher" in text
    assert "one multiply-add once" in text


def test_the_parts_come_in_order() -> None:
    assert re.findall(r"<h2>(.*?)</h2>", html_of(make_study())) == [
        "What to ship",
        "The front",
        "What distillation gained at equal cost",
        "The search",
        "What mattered",
        "Learning curves",
        "Where the time went",
        "All trials",
        "How to reproduce",
    ]


def test_the_figure_holds_exactly_the_fronts_points() -> None:
    summary, records = make_study()
    html = html_of((summary, records))
    drawn = trace(html, "front")
    points = sorted((entry.latency_ms, entry.val) for entry in summary.front)
    assert list(zip(drawn["x"], drawn["y"], strict=True)) == points
    assert drawn["line"]["shape"] == "hv"  # type: ignore[call-overload]
    assert trace(html, "to ship")["x"] == [summary.best_entry().latency_ms]  # type: ignore
    assert len(drawn["x"]) + len(trace(html, "dominated")["x"]) == 20
    assert len(trace(html, "rejected")["x"]) == 6
    assert len(trace(html, "control")["x"]) == 2


def test_another_cost_moves_the_same_points() -> None:
    summary, records = make_study()
    view = payload(html_of((summary, records)))["views"]["flops"]  # type: ignore
    names = [one.get("name") for one in payload(html_of((summary, records)))["data"]]  # type: ignore
    place = names.index("front")
    assert sorted(view["traces"]["x"][place]) == sorted(entry.flops for entry in summary.front)
    assert view["traces"]["mode"][place] == "markers"  # it is the front of latency alone
    assert view["layout"]["shapes"] == []  # and so is the budget


def test_the_budget_is_a_vertical_line() -> None:
    line, side = payload(html_of(make_study()))["layout"]["shapes"]  # type: ignore
    assert side["x0"] == LIMIT_MS < side["x1"]
    assert (line["x0"], line["x1"], line["y0"], line["y1"]) == (LIMIT_MS, LIMIT_MS, 0, 1)
    assert line["label"]["text"] == "budget 2\u00a0ms"


@pytest.mark.parametrize(("widest", "kind"), [(9.0, "linear"), (11.0, "log")])
def test_costs_of_more_than_a_decade_get_a_log_axis(widest: float, kind: str) -> None:
    summary, records = make_study(complete=1, rejected=0, failed=0, controls=0)
    entry = replace(summary.front[0], flops=1_000_000)
    summary = replace(
        summary,
        front=(entry,),
        budget=Budget(),
        teacher=replace(summary.teacher, flops=int(widest * 1_000_000)),
    )
    assert payload(html_of((summary, records)))["layout"]["xaxis"]["type"] == kind  # type: ignore


def test_a_teacher_of_unknown_latency_is_not_drawn_and_has_a_note() -> None:
    summary, records = make_study()
    summary = replace(summary, teacher=replace(summary.teacher, latency_ms=None))
    html = html_of((summary, records))
    assert trace(html, "teacher")["visible"] is False  # type: ignore[comparison-overlap]
    assert "The teacher is not drawn: its latency was not measured." in text_of(html)
    assert payload(html)["views"]["flops"]["note"] == ""  # type: ignore


def test_students_rejected_before_a_latency_are_counted() -> None:
    summary, records = make_study(rejected=3)
    records = [
        replace(record, cost=Cost(flops=record.cost.flops, params=record.cost.params))
        if record.state == "rejected" and record.cost
        else record
        for record in records
    ]
    assert "3 trials without a measured latency not drawn." in text_of(html_of((summary, records)))


def test_gain_is_the_difference_to_the_control_in_points() -> None:
    summary, records = make_study(controls=1)
    best = summary.best_entry()
    assert best is not None
    control = replace(summary.controls[0], val=best.val - 0.0123, test=(best.test or 0) + 0.004)
    html = html_of((replace(summary, controls=(control,)), records))
    text = text_of(html)
    assert "+1.23" in text
    assert "\u22120.40, lost" in text
    assert NOTE in text


def test_a_command_breaks_between_its_words_and_stays_plain_text() -> None:
    text = markup.command("kdsearch run --out a-b/c <d>")
    whole = ["--out", "a-b/c"]
    assert re.findall('<span class="whole">(.*?)</span>', text) == whole
    assert re.sub("<.*?>", "", text) == "kdsearch run --out a-b/c &lt;d&gt;Copy"
    assert markup.prose("`x <y>` or --z") == (
        '<code>x &lt;y&gt;</code> or <span class="whole">--z</span>'
    )


def test_importances_are_bars_longest_first() -> None:
    summary, records = make_study()
    html = render(summary, records, rankings=ranked(b=0.4, a=0.1), notes=[], command=COMMAND)
    widths = re.findall(r'class="bar"><span style="width:([\d.]+)%', own(html))
    assert widths[:2] == ["100.0", "25.0"]
    assert "more parameter" not in own(html)
    many = ranked(**{f"p{i}": 0.5 / (i + 1) for i in range(MOST + 2)})
    html = render(summary, records, rankings=many, notes=[], command=COMMAND)
    assert "2 more parameters" in text_of(html).replace("\u00a0", " ")
    widths = re.findall(r'class="bar"><span style="width:([\d.]+)%', own(html))
    assert widths[: MOST + 2] == [f"{100 / (i + 1):.1f}" for i in range(MOST + 2)]
    none = render(summary, records, rankings=(), notes=[], command=COMMAND)
    assert "takes about 30 completed trials that differ, and 22 completed" in text_of(none)


def test_curves_hold_every_epoch_of_every_trial() -> None:
    _, records = made = make_study(pruned=3)
    data = payload(html_of(made), "curves")["data"]
    drawn = [
        (trial, epoch, value)
        for one in data  # type: ignore[attr-defined]
        if one.get("legendgroup", "").endswith(("completed", "refits")) and "customdata" in one
        for trial, epoch, value in zip(one["customdata"], one["x"], one["y"], strict=True)
        if trial is not None
    ]
    expected = [
        (record.number, i + 1, round(value, 4))
        for record in records
        for i, value in enumerate(record.curve)
    ]
    assert sorted(drawn) == sorted(expected)


def test_every_trial_has_a_row() -> None:
    made = make_study(pruned=3)
    body = html_of(made).rpartition("<tbody>")[2]
    rows = re.findall(r"<tr[^>]*><td class=n>(\d+)</td><td>(\w+)</td>", body)
    assert rows == [(str(record.number), record.state) for record in made[1]]


def test_nan_and_unknown_values_do_not_stop_the_report() -> None:
    summary, records = make_study()
    records[3] = replace(records[3], val=float("nan"), curve=(0.5, float("nan"), 0.6))
    records[4] = replace(records[4], val=None, cost=None)
    assert "NaN," not in own(html_of((summary, records)))


def test_a_study_without_trials_has_nothing_to_ship() -> None:
    text = text_of(html_of(make_study(complete=0, rejected=0, failed=0)))
    assert "Nothing to ship: no trial has run yet." in text
    assert COMMAND in text


def test_a_study_of_rejected_trials_names_the_cheapest() -> None:
    made = make_study(complete=0, rejected=3, failed=0)
    cheapest = min(made[1], key=lambda record: record.cost.latency_ms)  # type: ignore
    text = text_of(html_of(made))
    assert "3 students rejected, none within the budget of 2 ms" in text
    assert f"The cheapest is trial {cheapest.number} (" in text
    assert f"with {cheapest.cost.latency_ms:.2f} ms" in text  # type: ignore[union-attr]


def test_a_study_of_failed_trials_gives_the_reason() -> None:
    text = text_of(html_of(make_study(complete=0, rejected=0, failed=2)))
    assert "none of 2 trials completed. The first reason: loss became NaN" in text


def test_a_single_trial_is_a_report() -> None:
    html = html_of(make_study(complete=1, rejected=0, failed=0, controls=0, epochs=1))
    assert "Ship trial 0" in text_of(html)
    assert len(trace(html, "front")["x"]) == 1


@pytest.mark.parametrize("epochs", [30, 300])
def test_a_thousand_trials_stay_below_six_megabytes(epochs: int) -> None:
    html = html_of(make_study(complete=600, rejected=200, pruned=180, failed=20, epochs=epochs))
    assert len(html.encode()) < 6_000_000
    thinned = "one epoch in" in text_of(html)
    assert thinned == (epochs == 300)


def test_the_page_is_fit_for_phones_and_screen_readers() -> None:
    page = own(html_of(make_study()))
    assert '<html lang="en">' in page
    assert 'name="viewport" content="width=device-width' in page
    assert "<title>phones: kdsearch report</title>" in page


def test_the_report_needs_neither_torch_nor_optuna() -> None:
    code = (
        "import kdsearch.report.page, kdsearch.report.markdown, sys;"
        "print({'torch', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unshipped_student_is_the_best_so_far() -> None:
    summary, records = make_study()
    summary = replace(summary, shipped=None)
    text = text_of(html_of((summary, records)))
    assert "Nothing has been shipped yet." in text
    assert f"The best so far is trial {summary.best}" in text
    assert "Ship trial" not in text
    assert f"trial {summary.best} (" in text
    assert "the best so far" in tables.front(summary).rows[-2 - len(summary.baselines)][0]
