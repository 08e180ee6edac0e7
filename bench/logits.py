"""All logits of a text, by the functions that the engine's prefill step is made of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.checkpoint.base import ReadParts
from model.config import Grok1Config
from model.engine import batch
from model.engine.cache import PagePool
from model.engine.options import EngineOptions
from model.engine.plan import make_plan
from model.engine.programs import abstract_cache
from model.engine.request import Request
from model.engine.scheduler import Scheduler
from model.layout import choose_layout
from model.numerics import MODES
from model.placement import load_params
from model.sharding import make_mesh
from model.transformer import final_hidden, forward, head, tiled
from schemas.sampling import SamplingParams


class Logits:
    """Logits of sequences, each in one step of its own."""

    def __init__(
        self, config: Grok1Config, read_parts: ReadParts, weights: str, options: EngineOptions
    ) -> None:
        """Loads a model by the options' numerics and cache; ``read_parts`` gives these weights."""
        mesh = make_mesh(1, config, jax.devices())
        mode = MODES[options.numerics]
        layout = choose_layout(mesh.devices.flat[0].platform, mode, weights)
        self._plan = make_plan(config, options, mesh, layout)
        self._params = load_params(read_parts, config, mesh, mode, layout)
        self._step = jax.jit(self._run)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """[T, V] float32: what follows each of the tokens, no more than ``prefill_rows``."""
        shapes = self._plan.shapes
        scheduler = Scheduler(PagePool(shapes.pages, shapes.block_size), shapes.slots)
        # One token more, since the last of a prompt is a decode step's.
        request = Request(
            prompt_token_ids=(*map(int, tokens), 0), params=SamplingParams(max_tokens=1)
        )
        scheduler.add(request, None)
        scheduler.admit()
        segments = scheduler.plan(shapes.prefill_rows, shapes.prefill_blocks).segments
        return np.asarray(self._step(self._params, *batch.pack(segments, shapes)))[: len(tokens)]

    def _run(self, params, rows, queries):
        net = self._plan.prefilling
        cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_cache(self._plan))
        hidden, _ = forward(net, params, cache, rows, queries)
        return tiled(
            net, rows, lambda h: head(net, final_hidden(net, params, h), params["head"]), hidden
        )
