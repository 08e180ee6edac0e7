"""What a run's counters come to as a line of text, as long as there is room for."""

import collections
import dataclasses

from model.engine.options import EngineStats
from pipeline.prepare import Job

_WINDOW_SECONDS = 15.0
"""Rates are those of the last so many seconds."""

_LONG, _MIDDLE, _SHORT, _SHORTEST = range(4)
"""Forms of the line: words; few words, but rows counted in full; rounded; rounded more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The counters at one moment.

    Attributes:
      at: seconds, monotonic.
      committed: input rows in parts that this run wrote or found.
      errored: those of them that are errors.
      stats: the engine's; zeros before there is one.
      phases: of an engine in the making: phase -> (done, of how much, when it began).
      compiling: the steps that are being compiled for it.
      rows_read: input rows that are ready for the model, or were.
    """

    at: float
    committed: int
    errored: int
    stats: EngineStats
    phases: dict[str, tuple[float, float, float]]
    compiling: tuple[str, ...]
    rows_read: int


class Line:
    """Turns readings into a line of text."""

    def __init__(self, job: Job, first: Reading) -> None:
        """``first`` is the reading before the run began, that others are compared with."""
        self._rows, self._done_before = job.rows, job.rows_done
        self._scores = job.options.task == "score"
        self._first = first
        self._window: collections.deque[Reading] = collections.deque([first])
        self._rows_began: tuple[float, int] | None = None

    def tell(self, now: Reading, width: int | None = None) -> str:
        """The line, once ``now`` is the latest reading.

        Args:
          now: the reading.
          width: characters that there is room for. The longest form that fits is told, or the
            shortest if none does; without a width, the longest.
        """
        self._window.append(now)
        while len(self._window) > 2 and now.at - self._window[0].at > _WINDOW_SECONDS:
            self._window.popleft()
        started = _tokens_made(now) > _tokens_made(self._first)
        if started and self._rows_began is None:
            self._rows_began = now.at, self._answered(now)
        for form in (_LONG, _MIDDLE, _SHORT, _SHORTEST):
            words = self._rows_told(now, form)
            words += self._rates(now, form) if started else _preparation(now, self._first, form)
            line = " · ".join(words)
            if width is None or len(line) <= width:
                break
        return line

    def _rows_told(self, now: Reading, form: int) -> list[str]:
        # What the engine has answered is done, though its chunk is committed only as a whole.
        done = self._done_before + self._answered(now)
        # Never 100 % before all are.
        percent = 100 * done // max(1, self._rows)
        if form == _LONG:
            words = [f"{done:,} of {self._rows:,} rows ({percent}%)"]
        else:
            noun = "" if form == _SHORTEST else " rows"
            words = [f"{_count(done, form)}/{_count(self._rows, form)}{noun} {percent}%"]
        if errored := now.errored - self._first.errored:
            # Which rows of the parts found at the start are errors, only their footers would tell.
            since = " since resuming" if form == _LONG else " since"
            words.append(
                f"{_count(errored, form)} errored{since if self._done_before else ''}",
            )
        if (left := self._seconds_left(now, done)) is not None:
            told = duration(left) if form in (_LONG, _MIDDLE) else _rough_duration(left)
            words.append(f"{told} left")
        return words

    def _rates(self, now: Reading, form: int) -> list[str]:
        then = self._window[0]
        seconds = max(now.at - then.at, 1e-9)

        def gain(name: str) -> int:
            return getattr(now.stats, name) - getattr(then.stats, name)

        prompt = gain("prefilled_tokens") / seconds
        made = (_tokens_made(now) - _tokens_made(then)) / seconds
        if form == _LONG:
            kind = "scored" if self._scores else "completion"
            rates = [f"{prompt:,.0f} prompt, {made:,.0f} {kind} tokens/s"]
        else:
            short = max(form, _SHORT)
            rates = [f"{_count(prompt, short)} + {_count(made, short)} tok/s"]
        if rows := gain("decode_rows"):
            slots = "slots " if form == _LONG else ""
            rates.append(f"{slots}{gain('decode_rows_used') / rows:.0%} full")
        return rates

    def _seconds_left(self, now: Reading, done: int) -> float | None:
        """By the time that a row has taken since the first token."""
        if self._rows_began is None or done >= self._rows:
            return None
        began, before = self._rows_began
        answered = self._answered(now) - before
        return (self._rows - done) * (now.at - began) / answered if answered else None

    def _answered(self, now: Reading) -> int:
        committed = now.committed - self._first.committed
        # A row to score may be several requests, or share one with others.
        answered = 0 if self._scores else now.stats.requests - self._first.stats.requests
        return min(max(answered, committed), self._rows - self._done_before)


def _tokens_made(now: Reading) -> int:
    return now.stats.decode_rows_used + now.stats.scored_tokens


def _preparation(now: Reading, first: Reading, form: int) -> list[str]:
    """What goes on before the first token."""
    if now.phases:
        under_way = [name for name, (done, of, _) in sorted(now.phases.items()) if done < of]
        return [_phase(name, now, form) for name in reversed(under_way)] or ["starting the engine"]
    if now.stats.compile_seconds > first.stats.compile_seconds:
        prompts = now.stats.prefilled_tokens - first.stats.prefilled_tokens
        so_far = " so far" if form == _LONG else ""
        return [f"computing prompts, {_count(prompts, form)} tokens{so_far}"]
    read = now.rows_read - first.rows_read
    return [f"{_count(read, form)} rows read", "starting the engine"] if read else ["reading"]


def _phase(name: str, now: Reading, form: int) -> str:
    done, of, began = now.phases[name]
    between = " of " if form == _LONG else "/"
    if name == "loading":
        rate = done / max(now.at - began, 1e-9)
        unit, size = (1e9, "GB") if of >= 1e9 else (1e6, "MB")
        told = f"loading {done / unit:.1f}{between}{of / unit:.1f} {size}"
        return f"{told}, {rate / unit:.{2 if form == _LONG else 1}f} {size}/s"
    if form != _LONG:
        return f"compiling {done:.0f}/{of:.0f}"
    steps = ", ".join(step.replace("_", " ") for step in now.compiling)
    return f"compiling {steps or 'steps'} ({done:.0f} of {of:.0f} done)"


def _count(number: float, form: int) -> str:
    """A number in full, or, in a short form, its first digits: ``12.7k``, ``1.2M``, ``127k``."""
    if form in (_LONG, _MIDDLE):
        return f"{number:,.0f}"
    units = ["G", "M", "k"]
    unit = ""
    # Rounded first, else 999,999 would be 1000k.
    while round(number) >= 1000 and units:
        number, unit = number / 1000, units.pop()
    exact = unit and number < (100 if form == _SHORT else 10)
    return f"{round(number, 1):g}{unit}" if exact else f"{number:.0f}{unit}"


def duration(seconds: float) -> str:
    """A time for people: ``45 s``, ``3 min 20 s``, ``5 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _rough_duration(seconds: float) -> str:
    """A time in its largest unit: ``45 s``, ``3 min``, ``5.2 h``, ``27 h``."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds / 60) < 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 10 * 3600 else f"{seconds / 3600:.0f} h"
