"""From a checkpoint to what an engine is made of: weights on the devices, compiled steps."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.checkpoint import files
from model.checkpoint.source import Checkpoint, open_checkpoint
from model.config import Grok1Config
from model.engine.compile_cache import NONE, CompileCache
from model.engine.compiled import CompiledSteps
from model.engine.drafts import Histories, empty_histories
from model.engine.memory import telling
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import Plan, abstract_cache, abstract_tables
from model.engine.state import SlotState, empty_slots
from model.engine.tables import Tables, empty_tables
from model.engine.tuning import Tuning, prepare_gpu
from model.kernels.cpu import large_pages
from model.layout import Layout, choose_layout, kernels_fit
from model.numerics import MODES
from model.paged_cache import PagedCache
from model.placement import load_params
from model.sharding import make_mesh
from model.tokenizer import Tokenizer
from model.transformer import Params

_LOGGER = logging.getLogger("grok1.engine")

Progress = Callable[[str, float, float, Sequence[str]], None]
"""Told of a phase (``loading``, ``compiling``), how much of it is done, of how much, and what it is
about just now: the steps being compiled."""


def load(
    url: str,
    tokenizer: str | None,
    options: EngineOptions,
    layout: Layout | None,
    devices: Sequence[jax.Device] | None,
    progress: Progress,
    scores_only: bool,
) -> tuple[Params, Plan, CompiledSteps, Tokenizer | None, float]:
    """Loads a checkpoint and compiles meanwhile; see ``Engine.from_checkpoint``.

    Returns:
      The weights, what was decided, the steps, the tokenizer if there is one, and how many seconds
      the weights took.

    Raises:
      SetupError: checkpoint, tokenizer, options and devices do not go together.
      OutOfMemory: the devices' memory does not hold it.
    """
    prepare_gpu()
    checkpoint = open_checkpoint(url)
    checkpoint.verify()
    vocabulary = _load_tokenizer(tokenizer or checkpoint.tokenizer_url, checkpoint.config)
    mesh = make_mesh(options.devices, checkpoint.config, list(devices or jax.devices()))
    if layout is None:
        packed = kernels_fit(checkpoint.config, options, mesh)
        platform = mesh.devices.flat[0].platform
        layout = choose_layout(platform, MODES[options.numerics], checkpoint.weights, packed)
    plan = make_plan(checkpoint.config, options, mesh, layout)
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    tuning = Tuning(options.tuning) if on_gpu and options.tuning else None
    cache = open_cache(options, mesh, tuning)
    compiled = CompiledSteps(plan, tuning, cache)
    with telling(plan, options), ThreadPoolExecutor(1, thread_name_prefix="grok1-prepare") as pool:
        compiling = pool.submit(
            compiled.prepare,
            lambda done, total, names: progress("compiling", done, total, names),
            scores_only,
        )
        started = time.perf_counter()
        params = _load(checkpoint, plan, mesh, progress)
        load_seconds = time.perf_counter() - started
        compiling.result()
    return params, plan, compiled, vocabulary, load_seconds


def open_cache(options: EngineOptions, mesh: Mesh, tuning: Tuning | None) -> CompileCache | None:
    """Where compiled steps are kept; nowhere if the run's own choices of kernels decide them."""
    if tuning is None:
        return CompileCache(options.compile_cache, mesh)
    if options.compile_cache not in (None, NONE):
        _LOGGER.warning(
            "--compile-cache %s is not used on a GPU, whose choices of kernels are kept with the "
            "run: what others compiled by their choices might give other bits",
            files.redact(str(options.compile_cache)),
        )
    return None


def allocate(plan: Plan) -> tuple[PagedCache, SlotState, Tables, Histories]:
    """What an engine's steps hand on to each other, empty, on the devices."""
    cache = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), abstract_cache(plan)
    )
    if plan.layout.packed:
        large_pages.collapse(cache)
    shapes = plan.shapes
    state, histories = jax.device_put(
        (
            empty_slots(shapes.slots, shapes.sequence_pages),
            empty_histories(shapes.slots, shapes.history_tokens),
        ),
        NamedSharding(plan.mesh, PartitionSpec()),
    )
    tables = jax.tree.map(
        lambda a, x: jax.device_put(x, a.sharding),
        abstract_tables(plan),
        empty_tables(shapes.slots, plan.config.vocab_size),
    )
    return cache, state, tables, histories


def _load_tokenizer(url: str | None, config: Grok1Config) -> Tokenizer | None:
    if url is None:
        return None
    tokenizer = Tokenizer.load(url)
    tokenizer.check_against(config)
    return tokenizer


def _load(checkpoint: Checkpoint, plan: Plan, mesh: Mesh, progress: Progress) -> Params:
    done = 0

    def placed(size: int) -> None:
        nonlocal done
        done += size
        progress("loading", done, checkpoint.nbytes, ())

    return load_params(checkpoint.read_parts, plan.config, mesh, plan.numerics, plan.layout, placed)
