"""How a local run gets on: one line that lives on a terminal, a line a minute elsewhere.

It looks at the counters that this process keeps anyhow, the engine's and the commits', from a
thread of its own; it never asks the output folder or the devices for anything.
"""

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from pipeline import registry
from pipeline.commit import tally
from pipeline.prepare import Job
from pipeline.progress_line import Line, Reading
from pipeline.read import rows_read

_REFRESH_SECONDS = 0.5
_LOG_SECONDS = 60.0
_SPINNER_COLUMNS = 2
"""Of a terminal's line: the spinner and a space."""


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
        else:
            self._log()

    def _log(self) -> None:
        last = time.monotonic()
        # Read as often as on a terminal: by readings a minute apart nobody could say when the
        # first token came, nor what the rates of the last seconds are.
        while not self._ended.wait(min(_REFRESH_SECONDS, _LOG_SECONDS)):
            told = self._line.tell(read_counters())
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                print(f"{time.strftime('%H:%M:%S')} {told}", file=self._stream, flush=True)

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
                told = self._line.tell(read_counters(), console.width - _SPINNER_COLUMNS)
