"""How much each parameter explains of the metric and of the cost, in words and bars. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.report import markup, words
from kdsearch.study.formatting import counted
from kdsearch.study.ranking import METRIC, Ranking
from kdsearch.study.summary import FEWEST_TRIALS, Summary
from kdsearch.study.width import is_share

MOST = 10  # bars that are shown at once


def title(summary: Summary, ranking: Ranking) -> str:
    """Return what a ranking is of: 'Validation accuracy', 'Latency within resnet, 40 trials'."""
    cost = words.AXES[summary.budget.axis()].name
    of = f"validation {summary.metric.label}" if ranking.of == METRIC else cost
    inside = f" within {ranking.option}" if ranking.option else ""
    return f"{of[:1].upper()}{of[1:]}{inside}, {counted(ranking.trials, 'trial')}"


def unknown(summary: Summary) -> str:
    """Return why there is no ranking."""
    return (
        f"Which parameters mattered is not known: that takes about {FEWEST_TRIALS} completed "
        f"trials that differ, and {summary.counts.complete:,} completed."
    )


def explained(rankings: Sequence[Ranking]) -> str:
    """Return what the shares and whiskers of rankings mean."""
    text = (
        "Share of the differences that each parameter explains, over completed trials (PED-ANOVA, "
        "as in optuna-dashboard). Whiskers: 90 % of bootstrap resamples; where they overlap, the "
        "order may be chance. For the cost, the dashboard also ranks parameters of method and "
        "training, which cannot change it."
    )
    if any(is_share(item.name) for each in rankings for item in each.values):
        text += " `share`: the sampled share of the budget, from which the width follows."
    return text


def section(summary: Summary, rankings: Sequence[Ranking]) -> str:
    """Return the rankings as bars in HTML: of all trials, then folded those within an option."""
    if not rankings:
        return markup.paragraph(unknown(summary))
    text = markup.paragraph(explained(rankings))
    common = [_bars(summary, each) for each in rankings if not each.option]
    owned = [_bars(summary, each) for each in rankings if each.option]
    folded = (
        "<details><summary>Parameters of one family or method</summary>"
        f'<div class="slices">{"".join(owned)}</div></details>'
        if owned
        else ""
    )
    return f'{text}<div class="slices">{"".join(common)}</div>{folded}'


def _bars(summary: Summary, ranking: Ranking) -> str:
    name, values = title(summary, ranking), ranking.values
    longest = max(item.high for item in values)
    bars = markup.ranked(values[:MOST], name, longest)
    if rest := values[MOST:]:
        more = counted(len(rest), "more parameter")
        bars += f"<details><summary>{more}</summary>{markup.ranked(rest, more, longest)}</details>"
    return f"<div><h3>{markup.escape(name)}</h3>{bars}</div>"
