"""From drawn tokens to answers: detokenizing, stop strings, futures. Off the engine's thread."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence

from model.engine.repetition import RepetitionWatcher
from model.engine.request import CompletionOutput, RequestOutput
from model.engine.scoring import ScoreTicket
from model.engine.ticket import LOOPED, OVERDUE, End, Sample, Ticket
from model.tokenizer import StreamDecoder, Tokenizer
from schemas.error import ErrorCode, RowError


class Overdue(Exception):
    """A row has taken longer than its deadline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A stop string in a sample's text: its end stands within the first ``tokens`` tokens."""

    text: str
    start: int
    end: int
    tokens: int


class StopWatcher:
    """Looks for stop strings in a growing text; the one that is complete first wins.

    Of several that end at the same character the longest is taken, so that the answer depends on
    the text alone and not on how tokens cut it.
    """

    def __init__(self, stops: Sequence[str], min_tokens: int, decoder: StreamDecoder) -> None:
        """``decoder`` turns tokens into the completion's text."""
        self._stops = sorted(stops, key=len, reverse=True)
        self._reach = len(self._stops[0]) - 1
        self._min_tokens = min_tokens
        self._decoder = decoder
        self._tokens = 0
        self._text = ""

    def feed(self, token_ids: Sequence[int], last: bool) -> Match | None:
        """The first match, once the text up to and with these tokens holds one."""
        for token_id in token_ids:
            self._tokens += 1
            if match := self._look(self._decoder.push([token_id])):
                return match
        return self._look(self._decoder.finish()) if last else None

    def _look(self, new: str) -> Match | None:
        if not new:
            return None
        checked = len(self._text)
        self._text += new
        if self._tokens <= self._min_tokens:
            return None
        window = max(0, checked - self._reach)
        found = [
            (end, -len(stop), stop)
            for stop in self._stops
            if (end := _first_end(self._text, stop, window, checked)) is not None
        ]
        if not found:
            return None
        end, length, stop = min(found)
        return Match(stop, end + length, end, self._tokens)


def _first_end(text: str, stop: str, start: int, after: int) -> int | None:
    """Where the first occurrence ends that ends past ``after``."""
    at = text.find(stop, max(start, after + 1 - len(stop), 0))
    return None if at < 0 else at + len(stop)


class _Watch:
    """What is looked for in one sample as its tokens come."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer | None) -> None:
        request = sample.ticket.request
        params = request.params
        self._sample, self._fed = sample, 0
        self._stops = self._loops = None
        if params.stop:
            assert tokenizer is not None  # such a request is refused without one
            decoder = tokenizer.stream(
                request.prompt_token_ids, params.skip_special_tokens, request.healed
            )
            self._stops = StopWatcher(params.stop, params.min_tokens, decoder)
        if params.repetition_detection is not None:
            self._loops = RepetitionWatcher(
                params.repetition_detection, params.min_tokens, params.max_tokens
            )

    def look(self, tokens: int, end: End | None) -> tuple[int, End, Match | None] | None:
        """What ends the sample within its first ``tokens`` tokens, if anything does.

        What is complete first counts. At the same token a stop string goes before ``end``, the end
        by the last token alone, and that before a loop.

        Returns:
          How many tokens are kept, why it ends there, and the stop string if there is one.
        """
        new = self._sample.token_ids[self._fed : tokens]
        self._fed = tokens
        looped = self._loops.feed(new) if self._loops else None
        if looped is not None and looped == tokens and end is not None:
            looped = None
        match = self._stops.feed(new, last=end is not None) if self._stops else None
        if match is not None and (looped is None or match.tokens <= looped):
            return match.tokens, End("stop"), match
        return None if looped is None else (looped, LOOPED, None)


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
        self._events: queue.SimpleQueue[tuple[Sample, int, End | None] | ScoreTicket | None] = (
            queue.SimpleQueue()
        )
        self._watches: dict[Sample, _Watch] = {}
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self._thread = threading.Thread(target=self._run, name="grok1-finisher", daemon=True)
        self._thread.start()

    def offer(self, sample: Sample, tokens: int, end: End | None) -> None:
        """A sample has ``tokens`` tokens; it has ended, or it is watched for stop strings."""
        self._events.put((sample, tokens, end))

    def offer_scores(self, ticket: ScoreTicket) -> None:
        """All that a request asked has been scored."""
        self._events.put(ticket)

    def close(self) -> None:
        """Answers what has been offered, then ends the thread."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, ScoreTicket):
                self._answer_scores(event)
                continue
            sample = event[0]
            try:
                self._handle(*event)
            except Exception as error:  # the row's own: its neighbours go on
                sample.answered = True
                self._stop(sample)
                if not sample.ticket.future.done():
                    sample.ticket.future.set_result(_failed(sample.ticket, error))

    def _answer_scores(self, ticket: ScoreTicket) -> None:
        request = ticket.request
        self.requests += 1
        self.prompt_tokens += len(request.context_token_ids) + sum(map(len, request.continuations))
        ticket.future.set_result(ticket.answer())

    def _handle(self, sample: Sample, tokens: int, end: End | None) -> None:
        if sample.answered:
            return
        if end is OVERDUE:
            raise Overdue(f"not complete {time.monotonic() - sample.began:.0f} s after it began")
        if sample.ticket.request.params.watched:
            watch = self._watches.pop(sample, None) or _Watch(sample, self._tokenizer)
            found = watch.look(tokens, end)
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
        if self._tokenizer is not None:
            text = self._tokenizer.decode_completion(
                ticket.request.prompt_token_ids,
                token_ids,
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


def _failed(ticket: Ticket, error: Exception) -> RequestOutput:
    message = f"decoding its tokens failed: {type(error).__name__}: {error}"
    found = RowError(ErrorCode.ENGINE_FAILURE, message)
    if isinstance(error, Overdue):
        found = RowError(ErrorCode.DEADLINE_EXCEEDED, str(error))
    return RequestOutput(prompt_token_ids=ticket.request.prompt_token_ids, error=found)


def _answer(ticket: Ticket) -> RequestOutput:
    scored = ticket.prompt_logprobs
    return RequestOutput(
        prompt_token_ids=ticket.request.prompt_token_ids,
        outputs=tuple(output for output in ticket.outputs if output is not None),
        prompt_logprobs=None if scored is None else tuple(scored),
        cached_tokens=ticket.cached_tokens,
    )
