"""The engine's turn: admit, prefill, decode, collect. One thread calls it; the devices run behind.

A round is dispatched before the one before it is looked at, so the devices never wait for the host.
The device ends sequences by itself at stop ids and ``max_tokens``; the host, which hears of it a
round later, ends them at stop strings too, and drops what was drawn beyond.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from model.engine.batch import ask, fill_slot, pack, table_rows
from model.engine.cache import PagePool
from model.engine.output import Finisher
from model.engine.programs import Plan, no_rows
from model.engine.request import TokenLogprob
from model.engine.sampler import Draws
from model.engine.scheduler import Scheduler
from model.engine.score import Scores
from model.engine.scoring import ScoreTicket
from model.engine.sequence import Admission, Segment, Sequence
from model.engine.state import STOP_IDS, SlotState, empty_slots
from model.engine.step import Rounds
from model.engine.tables import FILL_ROWS, Tables
from model.engine.ticket import OVERDUE, End, Sample, Ticket
from model.paged_cache import PagedCache
from model.transformer import Params

IN_FLIGHT = 2
"""Rounds on the device at once: one runs, one waits behind it."""


@dataclasses.dataclass
class Counters:
    """What a loop has done; see ``EngineStats``."""

    prefilled_tokens: int = 0
    scored_tokens: int = 0
    decode_rows: int = 0
    decode_rows_used: int = 0
    decode_rows_waiting: int = 0
    decode_rows_wanted: int = 0


@dataclasses.dataclass(frozen=True)
class _Decoded:
    rounds: Rounds
    owners: dict[int, Sequence]
    waiting: bool


@dataclasses.dataclass(frozen=True)
class _Scored:
    scores: Scores
    segments: list[Segment]


class Loop:
    """Scheduler, cache and compiled steps of one engine. Not thread-safe.

    Attributes:
      scheduler, counters: who runs next; what has been done.
      finisher: gets what has ended; set before the first turn.
      beat: when the devices last gave something, or were first asked; monotonic.
    """

    def __init__(
        self,
        steps: Mapping[str, Callable[..., Any]],
        plan: Plan,
        params: Params,
        cache: PagedCache,
        state: SlotState,
        tables: Tables,
        row_deadline: float | None = None,
    ) -> None:
        """The device arrays are this one's from now on; a sample may take ``row_deadline`` s."""
        self._row_deadline = row_deadline
        self._steps = steps
        self._params, self._cache, self._state, self._tables = params, cache, state, tables
        self._plan, self._shapes = plan, plan.shapes
        self._eos_token = plan.config.eos_token
        self.scheduler = Scheduler(
            PagePool(plan.shapes.pages, plan.shapes.block_size), plan.shapes.slots, plan.mesh.size
        )
        self._samples: dict[Sequence, Sample] = {}
        self._sequences: dict[Sample, Sequence] = {}
        self._stopped: set[int] = set()
        self._in_flight: collections.deque[_Decoded | _Scored] = collections.deque()
        self.counters = Counters()
        self.finisher: Finisher | None = None
        self.beat = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or under way."""
        return self.scheduler.idle and not self._in_flight

    def stop(self, sample: Sample) -> None:
        """Ends a sample that the host found complete."""
        if sequence := self._sequences.get(sample):
            self._finish(sequence)
            self._stopped.add(sequence.slot)

    def release(self) -> None:
        """Waits until the devices are done, well or badly, and lets all that they hold go.

        Whoever still knows this object keeps no memory; it can do nothing more.
        """
        with contextlib.suppress(Exception):
            jax.block_until_ready((self._cache, self._state, self._tables))
        self._in_flight.clear()
        del self._params, self._cache, self._state, self._tables

    def turn(self) -> None:
        """Dispatches what there is to run, then collects the oldest results."""
        if self._row_deadline is not None:
            self._expire(time.monotonic() - self._row_deadline)
        self.scheduler.admit()
        before = len(self._in_flight)
        admissions = self._prefill()
        if admissions or self._stopped:
            self._edit(admissions)
        if self._sequences:
            self._decode()
        busy = len(self._in_flight) > before
        while self._in_flight and (len(self._in_flight) >= IN_FLIGHT or not busy):
            self._collect(self._in_flight.popleft())

    def _expire(self, since: float) -> None:
        """Ends samples that were admitted before then, and those whose row is an error by now."""
        for sample in list(self._sequences):
            if sample.began < since or sample.ticket.future.done():
                self.stop(sample)
                self._offer(sample, OVERDUE)

    def _prefill(self) -> list[Admission]:
        """Runs prompts if a step can be filled with them, or if rows would idle without."""
        shapes, scheduler = self._shapes, self.scheduler
        admissions: list[Admission] = []
        while scheduler.admitted:
            decoding = len(self._sequences) + len(admissions)
            if decoding >= shapes.rows and scheduler.tokens_to_compute < shapes.prefill_rows:
                break
            round_ = scheduler.plan(shapes.prefill_rows, shapes.prefill_blocks)
            admissions += round_.admissions
            self._copy(round_.copies)
            if round_.segments:
                self._dispatch_prefill(round_.segments)
        return admissions

    def _dispatch_prefill(self, segments: list[Segment]) -> None:
        rows, queries = pack(segments, self._shapes)
        self.counters.prefilled_tokens += int(rows.live.sum())
        if not segments[0].prompt.scored:
            self._cache = self._steps["prefill"](self._params, self._cache, rows, queries)
            return
        self._cache, scores = self._steps["score"](
            self._params, self._cache, rows, queries, ask(segments, self._shapes)
        )
        self._in_flight.append(_Scored(scores, segments))

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        for start in range(0, len(copies), self._shapes.rows):
            pairs = np.zeros((2, self._shapes.rows), np.int32)
            some = copies[start : start + self._shapes.rows]
            pairs[:, : len(some)] = np.transpose(some)
            self._cache = self._steps["copy_pages"](self._cache, *pairs)

    def _edit(self, admissions: list[Admission]) -> None:
        self._copy([a.copy for a in admissions if a.copy is not None])
        changed = np.zeros(self._shapes.slots, bool)
        changed[list(self._stopped)] = True
        self._stopped.clear()
        values = empty_slots(self._shapes.slots, self._shapes.sequence_pages)
        for admission in admissions:
            sequence = admission.sequence
            changed[sequence.slot] = True
            ticket: Ticket = sequence.prompt.ticket
            fill_slot(values, sequence, ticket.rules)
            asked = ticket.request.params.logprobs
            sample = Sample(ticket, sequence.index, details=None if asked is None else [])
            self._samples[sequence] = sample
            self._sequences[sample] = sequence
        self._state = self._steps["edit_slots"](self._state, changed, values)
        self._steer([a.sequence for a in admissions if a.sequence.prompt.ticket.rules.steers])

    def _steer(self, sequences: list[Sequence]) -> None:
        for start in range(0, len(sequences), FILL_ROWS):
            rows = no_rows(self._plan)
            table_rows(sequences[start : start + FILL_ROWS], rows)
            self._tables = self._steps["fill_tables"](self._tables, rows)

    def _decode(self) -> None:
        owners = dict(self.scheduler.running)
        self._cache, self._state, self._tables, rounds = self._steps["decode"](
            self._params, self._cache, self._state, self._tables
        )
        self._in_flight.append(_Decoded(rounds, owners, self.scheduler.waiting > 0))

    def _collect(self, results: _Decoded | _Scored) -> None:
        if isinstance(results, _Scored):
            self._collect_scores(results)
        else:
            self._collect_tokens(results)
        self.beat = time.monotonic()

    def _collect_scores(self, results: _Scored) -> None:
        scores: Scores = jax.tree.map(np.asarray, results.scores)
        assert self.finisher is not None
        at = 0
        for segment in results.segments:
            ticket: Ticket | ScoreTicket = segment.prompt.ticket
            wanted = segment.prompt.request.logprobs_wanted
            for _, _, sample in segment.asks:
                fact = _detail(scores, at, wanted)
                if isinstance(ticket, Ticket):
                    assert ticket.prompt_logprobs is not None
                    ticket.prompt_logprobs.append(fact)
                else:
                    ticket.add(sample, fact, int(scores.likeliest[at]))
                    self.counters.scored_tokens += 1
                at += 1
            if isinstance(ticket, ScoreTicket) and segment.asks and ticket.missing == 0:
                self.finisher.offer_scores(ticket)

    def _collect_tokens(self, results: _Decoded) -> None:
        slots = np.asarray(results.rounds.slots)
        draws: Draws = jax.tree.map(np.asarray, results.rounds.draws)
        used = slots < self._shapes.slots
        self.counters.decode_rows += slots.size
        self.counters.decode_rows_used += int(used.sum())
        if results.waiting:
            self.counters.decode_rows_waiting += int((~used).sum())
            self.counters.decode_rows_wanted += slots.size
        touched: dict[Sample, Sequence] = {}
        # Python's own numbers, all at once: one by one they take longer than all else here.
        at = np.nonzero(used)
        drawn = (a[at].tolist() for a in (slots, draws.token, draws.logprob))
        for k, row, slot, token, logprob in zip(*(a.tolist() for a in at), *drawn, strict=True):
            sequence = results.owners[slot]
            sample = self._samples.get(sequence)
            if sample is None:  # ended by the host while the device went on
                continue
            sample.token_ids.append(token)
            sample.logprobs.append(logprob)
            if sample.details is not None:
                wanted = sample.ticket.request.params.logprobs or 0
                sample.details.append(_detail(draws, (k, row), wanted))
            if end := self._end(sample):
                touched.pop(sample, None)
                self._finish(sequence)
                self._offer(sample, end)
            elif sample.ticket.request.params.watched:
                touched[sample] = sequence
        for sample in touched:
            self._offer(sample, None)

    def _end(self, sample: Sample) -> End | None:
        """Why the last token ended the sample, by the rule of the device's step."""
        params, token = sample.ticket.request.params, sample.token_ids[-1]
        count = len(sample.token_ids)
        if count > params.min_tokens:  # the device lets none be drawn before
            if token == self._eos_token and not params.ignore_eos:
                return End("stop")
            if token in params.stop_token_ids:
                return End("stop", token)
        return End("length") if count >= params.max_tokens else None

    def _finish(self, sequence: Sequence) -> None:
        sample = self._samples.pop(sequence)
        del self._sequences[sample]
        self.scheduler.finish(sequence)
        if len(sample.ticket.rules.stop_ids) > STOP_IDS:
            self._stopped.add(sequence.slot)

    def _offer(self, sample: Sample, end: End | None) -> None:
        assert self.finisher is not None
        self.finisher.offer(sample, len(sample.token_ids), end)


def _detail(facts: Draws | Scores, at: Any, wanted: int) -> TokenLogprob:
    likeliest = ()
    if wanted > 0:
        likeliest = tuple(facts.top_tokens[at][:wanted].tolist())
    return TokenLogprob(
        token_id=int(facts.token[at]),
        logprob=float(facts.logprob[at]),
        rank=int(facts.rank[at]),
        top_token_ids=likeliest,
        top_logprobs=tuple(facts.top_logprobs[at][: len(likeliest)].tolist()),
    )
