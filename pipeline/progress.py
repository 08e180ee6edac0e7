"""How a local run gets on: one line that lives on a terminal, a line a minute elsewhere.

It looks at the counters that this process keeps anyhow, the engine's and the commits', from a
thread of its own; it never asks the output folder or the devices for anything.
"""

import collections
import dataclasses
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from model.engine.options import EngineStats
from pipeline import registry
from pipeline.commit import tally
from pipeline.prepare import Job
from pipeline.read import rows_read

_REFRESH_SECONDS = 0.5
_LOG_SECONDS = 60.0
_WINDOW_SECONDS = 15.0
"""Rates are those of the last so many seconds."""


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


def read_counters() -> Reading:
    """Looks at the counters of this process."""
    counts = tally.total()
    return Reading(
        at=time.monotonic(),
        committed=counts.rows_in,
        errored=counts.errored,
        stats=registry.total_stats(),
        phases=registry.phases(),
        compiling=registry.compiling(),
        rows_read=rows_read.total(),
    )


class Line:
    """Turns readings into a line of text."""

    def __init__(self, job: Job, first: Reading) -> None:
        """``first`` is the reading before the run began, that others are compared with."""
        self._rows, self._done_before = job.rows, job.rows_done
        self._scores = job.options.task == "score"
        self._first = first
        self._window: collections.deque[Reading] = collections.deque([first])
        self._rows_began: float | None = None

    def tell(self, now: Reading) -> str:
        """The line, once ``now`` is the latest reading."""
        self._window.append(now)
        while len(self._window) > 2 and now.at - self._window[0].at > _WINDOW_SECONDS:
            self._window.popleft()
        # What the engine has answered is done, though its chunk is committed only as a whole.
        done = self._done_before + self._answered(now)
        words = [f"{done:,} of {self._rows:,} rows ({done / max(1, self._rows):.0%})"]
        if errored := now.errored - self._first.errored:
            words.append(f"{errored:,} errored")
        if not _tokens_made(now) - _tokens_made(self._first):
            return " · ".join([*words, *_preparation(now, self._first)])
        # In the order of what people look for: a narrow terminal cuts the end off.
        if (left := self._seconds_left(now, done)) is not None:
            words.append(f"{duration(left)} left")
        return " · ".join(words + self._rates(now))

    def _rates(self, now: Reading) -> list[str]:
        then = self._window[0]
        seconds = max(now.at - then.at, 1e-9)

        def gain(name: str) -> int:
            return getattr(now.stats, name) - getattr(then.stats, name)

        prompt = gain("prefilled_tokens") / seconds
        made = (_tokens_made(now) - _tokens_made(then)) / seconds
        kind = "scored" if self._scores else "completion"
        rates = [f"{prompt:,.0f} prompt, {made:,.0f} {kind} tokens/s"]
        if rows := gain("decode_rows"):
            rates.append(f"slots {gain('decode_rows_used') / rows:.0%} full")
        return rates

    def _seconds_left(self, now: Reading, done: int) -> float | None:
        """By the time that a row has taken since the first token."""
        if self._rows_began is None:
            self._rows_began = now.at
            return None
        answered = self._answered(now)
        return (self._rows - done) * (now.at - self._rows_began) / answered if answered else None

    def _answered(self, now: Reading) -> int:
        committed = now.committed - self._first.committed
        # A row to score may be several requests, or share one with others.
        answered = 0 if self._scores else now.stats.requests - self._first.stats.requests
        return min(max(answered, committed), self._rows - self._done_before)


def _tokens_made(now: Reading) -> int:
    return now.stats.decode_rows_used + now.stats.scored_tokens


def _preparation(now: Reading, first: Reading) -> list[str]:
    """What goes on before the first token."""
    if now.phases:
        under_way = [name for name, (done, of, _) in sorted(now.phases.items()) if done < of]
        return [_phase(name, now) for name in reversed(under_way)] or ["starting the engine"]
    if now.stats.compile_seconds > first.stats.compile_seconds:
        prompts = now.stats.prefilled_tokens - first.stats.prefilled_tokens
        return [f"computing prompts, {prompts:,} tokens so far"]
    read = now.rows_read - first.rows_read
    return [f"{read:,} rows read", "starting the engine"] if read else ["reading"]


def _phase(name: str, now: Reading) -> str:
    done, of, began = now.phases[name]
    if name == "loading":
        rate = done / max(now.at - began, 1e-9)
        unit, size = (1e9, "GB") if of >= 1e9 else (1e6, "MB")
        return f"loading {done / unit:.1f} of {of / unit:.1f} {size}, {rate / unit:.2f} {size}/s"
    steps = ", ".join(step.replace("_", " ") for step in now.compiling)
    return f"compiling {steps or 'steps'} ({done:.0f} of {of:.0f} done)"


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


class Progress:
    """A context in which the line is shown."""

    def __init__(self, job: Job, stream: TextIO | None = None) -> None:
        """Args: the job, and where to write; by default stderr."""
        self._stream = stream or sys.stderr
        self._line = Line(job, read_counters())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grok1-progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._stream.isatty():
            self._live()
            return
        while not self._ended.wait(_LOG_SECONDS):
            stamp = time.strftime("%H:%M:%S")
            print(f"{stamp} {self._line.tell(read_counters())}", file=self._stream, flush=True)

    def _live(self) -> None:
        spinner = Spinner("dots", style="cyan")
        told = ""

        def line() -> Text:
            frame = spinner.render(time.monotonic())
            assert isinstance(frame, Text)  # a spinner without a text of its own
            # One line, however narrow the terminal.
            return Text.assemble(frame, " ", told, overflow="ellipsis", no_wrap=True)

        console = Console(file=self._stream)
        with Live(get_renderable=line, console=console, transient=True, refresh_per_second=4):
            while not self._ended.wait(_REFRESH_SECONDS):
                told = self._line.tell(read_counters())
