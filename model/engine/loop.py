"""The engine's turn: admit, prefill, decode, collect. One thread calls it; the devices run behind.

A round of steps is dispatched before the one before it is looked at, so the devices never wait for
the host. Where it has a say between two tokens, as for constrained sequences, a round is one step,
and what that may draw is found out while its rows are run.
The device ends sequences by itself at stop ids and ``max_tokens``; the host, which hears of it a
round later, ends them at stop strings too, and drops what was drawn beyond.
"""

import collections
import time

import jax
import numpy as np

from model.engine.batch import ask, fill_slot, histories, no_rows, pack, table_rows
from model.engine.beams import Beams
from model.engine.cache import PagePool
from model.engine.masks import Masker, NextMask
from model.engine.output import Finisher
from model.engine.programs import Plan
from model.engine.request import detail
from model.engine.rounds import Counters, Decoded, Ran, Scored
from model.engine.rules import meet
from model.engine.runner import Runner
from model.engine.sampler import Draws
from model.engine.scheduler import Scheduler, Take, take_none
from model.engine.score import Scores
from model.engine.scoring import ScoreTicket
from model.engine.sequence import Admission, Segment, Sequence
from model.engine.state import STOP_IDS, empty_slots
from model.engine.tables import FILL_ROWS
from model.engine.ticket import OVERDUE, End, Sample, Ticket
from schemas.error import RowError

IN_FLIGHT = 2
"""Rounds on the device at once: one runs, one waits behind it."""


