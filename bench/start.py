"""Starts an engine in a process of its own: ``python -m bench.start MODEL CACHE``.

Prints, as JSON, how long it took to the first token, from the moment that Python began, and how
many programs had to be compiled, which is none where the cache holds them.
"""

import json
import os
import sys
import time


def main(model: str, cache: str) -> None:
    begun = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + _process_start()
    import jax

    from model.engine.engine import Engine
    from model.engine.options import EngineOptions
    from schemas.sampling import SamplingParams

    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    with Engine.from_checkpoint(model, options=EngineOptions(compile_cache=cache)) as engine:
        engine.generate([[1, 2, 3]], SamplingParams(max_tokens=1, temperature=0))
        first = time.time() - begun
        stats = engine.stats()
    facts = {
        "first_token_seconds": first,
        "cpu_seconds": time.process_time(),
        "compiled": events.count("/jax/compilation_cache/cache_misses"),
        "found": events.count("/jax/compilation_cache/cache_hits"),
        "compile_seconds": stats.compile_seconds,
        "load_seconds": stats.load_seconds,
    }
    print(json.dumps(facts))


def _process_start() -> float:
    """Seconds after boot at which this process began."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(*sys.argv[1:])
