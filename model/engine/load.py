"""From a checkpoint to what an engine is made of: weights on the devices, compiled steps."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
from jax.sharding import Mesh

from model.checkpoint.source import Checkpoint, open_checkpoint
from model.config import Grok1Config
from model.engine.compile_cache import CompileCache
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import CompiledSteps, Plan
from model.engine.tuning import Tuning, prepare_gpu
from model.layout import Layout, choose_layout, kernels_fit
from model.numerics import MODES
from model.placement import load_params
from model.sharding import make_mesh
from model.tokenizer import Tokenizer
from model.transformer import Params

Progress = Callable[[str, float, float], None]
"""Told of a phase (``loading``, ``compiling``), how much of it is done, and of how much."""


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
    # Choices of kernels go with a run; what was compiled by other runs' is not for this one.
    cache = CompileCache(options.compile_cache, mesh) if tuning is None else None
    compiled = CompiledSteps(plan, tuning, cache)
    with ThreadPoolExecutor(1, thread_name_prefix="grok1-prepare") as pool:
        compiling = pool.submit(
            compiled.prepare,
            lambda done, total: progress("compiling", done, total),
            scores_only,
        )
        started = time.perf_counter()
        params = _load(checkpoint, plan, mesh, progress)
        load_seconds = time.perf_counter() - started
        compiling.result()
    return params, plan, compiled, vocabulary, load_seconds


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
        progress("loading", done, checkpoint.nbytes)

    return load_params(checkpoint.read_parts, plan.config, mesh, plan.numerics, plan.layout, placed)
