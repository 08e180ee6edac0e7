"""What one device of eight does, as an engine of its own: a slice of the model, random weights.

Under 8-way tensor parallelism a device holds an eighth of heads, expert width and vocabulary, and
all layers at full width. That slice is a model of the same architecture, so the engine's real
steps run on it, on one device; only the exchanges between devices are missing.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import Grok1Config
from model.engine.batch import pack
from model.engine.cache import PagePool
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import Plan, abstract_cache, abstract_tables, steps
from model.engine.request import Request
from model.engine.scheduler import Scheduler
from model.engine.state import SlotState, empty_slots
from model.engine.tables import empty_masks, empty_tables
from model.layout import abstract_params, choose_layout
from model.numerics import MODES
from model.sharding import make_mesh
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
    """Random weights on the first device, and the engine's steps on them.

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
        described = abstract_params(config, self._mesh, MODES[numerics], self._layout)
        self.params = jax.tree.map(_random, described)

    def plan(self, batch: int, context: int, **options: Any) -> Plan:
        """An engine's plan for so many sequences, all of which the cache holds at full length."""
        given = EngineOptions(
            numerics=self._numerics,
            kernels=self._kernels,
            slots=batch,
            max_context=context,
            **options,
        )
        plan = make_plan(self.config, given, self._mesh, self._layout, memory=1 << 62)
        pages = 2 + batch * plan.shapes.sequence_pages
        shapes = dataclasses.replace(plan.shapes, pages=pages)
        return dataclasses.replace(plan, shapes=shapes)

    def decode_seconds(self, plan: Plan, context: int, rounds: int) -> float:
        """Seconds of one decode step of all rows, at the end of a context."""
        run = steps(plan)["decode"].lower(plan.mesh).compile()
        cache, state, tables = _cache(plan), _running(plan, context, rounds), _tables(plan)
        masks = jnp.asarray(empty_masks(plan.shapes.slots, plan.config.vocab_size))

        def once(carried):
            cache, state, tables, _ = run(self.params, *carried, masks)
            return cache, state, tables

        return _seconds(once, (cache, state, tables), rounds) / plan.shapes.steps

    def prefill_seconds(self, plan: Plan, context: int) -> tuple[int, float]:
        """Prompt tokens of whole contexts, and the seconds that their prefill steps take."""
        run = steps(plan)["prefill"].lower(plan.mesh).compile()
        packed = [*_prompts(plan, context)]
        tokens = sum(int(rows.live.sum()) for rows, _ in packed)

        def once(cache):
            for rows, queries in packed:
                cache = run(self.params, cache, rows, queries)
            return cache

        return tokens, _seconds(once, _cache(plan), 2)


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
    key = jax.random.key(hash(leaf.shape) % 2**31)

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


def _cache(plan: Plan) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_cache(plan))


def _tables(plan: Plan) -> Any:
    filled = empty_tables(plan.shapes.slots, plan.config.vocab_size)
    return jax.tree.map(lambda _, x: jnp.asarray(x), abstract_tables(plan), filled)


def _running(plan: Plan, context: int, rounds: int) -> SlotState:
    """All rows' sequences near the end of a context, each with pages of its own."""
    shapes = plan.shapes
    state = empty_slots(shapes.slots, shapes.sequence_pages)
    live = slice(0, shapes.rows)
    state.alive[live] = True
    state.token[live] = np.arange(shapes.rows) % plan.config.vocab_size
    state.position[live] = context - 1 - (rounds + 1) * shapes.steps
    state.max_tokens[live] = context
    state.knobs.temperature[live] = 1.0
    state.knobs.key[live, 0] = np.arange(shapes.rows)
    pages = 1 + np.arange(shapes.rows * shapes.sequence_pages, dtype=np.int32)
    state.pages[live] = pages.reshape(shapes.rows, -1)
    return jax.tree.map(jnp.asarray, state)


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
