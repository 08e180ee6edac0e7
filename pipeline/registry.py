"""The engines of this process: one for each set-up, shared by all harness threads.

Beam's own model sharing is not used: it pickles calls to a server process, and the accelerators
belong to one process anyhow.
"""

import atexit
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.checkpoint import files
from model.checkpoint.source import open_checkpoint
from model.engine.memory import OutOfMemory
from model.engine.options import EngineOptions, EngineStats
from pipeline import watchdog
from pipeline.window import Gate
from schemas.error import SetupError

if TYPE_CHECKING:
    from model.engine.engine import Engine
    from pipeline.prepare import Job


_LOGGER = logging.getLogger("grok1.worker")

TUNING = "_tuning"
"""Folder of a run's output with a GPU's choices of kernels, so that a restart makes the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is made from; equal settings share one.

    Attributes:
      checkpoint: folder of the checkpoint.
      tokenizer: SentencePiece model; None takes the checkpoint's, if it has one.
      options: the engine's settings.
      identity: what the checkpoint's identity must be, or None for any.
      stall_seconds: how long its devices may give nothing while asked; None for ever.
      scores_only: whether only scoring is foreseen; any engine will do for it.
    """

    checkpoint: str
    tokenizer: str | None = None
    options: EngineOptions = dataclasses.field(default_factory=EngineOptions)
    identity: str | None = None
    stall_seconds: float | None = dataclasses.field(default=None, compare=False)
    scores_only: bool = dataclasses.field(default=False, compare=False)


def engine_settings(job: "Job") -> EngineSettings:
    """What a job's engine is made from."""
    return EngineSettings(
        checkpoint=job.options.checkpoint,
        tokenizer=job.tokenizer,
        options=dataclasses.replace(job.engine, tuning=files.join(job.options.output, TUNING)),
        identity=job.settings["checkpoint"],
        scores_only=job.options.task == "score",
    )


class Held:
    """An engine with the reading of its counters, and the gate to it.

    Attributes:
      engine: the engine.
      gate: all rows go through it.
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        # Twice what it decodes: a batch is let in as rows end, and their prompts are computed
        # ahead.
        self.gate = Gate(2 * engine.capacity)
        self._read = EngineStats()
        self._lock = threading.Lock()

    def advance(self) -> EngineStats:
        """What the counters gained since the last call; over all callers they add up."""
        with self._lock:
            now, before = self.engine.stats(), self._read
            self._read = now
        gains = {
            field.name: getattr(now, field.name) - getattr(before, field.name)
            for field in dataclasses.fields(EngineStats)
        }
        return EngineStats(**gains)


def load_engine(settings: EngineSettings) -> "Engine":
    """Loads an engine; imports JAX, which the machine that submits a job may not have.

    Raises:
      SetupError: the checkpoint is not the one that the job was set up with.
    """
    from model.engine.engine import Engine

    found = open_checkpoint(settings.checkpoint).identity() if settings.identity else None
    if found != settings.identity:
        raise SetupError(
            f"{files.redact(settings.checkpoint)} has changed since the run began; start it again"
        )
    while True:
        options = settings.options
        if settings in _fewer_slots:
            options = dataclasses.replace(options, slots=_fewer_slots[settings])
        try:
            return Engine.from_checkpoint(
                settings.checkpoint,
                tokenizer=settings.tokenizer,
                options=options,
                progress=_note_phase,
                scores_only=settings.scores_only,
            )
        except OutOfMemory as error:
            take_fewer_slots(settings, error)
        finally:
            _phases.clear()


def take_fewer_slots(settings: EngineSettings, error: OutOfMemory) -> None:
    """Lets engines of these settings be made with half the slots from now on.

    Raises:
      SetupError: results might not be the same with these, so the user must say so.
    """
    if error.half is None:
        raise SetupError(
            f"{error}; give --slots {max(1, error.slots // 2)}, with which results may differ in "
            "their last bits"
        ) from None
    if error.half < _fewer_slots.get(settings, error.slots):
        # Of several threads that waited for the engine, one tells.
        _fewer_slots[settings] = error.half
        _LOGGER.warning("%s; going on with %d, which changes no result", error, error.half)


factory: Callable[[EngineSettings], "Engine"] = load_engine
"""Makes an engine. A program may put its own here, to bring another implementation."""

_fewer_slots: dict[EngineSettings, int] = {}

_phases: dict[str, tuple[float, float, float]] = {}
_compiling: tuple[str, ...] = ()


def _note_phase(phase: str, done: float, of: float, names: Sequence[str]) -> None:
    global _compiling
    began = _phases[phase][2] if phase in _phases else time.monotonic()
    _phases[phase] = (done, of, began)
    if phase == "compiling":
        _compiling = tuple(names)


def phases() -> dict[str, tuple[float, float, float]]:
    """Of an engine in the making: phase -> (done, of how much, when it began, monotonic)."""
    return dict(_phases)


def compiling() -> tuple[str, ...]:
    """The steps that are being compiled for an engine in the making."""
    return _compiling if _phases else ()


def total_stats() -> EngineStats:
    """The counters of this process's engines, summed."""
    stats = [held.engine.stats() for held in list(_held.values())]
    names = [field.name for field in dataclasses.fields(EngineStats)]
    return EngineStats(**{name: sum(getattr(s, name) for s in stats) for name in names})


_held: dict[EngineSettings, Held] = {}
_lock = threading.Lock()
_ended = threading.Event()


class ShutDown(Exception):
    """The process is about to end, and no engine is to be had any more."""


def acquire(settings: EngineSettings) -> Held:
    """The process's engine for these settings, loaded by whoever asks first.

    Raises:
      ShutDown: ``shut_down`` was called.
    """
    with _lock:
        if settings not in _held and not _ended.is_set():
            with watchdog.watching_load(phases, settings.stall_seconds):
                held = _held[settings] = Held(factory(settings))
            if settings.stall_seconds is not None:
                watchdog.watch(held.engine, settings.stall_seconds)
        if _ended.is_set():  # perhaps while it loaded
            raise ShutDown("this process is about to end")
        return _held[settings]


def discard(held: Held) -> None:
    """Ends an engine that failed, so that a retry loads another once the devices are free."""
    with _lock:
        for settings in [s for s, other in _held.items() if other is held]:
            del _held[settings]
            held.engine.close()


def is_ending() -> bool:
    """Whether ``shut_down`` was called."""
    return _ended.is_set()


def shut_down() -> None:
    """Abandons what the engines have under way, and loads no more: the process is about to end.

    Whoever waits for an answer gets an exception. A load under way is not waited for.
    """
    _ended.set()
    for held in list(_held.values()):
        held.engine.close(abandon=True)


@atexit.register
def close_all() -> None:
    """Closes every engine; those asked for later are loaded anew."""
    if _ended.is_set():
        return
    with _lock:
        engines = [held.engine for held in _held.values()]
        _held.clear()
    for engine in engines:
        engine.close()
