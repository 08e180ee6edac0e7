"""The model behind ``RunInference``: a chunk of questions in, the same chunk answered out."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from model.checkpoint import files
from model.engine.memory import OutOfMemory
from model.engine.options import EngineOptions, EngineStats
from pipeline import careful, health, preemption, registry
from pipeline.questions import Answers, Questions
from pipeline.strikes import Ledger

NAMESPACE = "grok1"
"""Of all metrics."""


class Grok1ModelHandler(ModelHandler[Questions, Answers, "EngineHandle"]):
    """Runs Grok-1 inside ``RunInference``.

    An element is a ``Questions`` and is never batched further: its rows meet those of other
    chunks in the engine, which one process has once, whatever number of threads call it. The
    engine is loaded when the first row needs it, so a resumed run with nothing left loads none.

    A row that fails is a row with an error. Anything else raises, which fails the bundle: no part
    is written, and the runner's retry or the next start does the chunk again.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        tokenizer: str | None = None,
        options: EngineOptions | None = None,
        identity: str | None = None,
        stall_seconds: float | None = None,
        scores_only: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
          checkpoint: folder of the checkpoint.
          tokenizer: SentencePiece model; None takes the checkpoint's, if it has one.
          options: the engine's settings.
          identity: what the checkpoint's identity must be, or None for any.
          stall_seconds: how long its devices may give nothing while asked; None for ever.
          scores_only: whether it will only score.
          ledger: where to record which rows are in the engine; None for nowhere, and then a row
            that kills the process does so at each attempt.
        """
        super().__init__()
        self._ledger = ledger
        self._settings = registry.EngineSettings(
            checkpoint=checkpoint,
            tokenizer=tokenizer,
            options=options or EngineOptions(),
            identity=identity,
            stall_seconds=stall_seconds,
            scores_only=scores_only,
        )

    def load_model(self) -> "EngineHandle":
        """A handle on the process's engine; loads nothing yet."""
        preemption.install_in_worker()
        return EngineHandle(self._settings)

    def run_inference(  # type: ignore[override]  # without batching Beam hands an element on
        self,
        batch: Questions,
        model: "EngineHandle",
        inference_args: dict[str, Any] | None = None,
    ) -> Sequence[Answers]:
        """Asks the engine for all of a chunk's rows and waits; returns the one answered chunk."""
        started = time.monotonic()
        if batch.nothing_to_ask:
            return [batch.answered((None,) * len(batch.sources), saved=batch.known)]
        held, answers = self._answer(batch, model)
        gain, seconds = held.advance(), time.monotonic() - started
        _count_engine(gain)
        health.report(NAMESPACE, model.name, seconds, gain, held.engine.device_memory())
        return [
            dataclasses.replace(
                answers,
                seconds=seconds,
                decode_rows=gain.decode_rows,
                decode_rows_used=gain.decode_rows_used,
            )
        ]

    def _answer(self, batch: Questions, model: "EngineHandle") -> tuple[registry.Held, Answers]:
        while True:
            held = model.acquire()
            try:
                return held, careful.answer(batch, held, self._ledger)
            except OutOfMemory as error:
                registry.discard(held)
                registry.take_fewer_slots(self._settings, error)
            except Exception:
                registry.discard(held)
                raise

    def get_num_bytes(self, batch: Questions) -> int:  # type: ignore[override]
        """Bytes of the rows; the default would pickle them to find out."""
        return batch.rows.nbytes

    def should_skip_batching(self) -> bool:
        """An element is a batch already."""
        return True

    def get_metrics_namespace(self) -> str:
        """The namespace of all metrics of a run."""
        return NAMESPACE

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Beam's own would count chunks as inferences, and a handle's making as the load."""
        return True


class EngineHandle:
    """What Beam holds as the model: the way to the process's engine."""

    def __init__(self, settings: registry.EngineSettings) -> None:
        self._settings = settings

    @property
    def name(self) -> str:
        """The checkpoint's name, for logs."""
        return files.basename(self._settings.checkpoint)

    def acquire(self) -> registry.Held:
        """The engine; the first caller loads it while the others wait."""
        return registry.acquire(self._settings)


def _count_engine(gain: EngineStats) -> None:
    for name, value in _counts(gain):
        if value:
            Metrics.counter(NAMESPACE, name).inc(value)
    if gain.busy_seconds > 0:
        rate = gain.completion_tokens / gain.busy_seconds
        Metrics.distribution(NAMESPACE, "tokens_per_second").update(round(rate))
    if gain.decode_rows:
        share = round(100 * gain.slot_occupancy)
        Metrics.distribution(NAMESPACE, "slot_occupancy_percent").update(share)


def _counts(gain: EngineStats) -> Iterator[tuple[str, int]]:
    for name in ("load", "compile", "busy"):
        yield f"{name}_milliseconds", round(1000 * getattr(gain, f"{name}_seconds"))
    for name in ("decode_rows", "decode_rows_used", "decode_rows_waiting"):
        yield name, getattr(gain, name)
    yield "prefilled_tokens", gain.prefilled_tokens
    yield "scored_tokens", gain.scored_tokens
    yield "decoded_tokens", gain.completion_tokens
