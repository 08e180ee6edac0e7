"""How a worker fares: one structured log line a chunk, by OpenTelemetry's names, and device memory.

The line is JSON, which Dataflow's log viewer and others take apart. It never holds a prompt or a
completion.
"""

import json
import logging
from typing import Any

from apache_beam.metrics import Metrics

from model.engine.options import EngineStats

_LOGGER = logging.getLogger("grok1.worker")


def report(namespace: str, model: str, seconds: float, gain: EngineStats, memory: int) -> None:
    """Logs what the engine did since the last call, and counts its device memory.

    Args:
      namespace: of the metrics.
      model: the checkpoint, as ``gen_ai.request.model``.
      seconds: from the chunk's first request to its last answer.
      gain: the engine's counters since the last call.
      memory: bytes in use on the fullest device; 0 where it does not tell.
    """
    if memory:
        Metrics.distribution(namespace, "device_memory_mib").update(memory >> 20)
    _LOGGER.info(
        "%s", json.dumps(event(model, seconds, gain, memory), separators=(",", ":"), sort_keys=True)
    )


def event(model: str, seconds: float, gain: EngineStats, memory: int) -> dict[str, Any]:
    """The line's fields."""
    busy = gain.busy_seconds
    return {
        "event": "grok1.chunk",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "x_ai",
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": gain.prompt_tokens,
        "gen_ai.usage.output_tokens": gain.completion_tokens,
        "grok1.requests": gain.requests,
        "grok1.chunk.seconds": round(seconds, 3),
        "grok1.tokens_per_second": round(gain.completion_tokens / busy, 1) if busy > 0 else None,
        "grok1.slot_occupancy": round(gain.slot_occupancy, 4),
        "grok1.load_seconds": round(gain.load_seconds, 3),
        "grok1.compile_seconds": round(gain.compile_seconds, 3),
        "grok1.device_memory_bytes": memory or None,
    }
