"""What ends a sample beside its last token: stop strings, and loops."""

import dataclasses
from collections.abc import Sequence

from model.detokenizer import StreamDecoder
from model.engine.repetition import RepetitionWatcher
from model.engine.request import Request
from model.engine.ticket import LOOPED, End
from model.tokenizer import Tokenizer


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


class Watch:
    """What is looked for in one sample as its tokens come."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        """A sample of the request; nothing has come yet."""
        self._params = params = request.params
        self._fed = 0
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

    def look(
        self, token_ids: Sequence[int], tokens: int, end: End | None
    ) -> tuple[int, End, Match | None] | None:
        """What ends the sample within the first ``tokens`` of its tokens, if anything does.

        What is complete first counts. At the same token a stop string goes before ``end``, the end
        by the last token alone, and that before a loop. Stop strings are looked for in what is
        text: a stop token is not, whatever it stands for.

        Returns:
          How many tokens are kept, why it ends there, and the stop string if there is one.
        """
        new = token_ids[self._fed : tokens]
        self._fed = tokens
        looped = self._loops.feed(new) if self._loops else None
        if looped is not None and looped == tokens and end is not None:
            looped = None
        text = new[:-1] if end is not None and end.hides_last(self._params) else new
        match = self._stops.feed(text, last=end is not None) if self._stops else None
        if match is not None and (looped is None or match.tokens <= looped):
            return match.tokens, End("stop"), match
        return None if looped is None else (looped, LOOPED, None)
