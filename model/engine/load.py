"""From a checkpoint to what an engine is made of: weights on the devices, compiled steps."""

import dataclasses
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
from model.placement import load_params, split_replicas
from model.sharding import DATA, MODEL, make_grid, replica_meshes
from model.tokenizer import Tokenizer
from model.transformer import Params

_LOGGER = logging.getLogger("grok1.engine")

Progress = Callable[[str, float, float, Sequence[str]], None]
"""Told of a phase (``loading``, ``compiling``), how much of it is done, of how much, and what it is
about just now: the steps being compiled."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """One copy of the model.

    Attributes:
      plan: what decided it.
      params: the weights, on its devices.
      compiled: the steps, for its devices.
    """

    plan: Plan
    params: Params
    compiled: CompiledSteps


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What an engine is made of.

    Attributes:
      copies: of the model, at least one, alike but for their devices.
      tokenizer: None if there is none.
      seconds: that the weights took.
      options: with the devices and replicas that were chosen.
    """

    copies: list[Copy]
    tokenizer: Tokenizer | None
    seconds: float
    options: EngineOptions


def load(
    url: str,
    tokenizer: str | None,
    options: EngineOptions,
    layout: Layout | None,
    devices: Sequence[jax.Device] | None,
    progress: Progress,
    scores_only: bool,
) -> Loaded:
    """Loads a checkpoint and compiles meanwhile; see ``Engine.from_checkpoint``.

    Raises:
      SetupError: checkpoint, tokenizer, options and devices do not go together.
      OutOfMemory: the devices' memory does not hold it.
    """
    prepare_gpu()
    checkpoint = open_checkpoint(url)
    checkpoint.verify()
    vocabulary = _load_tokenizer(tokenizer or checkpoint.tokenizer_url, checkpoint.config)
    present = list(devices or jax.devices())
    grid = make_grid(options.devices, options.replicas, checkpoint.config, present)
    options = dataclasses.replace(options, devices=grid.shape[MODEL], replicas=grid.shape[DATA])
    platform = grid.devices.flat[0].platform
    if layout is None:
        packed = kernels_fit(checkpoint.config, options, grid)
        layout = choose_layout(platform, MODES[options.numerics], checkpoint.weights, packed)
    meshes = replica_meshes(grid)
    plans = [make_plan(checkpoint.config, options, mesh, layout) for mesh in meshes]
    tuning = Tuning(options.tuning) if platform == "gpu" and options.tuning else None
    cache = open_cache(options, meshes[0], tuning)
    compiled = [CompiledSteps(plan, tuning, cache) for plan in plans]

    def told(_: int, total: int, names: Sequence[str]) -> None:
        done = sum(steps.ready for steps in compiled)
        progress("compiling", done, total * len(plans), names)

    pool = ThreadPoolExecutor(len(plans), thread_name_prefix="grok1-prepare")
    with telling(plans[0], options), pool:
        compiling = [pool.submit(steps.prepare, told, scores_only) for steps in compiled]
        started = time.perf_counter()
        params = split_replicas(_load(checkpoint, plans[0], grid, progress), grid)
        load_seconds = time.perf_counter() - started
        for future in compiling:
            future.result()
    copies = [Copy(*parts) for parts in zip(plans, params, compiled, strict=True)]
    return Loaded(copies, vocabulary, load_seconds, options)


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

    params = load_params(
        checkpoint.read_parts, plan.config, mesh, plan.numerics, plan.layout, placed
    )
    # Files hold a little more than tensors: what their headers take.
    progress("loading", checkpoint.nbytes, checkpoint.nbytes, ())
    return params
