"""What one device of eight does, as an engine of its own: a slice of the model, random weights.

Under 8-way tensor parallelism a device holds an eighth of heads, expert width and vocabulary, and
all layers at full width. That slice is a model of the same architecture, so the engine's real
steps run on it, on one device; only the exchanges between devices are missing.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import Grok1Config
from model.engine.batch import pack
from model.engine.cache import PagePool
from model.engine.load import allocate
from model.engine.machine import ACCELERATOR_RESERVE
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import Plan, steps
from model.engine.request import Request
from model.engine.runner import Runner
from model.engine.scheduler import Scheduler
from model.engine.state import SlotState, empty_slots
from model.layout import abstract_params, choose_layout, held_bytes
from model.numerics import MODES
from model.sharding import make_mesh
from schemas.error import SetupError
from schemas.sampling import SamplingParams


def slice_of(config: Grok1Config, devices: int) -> Grok1Config:
    """The model that one of so many devices computes."""
    return dataclasses.replace(
        config,
        num_q_heads=config.num_q_heads // devices,
        num_kv_heads=config.num_kv_heads // devices,
        ffn_size=config.ffn_size // devices,
        vocab_size=config.vocab_size // devices,
        model_shards=max(config.model_shards // devices, 1),
    )


class DeviceSlice:
    """Random weights on the first device, and the engine's runner on them.

    Attributes:
      config: the slice.
      weights: ``int8`` or ``int4``.
    """

    def __init__(self, config: Grok1Config, weights: str, numerics: str, kernels: str) -> None:
        self.config, self.weights = config, weights
        self._numerics, self._kernels = numerics, kernels
        self._mesh = make_mesh(1, config, jax.devices())
        platform = self._mesh.devices.flat[0].platform
        self._layout = choose_layout(platform, MODES[numerics], weights)

    @functools.cached_property
    def params(self) -> Any:
        """The weights, drawn when they are first asked for: what does not fit never asks."""
        numerics = MODES[self._numerics]
        described = abstract_params(self.config, self._mesh, numerics, self._layout)
        return jax.tree.map(_random, described)

    def plan(self, batch: int, context: int) -> Plan:
        """An engine's plan for so many sequences, all of which the cache holds at full length.

        Without drafts: random weights repeat nothing that could be looked up, and where each row
        has a sequence of its own none is left for a draft. So a row draws one token a step.
        """
        given = EngineOptions(
            numerics=self._numerics,
            kernels=self._kernels,
            slots=batch,
            max_context=context,
            draft_tokens=0,
        )
        plan = make_plan(self.config, given, self._mesh, self._layout, memory=1 << 62)
        # A CPU computes rows in tiles, so there may be more of them than asked for.
        pages = 2 + plan.shapes.rows * plan.shapes.sequence_pages
        shapes = dataclasses.replace(plan.shapes, pages=pages)
        return dataclasses.replace(plan, shapes=shapes)

    def needed_bytes(self, plan: Plan) -> int:
        """Of the device: weights, cache, what is kept of slots, and what an engine leaves free."""
        return held_bytes(steps(plan)["decode"].arguments) + ACCELERATOR_RESERVE

    def decode_seconds(self, plan: Plan, context: int, rounds: int) -> float:
        """Seconds of one decode step of all ``plan.shapes.rows``, at the end of a context.

        Raises:
          SetupError: the context is shorter than what all rounds draw.
        """
        state = _running(plan, context, rounds)
        with self._runner(plan, "edit_slots", "decode") as runner:
            runner.edit_slots(state.alive, state)
            seconds = _seconds(lambda _: runner.decode(), None, rounds)
        return seconds / plan.shapes.steps

    def prefill_seconds(self, plan: Plan, context: int) -> tuple[int, float]:
        """Prompt tokens of whole contexts, and the seconds that their prefill steps take."""
        packed = [*_prompts(plan, context)]
        tokens = sum(int(rows.live.sum()) for rows, _ in packed)
        with self._runner(plan, "prefill") as runner:

            def once(_):
                for rows, queries in packed:
                    runner.prefill(rows, queries)
                runner.wait()

            return tokens, _seconds(once, None, 2)

    @contextlib.contextmanager
    def _runner(self, plan: Plan, *names: str) -> Iterator[Runner]:
        """The engine's runner with these steps: it calls them here just as it does there."""
        made = steps(plan)
        compiled = {name: made[name].lower(plan.mesh).compile() for name in names}
        runner = Runner(compiled, plan, self.params, *allocate(plan))
        try:
            yield runner
        finally:
            runner.release()


