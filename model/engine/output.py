"""From drawn tokens to answers: detokenizing, stop strings, futures. Off the engine's thread."""

import queue
import threading
import time
from collections.abc import Callable

from model.engine.request import CompletionOutput, RequestOutput
from model.engine.scoring import ScoreTicket
from model.engine.ticket import OVERDUE, End, Sample, Ticket
from model.engine.watch import Match, Watch
from model.tokenizer import Tokenizer
from schemas.error import ErrorCode, RowError

_Event = tuple[Sample, int, End | None] | tuple[Sample, RowError] | ScoreTicket | None


class Finisher:
    """A thread that turns ended samples into answers, and ends samples at stop strings.

    Attributes:
      requests: answered so far.
      prompt_tokens: of those.
      completion_tokens: of those.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Callable[[Sample], None]) -> None:
        """``stop`` tells the engine, from this thread, that a sample needs no more tokens."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._watches: dict[Sample, Watch] = {}
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self._thread = threading.Thread(target=self._run, name="grok1-finisher", daemon=True)
        self._thread.start()

    def offer(self, sample: Sample, tokens: int, end: End | None) -> None:
        """A sample has ``tokens`` tokens; it has ended, or it is watched for stop strings."""
        self._events.put((sample, tokens, end))

    def offer_scores(self, ticket: ScoreTicket) -> None:
        """All that a request asked has been scored."""
        self._events.put(ticket)

    def fail(self, sample: Sample, error: RowError) -> None:
        """A sample cannot be completed, and so neither can its request."""
        self._events.put((sample, error))

    def close(self) -> None:
        """Answers what has been offered, then ends the thread."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, ScoreTicket):
                self._answer_scores(event)
                continue
            if len(event) == 2:
                self._fail(*event)
                continue
            try:
                self._handle(*event)
            except Exception as error:  # the row's own: its neighbours go on
                message = f"decoding its tokens failed: {type(error).__name__}: {error}"
                self._fail(event[0], RowError(ErrorCode.ENGINE_FAILURE, message))

    def _fail(self, sample: Sample, error: RowError) -> None:
        sample.answered = True
        self._stop(sample)
        ticket = sample.ticket
        if not ticket.future.done():
            prompt = ticket.request.prompt_token_ids
            ticket.future.set_result(RequestOutput(prompt_token_ids=prompt, error=error))

    def _answer_scores(self, ticket: ScoreTicket) -> None:
        request = ticket.request
        self.requests += 1
        self.prompt_tokens += len(request.context_token_ids) + sum(map(len, request.continuations))
        ticket.future.set_result(ticket.answer())

    def _handle(self, sample: Sample, tokens: int, end: End | None) -> None:
        if sample.answered:
            return
        if end is OVERDUE:
            told = f"not complete {time.monotonic() - sample.began:.0f} s after it began"
            self._fail(sample, RowError(ErrorCode.DEADLINE_EXCEEDED, told))
            return
        if sample.ticket.request.params.watched:
            watch = self._watches.pop(sample, None)
            watch = watch or Watch(sample.ticket.request, self._tokenizer)
            found = watch.look(sample.token_ids, tokens, end)
            if found is not None:
                self._stop(sample)
                self._complete(sample, *found)
                return
            if end is None:
                self._watches[sample] = watch
        if end is not None:
            self._complete(sample, tokens, end, None)

    def _complete(self, sample: Sample, tokens: int, end: End, match: Match | None) -> None:
        ticket, params = sample.ticket, sample.ticket.request.params
        sample.answered = True
        token_ids = tuple(sample.token_ids[:tokens])
        text = ""
        silent = match is None and end.hides_last(params)
        if self._tokenizer is not None:
            text = self._tokenizer.decode_completion(
                ticket.request.prompt_token_ids,
                token_ids[:-1] if silent else token_ids,
                params.skip_special_tokens,
                ticket.request.healed,
            )
        stop_reason: str | int | None = end.stop_reason
        if match is not None:
            stop_reason = match.text
            text = text[: match.end if params.include_stop_str_in_output else match.start]
        ticket.outputs[sample.index] = CompletionOutput(
            index=sample.index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=float(sum(sample.logprobs[:tokens])),
            logprobs=None if sample.details is None else tuple(sample.details[:tokens]),
            finish_reason=end.finish_reason,
            stop_reason=stop_reason,
        )
        self.completion_tokens += tokens
        ticket.missing -= 1
        if ticket.missing == 0 and not ticket.future.done():
            self.requests += 1
            self.prompt_tokens += len(ticket.request.prompt_token_ids)
            ticket.future.set_result(_answer(ticket))


def _answer(ticket: Ticket) -> RequestOutput:
    scored = ticket.prompt_logprobs
    return RequestOutput(
        prompt_token_ids=ticket.request.prompt_token_ids,
        outputs=tuple(output for output in ticket.outputs if output is not None),
        prompt_logprobs=None if scored is None else tuple(scored),
        cached_tokens=ticket.cached_tokens,
    )