class Loop:
    """Scheduler, cache and compiled steps of one engine. Not thread-safe.

    Attributes:
      scheduler, counters: who runs next; what has been done.
      beat: when the devices last gave something, or were first asked; monotonic.
    """

    def __init__(
        self, runner: Runner, plan: Plan, finisher: Finisher, row_deadline: float | None = None
    ) -> None:
        """``runner`` is this one's alone; ``finisher`` answers what ends.

        A sample may take ``row_deadline`` seconds.
        """
        self._row_deadline = row_deadline
        self._runner, self._finisher = runner, finisher
        self._shapes, self._vocabulary = plan.shapes, plan.config.vocab_size
        self.scheduler = Scheduler(
            PagePool(plan.shapes.pages, plan.shapes.block_size), plan.shapes.slots, plan.mesh.size
        )
        self._masker = Masker(self._vocabulary)
        self._ran: Ran | None = None
        self._samples: dict[Sequence, Sample] = {}
        self._sequences: dict[Sample, Sequence] = {}
        self._constrained: set[Sample] = set()
        self._beams = Beams(plan.shapes.block_size)
        self._stopped: set[int] = set()
        self._in_flight: collections.deque[Decoded | Scored] = collections.deque()
        self.counters = Counters()
        self.beat = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or under way."""
        return self.scheduler.idle and not self._in_flight and self._ran is None

    def stop(self, sample: Sample) -> None:
        """Ends a sample that the host found complete."""
        if sequence := self._sequences.get(sample):
            self._finish(sequence)
            self._stopped.add(sequence.slot)

    def release(self) -> None:
        """Waits until the devices are done, well or badly, and lets all that they hold go.

        Whoever still knows this object keeps no memory; it can do nothing more.
        """
        self._masker.close()
        self._runner.release()
        self._in_flight.clear()
        self._ran = None

    def turn(self, take: Take = take_none) -> None:
        """Takes and dispatches what there is to run, then collects the oldest results."""
        if self._row_deadline is not None:
            self._expire(time.monotonic() - self._row_deadline)
        if self._ran is not None:
            ran, self._ran = self._ran, None
            self._draw_ran(ran)
            if not self._sequences:  # beams alone, which go on once they have been looked at
                self._collect_all()
        self.scheduler.admit(take)
        before = len(self._in_flight)
        admissions = self._prefill()
        if admissions or self._stopped or self._beams.moved:
            self._edit(admissions)
        if self._constrained or self._beams:
            self._ran = self._run_ahead()
            return
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
        for sequences, sample in self._beams.expire(since):
            for sequence in sequences:
                self.scheduler.finish(sequence)
                self._stopped.add(sequence.slot)
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
            self._runner.copy_pages(round_.copies)
            if round_.segments:
                self._dispatch_prefill(round_.segments)
        return admissions

    def _dispatch_prefill(self, segments: list[Segment]) -> None:
        rows, queries = pack(segments, self._shapes)
        self.counters.prefilled_tokens += int(rows.live.sum())
        if segments[0].prompt.scored:
            scores = self._runner.score(rows, queries, ask(segments, self._shapes))
            self._in_flight.append(Scored(scores, segments))
        else:
            self._runner.prefill(rows, queries)

    def _edit(self, admissions: list[Admission]) -> None:
        self._runner.copy_pages([a.copy for a in admissions if a.copy is not None])
        changed = np.zeros(self._shapes.slots, bool)
        changed[list(self._stopped)] = True
        self._stopped.clear()
        values = empty_slots(self._shapes.slots, self._shapes.sequence_pages)
        for admission in admissions:
            sequence = admission.sequence
            changed[sequence.slot] = True
            if sequence.request.params.beam_width is not None:
                self._beams.admit(sequence)
                continue
            sample = Sample.of(sequence.prompt.ticket, sequence.index)
            rules = sample.ticket.rules
            fill_slot(values, sequence, rules)
            self._samples[sequence] = sample
            self._sequences[sample] = sequence
            if rules.first_mask is not None:
                self._runner.set_mask(sequence.slot, rules.first_mask)
            if sample.matcher is not None:
                self._constrained.add(sample)
        self._runner.copy_pages(self._beams.place(values, changed))
        self._runner.edit_slots(changed, values)
        steered = [a.sequence for a in admissions if a.sequence.prompt.ticket.rules.steers]
        for start in range(0, len(steered), FILL_ROWS):
            rows = no_rows(self._shapes, self._vocabulary)
            table_rows(steered[start : start + FILL_ROWS], rows)
            self._runner.fill_tables(rows)
        drafted = [a.sequence for a in admissions if a.sequence in self._samples]
        drafted = drafted if self._shapes.drafts else []
        for start in range(0, len(drafted), FILL_ROWS):
            some = drafted[start : start + FILL_ROWS]
            self._runner.fill_histories(*histories(some, self._shapes))

    def _decode(self) -> None:
        """Several steps, with nothing of the host between them."""
        owners = dict(self.scheduler.running)
        waiting = self.scheduler.waiting > 0
        self._in_flight.append(Decoded(self._runner.decode(), owners, waiting))

    def _run_ahead(self) -> Ran:
        return Ran(self._runner.run(), dict(self.scheduler.running), time.perf_counter())

    def _draw_ran(self, ran: Ran) -> None:
        """One step, whose rows have been run, once the host knows what may be drawn.

        It looks at the tokens before these while the devices run these.
        """
        self._collect_all()

        def running() -> bool:
            return not ran.pending.rows.slots.is_ready()

        for made in self._masker.wait(running, ran.since, len(self._sequences)):
            self._take(made)
        ready = np.ones(self._shapes.slots, bool)
        ready[[self._sequences[sample].slot for sample in self._masker.waiting]] = False
        rounds = self._runner.draw(ran.pending, ready)
        self._in_flight.append(Decoded(rounds, ran.owners, self.scheduler.waiting > 0))

    def _take(self, made: NextMask) -> None:
        """Gives a sample the mask that has been made for it, unless it has ended meanwhile."""
        if sequence := self._sequences.get(made.sample):
            if isinstance(made.mask, RowError):
                self._finisher.fail(made.sample, made.mask)
                self.stop(made.sample)
            else:
                allowed = made.sample.ticket.rules.allowed
                self._runner.set_mask(sequence.slot, meet(made.mask, allowed))

    def _collect_all(self) -> None:
        while self._in_flight:
            self._collect(self._in_flight.popleft())

    def _collect(self, results: Decoded | Scored) -> None:
        if isinstance(results, Scored):
            self._collect_scores(results)
        else:
            self._collect_tokens(results)
        self.beat = time.monotonic()

    def _collect_scores(self, results: Scored) -> None:
        scores: Scores = jax.tree.map(np.asarray, results.scores)
        at = 0
        for segment in results.segments:
            ticket: Ticket | ScoreTicket = segment.prompt.ticket
            wanted = segment.prompt.request.logprobs_wanted
            for _, _, sample in segment.asks:
                fact = detail(scores, at, wanted)
                if isinstance(ticket, Ticket):
                    assert ticket.prompt_logprobs is not None
                    ticket.prompt_logprobs.append(fact)
                else:
                    ticket.add(sample, fact, int(scores.likeliest[at]))
                    self.counters.scored_tokens += 1
                at += 1
            if isinstance(ticket, ScoreTicket) and segment.asks and ticket.missing == 0:
                self._finisher.offer_scores(ticket)

    def _collect_tokens(self, results: Decoded) -> None:
        slots = np.asarray(results.rounds.slots)
        draws: Draws = jax.tree.map(np.asarray, results.rounds.draws)
        used = slots < self._shapes.slots
        self.counters.add(results, used)
        touched: dict[Sample, None] = {}
        drew: list[Sample] = []
        # Python's own numbers, all at once: one by one they take longer than all else here.
        at = np.nonzero(used)
        drawn = (a[at].tolist() for a in (slots, draws.token, draws.logprob))
        for k, row, slot, token, logprob in zip(*(a.tolist() for a in at), *drawn, strict=True):
            sequence = results.owners[slot]
            sample = self._samples.get(sequence)
            if sample is None:  # a beam, or ended by the host while the device went on
                self._beams.hear(sequence, draws, (k, row))
                continue
            sample.token_ids.append(token)
            sample.logprobs.append(logprob)
            if sample.details is not None:
                wanted = sample.ticket.request.params.logprobs or 0
                sample.details.append(detail(draws, (k, row), wanted))
            if end := sample.end():
                touched.pop(sample, None)
                self._finish(sequence)
                self._offer(sample, end)
                continue
            if sample.ticket.request.params.watched:
                touched[sample] = None
            if sample.matcher is not None:
                drew.append(sample)
        self._masker.ask(drew)
        for sequences, search in self._beams.advance():
            for sequence in sequences:
                self.scheduler.finish(sequence)
            for sample, end in search.samples():
                self._offer(sample, end)
        for sample in touched:
            self._offer(sample, None)

    def _finish(self, sequence: Sequence) -> None:
        sample = self._samples.pop(sequence)
        del self._sequences[sample]
        self._constrained.discard(sample)
        self._masker.waiting.discard(sample)
        self.scheduler.finish(sequence)
        if len(sample.ticket.rules.stop_ids) > STOP_IDS:
            self._stopped.add(sequence.slot)

    def _offer(self, sample: Sample, end: End | None) -> None:
        self._finisher.offer(sample, len(sample.token_ids), end)
