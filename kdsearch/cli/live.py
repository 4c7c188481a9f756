"""Progress of a study: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kdsearch.cli.tables import TextTable, cost_text, literal, show
from kdsearch.downloads import announced
from kdsearch.spec import UNITS, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.formatting import SPACE, duration
from kdsearch.study.run_state import RunState, name_trial, planned_epochs
from kdsearch.study.trial_notes import Proposal
from kdsearch.tasks.base import DEFAULT_METRIC, Metric

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

_LAST = 6  # ended trials that stay in sight
_STYLES = {"complete": "green", "pruned": "yellow", "rejected": "dim", "failed": "red"}
_SLOW_SECONDS = 5.0
_OTHER_COLUMNS = 48  # characters of the live table without student and method
_COUNTED = ("complete", "pruned", "rejected", "failed")


class StudyConsole(Callback):
    """Shows the RunState of a study; a context, which removes the live table at the end."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console()
        self._quiet = quiet
        self._is_live = self._console.is_terminal and not quiet
        self._began = time.perf_counter()
        self._stage = ""
        self._open = ExitStack()
        self._last: deque[TrialRecord] = deque(maxlen=_LAST)
        self._ended: set[int] = set()
        self._state = RunState()
        self._metric = DEFAULT_METRIC
        self._has_estimate = False
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> StudyConsole:
        """Put the live table up; announce downloads."""
        self._open.enter_context(announced(self.on_message))
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live table down."""
        self._open.close()
        self._live.stop()

    def on_message(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            show(text, console=self._console)

    def on_prepare(self, metric: Metric) -> None:
        """Show values in this metric from now on."""
        self._metric = metric

    def on_teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Show how far the teacher's training is; plain output gets its first and last."""
        detail = f"validation {self._metric.text(epoch.val)}"
        if epoch.number == 0:
            self.on_message(f"Teacher with a fitted head: {detail}")
        elif epoch.number == 1:
            self.on_message(f"Teacher: epoch 1 of {epochs} took {epoch.seconds:.1f} s")
        self._stage = f"Teacher: epoch {epoch.number} of {epochs}, {detail}"
        if epoch.number == epochs:
            self._stage = ""
            self.on_message(f"Teacher trained: {detail}")

    def attempt(self, number: int, total: int, what: str) -> None:
        """Show which of the methods is being tried."""
        self._stage = f"Methods: {number} of {total}, {what}"

    def on_search_begin(self, state: RunState) -> None:
        """Show the state from now on."""
        self._state = state
        if state.ended:
            self.on_message(f"{len(state.ended)} of {state.total} trials are there already")

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Give the first trial, and those after a slow one, a line in plain output."""
        if not self._is_live and (not self._last or self._last[-1].seconds > _SLOW_SECONDS):
            what, until = name_trial(proposal.params), proposal.pause_at
            last = until or planned_epochs(proposal.params)
            self.on_message(f"Training trial {proposal.number}: {what}, until epoch {last}")

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Show the outcome of a trial; plain output gets a line."""
        self._last.append(record)
        if not self._is_live:
            self.on_message(self._line(record))
        state, left = self._state, self._state.seconds_left()
        n_left = state.total - len(state.ended)
        if left is not None and not self._has_estimate:
            self._has_estimate = True
            if n_left > 0:
                more = f"{n_left} more trial{'s' if n_left > 1 else ''}"
                more += " and those that resume" if state.epochs else ""
                self.on_message(
                    f"About {_time(left)} for {more} ({state.at_once} at a time); "
                    "--time-limit stops the search in time"
                )

    def _line(self, record: TrialRecord) -> str:
        shown = f"{name_trial(record.params)} {self._outcome(record)}"
        if record.number in self._ended:
            return f"trial {record.number} until epoch {len(record.curve)}: {shown}"
        self._ended.add(record.number)
        if record.kind:
            return f"{record.kind}, trial {record.number}: {shown}"
        best = "" if self._state.best is None else f"; best {self._point(self._state.best)}"
        left = self._state.seconds_left()
        time_left = f"; {_time(left)} left" if left else ""
        count = f"{len(self._state.ended)} of {self._state.total}"
        return f"{count}, trial {record.number}: {shown}{best}{time_left}"

    def _outcome(self, record: TrialRecord) -> str:
        if record.state == "complete":
            shown = self._point(record)
            equal = record.reused_from
            return shown if equal is None else f"{shown} (equal to trial {equal})"
        return f"{record.state}: {record.reason}"

    def _point(self, record: TrialRecord) -> str:
        assert record.val is not None
        assert record.cost is not None
        cost = cost_text(record.cost, self._state.budget.axis())
        return f"{self._metric.text(record.val)} at {cost}"

    def _render(self) -> RenderableType:
        if not self._state.total:
            return literal(self._stage)
        return Group(self._table(), *self._foot())

    def _table(self) -> TextTable:
        table = TextTable(box=None, expand=True, pad_edge=False)
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("student + method", no_wrap=True)
        table.add_column("epoch", justify="right", no_wrap=True)
        table.add_column("val", justify="right", no_wrap=True)
        table.add_column("state", ratio=1)
        for record in tuple(self._last):
            kind = f"{record.kind}, " if record.kind else ""
            table.add_row(
                str(record.number),
                self._named(name_trial(record.params)),
                str(len(record.curve) or ""),
                self._value(record.val),
                literal(kind + self._ending(record), _STYLES.get(record.state, "")),
            )
        for number, row in sorted(self._state.running.items()):
            state = "training" if row.epoch else "getting ready"
            table.add_row(
                str(number),
                self._named(row.what),
                f"{row.epoch}/{row.epochs}",
                self._value(row.val),
                f"{row.kind}, {state}" if row.kind else state,
                style="bold",
            )
        return table

    def _named(self, what: str) -> str:
        """Return student and method, in two lines where one would leave no room for the state."""
        if len(what) + _OTHER_COLUMNS <= self._console.width:
            return what
        return what.replace(" + ", " +\n", 1)

    def _value(self, val: float | None) -> str:
        return "" if val is None else self._metric.text(val)

    def _ending(self, record: TrialRecord) -> str:
        if record.state != "complete" or record.cost is None:
            return f"{record.state}: {record.reason}"
        cost = cost_text(record.cost, self._state.budget.axis())
        equal = record.reused_from
        return cost if equal is None else f"{cost}, equal to trial {equal}"

    def _foot(self) -> Iterator[Text]:
        """Yield the best, the counts and the time."""
        limits = " and ".join(
            f"{limit * scale:.4g} {unit}"
            for axis, (scale, unit) in UNITS.items()
            if (limit := getattr(self._state.budget, axis)) is not None
        )
        best = "Best: none yet"
        if self._state.best is not None:
            what = name_trial(self._state.best.params)
            best = f"Best: trial {self._state.best.number}, {self._point(self._state.best)}, {what}"
        yield literal(f"{best}; budget {limits}" if limits else best, "bold")
        counts = Counter(record.state for record in self._state.ended)
        states = ", ".join(f"{counts[state]} {state}" for state in _COUNTED if counts[state])
        total = f"{len(self._state.ended)} of {self._state.total} trials"
        yield literal(f"{total}: {states}" if states else total)
        left = self._state.seconds_left()
        ahead = f", about {_time(left)} left ({self._state.at_once} at a time)" if left else ""
        yield literal(f"{_time(time.perf_counter() - self._began)} spent{ahead}")


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else duration(whole).replace(SPACE, " ")
