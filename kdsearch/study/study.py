"""A study on disk: configuration, trials, ask/tell. No torch here.

The store is the one truth about trials; the driver alone writes it. `study.yaml` holds the
configuration and is written once. What Optuna has no place for is one JSON attribute of a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeAlias

from optuna.samplers import RandomSampler
from optuna.trial import Trial

from kdsearch.digests import digest_of
from kdsearch.hpo import pareto
from kdsearch.hpo.sampler import FAILURE, FLOOR, distribution, make_sampler, suggest
from kdsearch.space import Params
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.attributes import attributes
from kdsearch.study.config import FLAT_SAMPLERS, StudyConfig
from kdsearch.study.facts import StudyFacts, candidate_digest, read_facts
from kdsearch.study.first_trials import first_trial
from kdsearch.study.store import Store
from kdsearch.study.trial_notes import Proposal, TrialOutcome, note_of, optuna_state, record_of
from kdsearch.study.width import Latencies, Price, Widths
from kdsearch.tasks.base import Metric

REDRAWS = 20  # candidates in a row that may be rejected before the next one runs anyway
_UNFINISHED = ("running", "interrupted")
Digest: TypeAlias = Callable[[Params], str]


class OpenStudy:
    """An open study. Use `open_study`, which holds the lock that keeps a second driver out.

    digest: of parameters; of those with one digest only one is trained.
    """

    def __init__(
        self, path: Path, config: StudyConfig, store: Store, *, digest: Digest = candidate_digest
    ) -> None:
        self.path = path
        self.name = path.name
        self.config = config
        self.budget = config.budget
        self._space = config.search_space()
        self._widths = Widths(self._space, self.budget, is_wide=config.is_wide)
        self.store = store
        self._digest = digest
        self._ended: dict[int, TrialRecord] = {}  # by the number in the store
        self._facts: StudyFacts | None = None

    def ask(self, price: Price | None = None, latencies: Latencies | None = None) -> Proposal:
        """Return the next trial, sampled with the seed (study's seed, number of the draw).

        A sampler for each trial makes a resumed study propose what an uninterrupted one would; the
        draw of an interrupted trial is repeated first.

        price: FLOPs and parameters of a candidate. One over the budget is stored as rejected, and
        the next is sampled; after REDRAWS in a row one is returned anyway. latencies: of students
        whose width follows from a latency budget.
        """
        while True:
            records = self.records()
            proposal = self._draw(records, price, latencies)
            cost = None if price is None else price(proposal.params)
            reason = "" if cost is None else self.budget.explain(cost)
            if cost is None or not reason or _rejected_just_before(records, proposal) >= REDRAWS:
                return proposal
            over = TrialOutcome(
                state="rejected",
                cost=cost,
                violations=self.budget.violations(cost),
                reason=reason,
                rejected_early=True,
            )
            self.tell(proposal, over)

    def _draw(
        self, records: Sequence[TrialRecord], price: Price | None, latencies: Latencies | None
    ) -> Proposal:
        measured = None
        if latencies is not None:
            price, measured = latencies.expected(records), latencies.measured
        drawn = {r.draw for r in records if r.state != "interrupted"}
        draw = next(place for place in count() if place not in drawn)
        seed = int(digest_of([self.config.seed, draw]), 16) % 2**32
        fits = partial(self._widths.fits, price=price, measured=measured)
        given = self.facts.enqueued.get(draw)
        given = given or first_trial(self.config, self.facts, draw, records, fits)
        space = self._widths.space(seed, given, is_priced=price is not None)
        trial = self.store.propose(
            make_sampler(
                self.config.sampler,
                # for these every trial must have the same dimensions
                self._space if self.config.sampler in FLAT_SAMPLERS else space,
                seed=seed,
                has_running=any(record.state == "running" for record in records),
                learns_floor=self.config.min_accuracy is None,
            ),
            given,
        )
        params, learned = self._widths.solve(space.walk(partial(suggest, trial)), price, measured)
        for name, (dim, value) in learned.items():
            self.store.learn(trial, name, distribution(dim), value)
        return self._begin(trial, params, draw=draw, pause_at=self.config.look_epochs)

    def ask_control(
        self, params: Params, control_of: int, *, pause_at: int | None = None
    ) -> Proposal:
        """Return a trial outside the search: the student of `control_of` with another method."""
        return self._begin(self._outside(), params, control_of=control_of, pause_at=pause_at)

    def ask_refit(self, params: Params, refit_of: int, *, is_control: bool) -> Proposal:
        """Return a trial outside the search: `refit_of` retrained, or a control of that."""
        control_of = refit_of if is_control else None
        return self._begin(self._outside(), params, control_of=control_of, refit_of=refit_of)

    def ask_resumed(self, record: TrialRecord, pause_at: int | None) -> Proposal:
        """Return a paused trial, to be resumed from its checkpoint until `pause_at`, or its end."""
        trial = self._outside()
        proposal = Proposal(
            number=record.number,
            params=record.params,
            digest=record.digest,
            draw=record.draw,
            control_of=record.control_of,
            refit_of=record.refit_of,
            pause_at=pause_at,
            stored=trial.number,
        )
        self.store.begin(trial, note_of(proposal))
        return proposal

    def _outside(self) -> Trial:
        """Return a trial without Optuna parameters, from which the sampler does not learn."""
        return self.store.propose(RandomSampler(seed=0))

    def enqueue(self, params: Sequence[Params]) -> None:
        """Try these next, in their order and after those that wait; the sampler adds the rest."""
        known = self.facts.enqueued
        taken = {r.draw for r in self.records() if r.state != "interrupted"} | known.keys()
        free = (place for place in count() if place not in taken)
        self.update_facts(enqueued={**known, **dict(zip(free, params, strict=False))})

    def _begin(self, trial: Trial, params: Params, **facts: int | None) -> Proposal:
        """Begin a trial of the search, or outside it. facts: fields of Proposal."""
        digest = self._digest(params)
        proposal = Proposal(number=trial.number, params=params, digest=digest, **facts)
        self.store.begin(trial, note_of(proposal))
        return proposal

    def earlier(self, proposal: Proposal) -> TrialRecord | None:
        """Return the trial of an equal candidate, whose outcome is reused; None without.

        Outside the search nothing is pruned, so the outcome of a pruned trial is not reused.
        """
        states = ("complete",) if proposal.kind else ("complete", "pruned")
        equal = (r for r in self.records() if r.digest == proposal.digest and r.state in states)
        return next((record for record in equal if record.reused_from is None), None)

    def tell(self, proposal: Proposal, outcome: TrialOutcome) -> TrialRecord:
        """Store the outcome of a trial, constraints before values, as the sampler needs.

        A complete trial whose metric is not a number becomes a failed one.
        """
        if outcome.val is not None and not isfinite(outcome.val):
            reason = f"the {self.metric.label} is {outcome.val}"
            outcome = replace(outcome, state="failed", val=None, reason=reason)
        values, constraints, kind = None, dict(outcome.violations), proposal.kind
        if outcome.state == "failed":
            constraints[FAILURE] = 1.0
        if outcome.state == "complete":
            assert outcome.val is not None
            assert outcome.cost is not None
            if self.config.min_accuracy is not None:
                constraints[FLOOR] = self.config.min_accuracy - outcome.val
            values = [outcome.val, float(getattr(outcome.cost, self.budget.axis()))]
        frozen = self.store.end(
            proposal.number if proposal.stored is None else proposal.stored,
            optuna_state(outcome.state, kind),
            None if kind else values,
            note=note_of(proposal, outcome),
            constraints=constraints,
            facts=attributes(kind, outcome.state, outcome.cost),
        )
        return record_of(frozen)

    def records(self) -> list[TrialRecord]:
        """Return every trial, oldest first; a resumed one with its longest training.

        Costs have the latency that was measured after the search.
        """
        found: dict[int, TrialRecord] = {}
        for frozen in self.store.trials():
            record = self._ended.get(frozen.number) or record_of(frozen)
            if frozen.state.is_finished():
                self._ended[frozen.number] = record
            earlier = found.get(record.number)
            found[record.number] = record if earlier is None else _resumed(earlier, record)
        costs = self.facts.costs
        return [_timed(r, costs[r.number]) if r.number in costs else r for r in found.values()]

    def directory(self, number: int) -> Path:
        """Return the folder of a trial's own files."""
        return self.path / "trials" / f"{number:06d}"

    def front(self) -> list[TrialRecord]:
        """Return the non-dominated trials that reach --min-accuracy, cheapest first."""
        done = [record for record in self.complete() if self.is_enough(record)]
        return [done[i] for i in pareto.front([*map(self.point, done)])]

    def is_enough(self, record: TrialRecord) -> bool:
        """Return whether a trial reaches --min-accuracy."""
        least = self.config.min_accuracy
        return record.val is not None and (least is None or record.val >= least)

    def complete(self) -> list[TrialRecord]:
        """Return the complete trials of the search, also those below --min-accuracy.

        Controls that were resumed in the place of such a trial are among them.
        """
        records, look = self.records(), self.config.look_epochs or inf
        resumed = [r for r in records if r.kind == "control" and len(r.curve) > look]
        return [r for r in (*searched(records), *resumed) if r.state == "complete"]

    def point(self, record: TrialRecord) -> tuple[float, float]:
        """Return (metric, cost) of a complete trial on the axes of the front; cost of the search.

        A trial without weights must not come to the front when others are measured again.
        """
        assert record.val is not None
        return record.val, float(getattr(self._ended[record.number].cost, self.budget.axis()))

    @property
    def facts(self) -> StudyFacts:
        """Return the facts of the study as a whole: teacher, plan, test results, times."""
        if self._facts is None:
            self._facts = read_facts(self.store.note() or "{}")
        return self._facts

    @property
    def metric(self) -> Metric:
        """Return the metric that trials are compared by."""
        return self.facts.metric

    def update_facts(self, **changes: Any) -> None:
        """Replace some of the facts, in one write; the driver alone does."""
        facts = self.facts.changed(**changes)
        self.store.set_note(facts.to_json())
        self._facts = facts


def searched(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials of the search that ended, without candidates rejected early."""
    return [r for r in records if not (r.kind or r.rejected_early or r.state in _UNFINISHED)]


def _rejected_just_before(records: Sequence[TrialRecord], proposal: Proposal) -> int:
    """Return how many candidates in a row were rejected just before this one."""
    assert proposal.draw is not None
    rejected_early = {record.draw for record in records if record.rejected_early}
    return next(n for n in count() if proposal.draw - 1 - n not in rejected_early)


def _timed(record: TrialRecord, later: Cost) -> TrialRecord:
    """Return a trial with the latency of a later cost, and its own FLOPs and parameters."""
    cost = record.cost or later
    return replace(record, cost=replace(later, flops=cost.flops, params=cost.params))


def _resumed(earlier: TrialRecord, later: TrialRecord) -> TrialRecord:
    """Return a trial after it was resumed; what it was before, where that was of no success."""
    if later.state != "complete":
        return earlier
    return replace(
        later,
        seconds=earlier.seconds + later.seconds,
        teacher_seconds=earlier.teacher_seconds + later.teacher_seconds,
        reused_from=None,
    )