def device_memory() -> int | None:
    """Bytes that programs may take of the first device; None where it does not tell, as a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def copy_bandwidth(nbytes: int) -> float:
    """Bytes a second that the device reads and writes when it copies so many."""
    source = jnp.zeros(nbytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    return 2 * nbytes / _seconds(copy, source, 10)


def matmul_rate(size: int) -> float:
    """bfloat16 operations a second of a square product with float32 sums."""
    square = jnp.zeros((size, size), jnp.bfloat16)
    product = jax.jit(
        lambda x: jnp.dot(x, square, preferred_element_type=jnp.float32).astype(x.dtype)
    )
    return 2 * size**3 / _seconds(product, square, 10)


def _seconds(once: Callable[[Any], Any], carried: Any, times: int) -> float:
    """Seconds of one of so many calls, each on what the one before it gave; one more warms up."""
    carried = jax.block_until_ready(once(carried))
    started = time.perf_counter()
    for _ in range(times):
        carried = once(carried)
    jax.block_until_ready(carried)
    return (time.perf_counter() - started) / times


def _random(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Small numbers of any kind, made on the device, layer by layer where they are many."""
    # With this kind of key a shape compiles in less than half the time.
    key = jax.random.key(hash(leaf.shape) % 2**31, impl="rbg")

    def some(key, shape):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            most = 7 if leaf.dtype == jnp.int4 else 127
            drawn = jax.random.bits(key, shape, jnp.uint8).astype(jnp.int32) % (2 * most + 1)
            return (drawn - most).astype(leaf.dtype)
        return (jax.random.normal(key, shape) * 0.01).astype(leaf.dtype)

    if leaf.ndim < 4:
        return jax.jit(lambda: some(key, leaf.shape))()
    fill = jax.jit(
        lambda whole, i: jax.lax.dynamic_update_index_in_dim(
            whole, some(jax.random.fold_in(key, i), leaf.shape[1:]), i, 0
        ),
        donate_argnums=0,
    )
    whole = jnp.zeros(leaf.shape, leaf.dtype)
    for i in range(leaf.shape[0]):
        whole = fill(whole, i)
    return whole


def _running(plan: Plan, context: int, rounds: int) -> SlotState:
    """All rows' sequences near the end of a context, each with pages of its own."""
    shapes = plan.shapes
    position = context - 1 - (rounds + 1) * shapes.steps
    if position < 0:
        raise SetupError(f"--context {context} ends before {rounds} --rounds of steps do")
    state = empty_slots(shapes.slots, shapes.sequence_pages)
    live = slice(0, shapes.rows)
    state.alive[live] = True
    state.token[live] = np.arange(shapes.rows) % plan.config.vocab_size
    state.position[live] = position
    state.max_tokens[live] = context
    state.knobs.temperature[live] = 1.0
    state.knobs.key[live, 0] = np.arange(shapes.rows)
    pages = 1 + np.arange(shapes.rows * shapes.sequence_pages, dtype=np.int32)
    state.pages[live] = pages.reshape(shapes.rows, -1)
    return state


def _prompts(plan: Plan, context: int) -> Iterator[tuple[Any, Any]]:
    """The prefill steps of prompts of a context each, together at least one step full."""
    shapes = plan.shapes
    scheduler = Scheduler(PagePool(shapes.pages, shapes.block_size), shapes.slots)
    count = max(shapes.prefill_rows // context, 1)
    rng = np.random.default_rng(0)
    for _ in range(count):
        # The last token of a prompt is a decode step's.
        ids = rng.integers(plan.config.vocab_size, size=context - 1).tolist()
        params = SamplingParams(max_tokens=1)
        scheduler.add(Request(prompt_token_ids=tuple(ids), params=params), None)
    scheduler.admit()
    while scheduler.tokens_to_compute:
        segments = scheduler.plan(shapes.prefill_rows, shapes.prefill_blocks).segments
        yield pack(segments, shapes)
