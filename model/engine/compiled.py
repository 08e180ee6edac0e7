"""The steps, compiled: side by side ahead of need, or when one is asked for."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from model.engine.compile_cache import CompileCache
from model.engine.programs import STEERED, Plan, steps
from model.engine.tuning import Tuning

_SELDOM = ("score", "fill_tables", *STEERED)
"""Steps that only some requests need."""


class CompiledSteps(Mapping[str, Callable[..., Any]]):
    """The steps of a plan, compiled: those that are foreseen ahead, the others when asked for.

    Thread-safe once ``prepare`` is done.

    Attributes:
      seconds: spent on compiling so far.
      beat: when a step that was asked for was last ready, monotonic.
      tuning: a GPU's choices of kernels, to be kept; None leaves them to each process.
    """

    def __init__(
        self, plan: Plan, tuning: Tuning | None = None, cache: CompileCache | None = None
    ) -> None:
        self.tuning = tuning
        self._cache = cache
        self._mesh = plan.mesh
        self._steps = steps(plan)
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._began: float | None = None
        self.seconds = self.beat = 0.0

    @property
    def compiling_seconds(self) -> float:
        """How long a step that was asked for has been compiling; 0 if none is."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def ready(self) -> int:
        """How many steps are compiled."""
        return len(self._compiled)

    def prepare(
        self, progress: Callable[[int, int, Sequence[str]], None], scores_only: bool = False
    ) -> None:
        """Compiles side by side: each step takes one core most of the time.

        Args:
          progress: told of how many steps are compiled, of how many, and which are being so.
          scores_only: whether only scoring is foreseen.
        """
        started = time.perf_counter()
        drawing = [name for name in self._steps if name not in _SELDOM]
        names = ["score", "copy_pages"] if scores_only else drawing
        under_way: dict[str, None] = {}

        def compile_one(name: str) -> None:
            with self._lock:
                under_way[name] = None
                progress(len(self._compiled), len(names), tuple(under_way))
            compiled = self._compile(name)
            with self._lock:
                del under_way[name]
                self._compiled[name] = compiled
                progress(len(self._compiled), len(names), tuple(under_way))

        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="grok1-compile") as pool:
            for future in [pool.submit(compile_one, name) for name in names]:
                future.result()
        self.seconds += time.perf_counter() - started

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._compiled:
            with self._lock:
                if name not in self._compiled:
                    self._compiled[name] = self._compile_late(name)
        return self._compiled[name]

    def foresee_steering(self) -> None:
        """Compiles the ``STEERED`` steps, unless they are, on a thread that may wait for it."""
        for name in STEERED:
            self[name]

    def keep(self) -> None:
        """Brings what was compiled so far to where it is kept for the next start.

        While nothing is being compiled: a file may be there before it is whole.
        """
        for kept in (self.tuning, self._cache):
            if kept is not None:
                kept.keep()

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def _compile_late(self, name: str) -> Callable[..., Any]:
        self._began = began = time.monotonic()
        try:
            compiled = self._compile(name)
            self.seconds += time.monotonic() - began
            self.keep()
        finally:
            self._began, self.beat = None, time.monotonic()
        return compiled

    def _compile(self, name: str) -> Callable[..., Any]:
        options = None if self.tuning is None else self.tuning.options
        return self._steps[name].lower(self._mesh).compile(compiler_options=options)
