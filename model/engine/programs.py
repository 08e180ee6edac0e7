"""The steps as they are compiled for a mesh, whether its devices are present or described."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.attention import Queries
from model.config import Grok1Config
from model.engine import step
from model.engine.batch import empty_prompts, no_asks, no_rows
from model.engine.drafts import Histories, empty_histories, fill_histories
from model.engine.rows import Pending, StepRows
from model.engine.shapes import Shapes
from model.engine.state import edit_slots, empty_slots
from model.engine.tables import FILL_ROWS, Tables, empty_masks, empty_tables
from model.kernels.accelerator import Kernels
from model.kernels.cpu import build
from model.layout import Layout, abstract_params, param_specs
from model.numerics import Numerics
from model.paged_cache import PagedCache, copy_pages
from model.sharding import MODEL, Collectives
from model.transformer import Network, TokenRows

_REPLICATED = PartitionSpec()

HEAD = ("final_norm", "head")
"""The weights that the draw step needs."""

STEERED = ("run", "draw")
"""Steps that take the place of ``decode`` where the host has a say between two tokens."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides what is compiled.

    Attributes:
      config: the model.
      numerics: the mode.
      layout: how weights lie.
      shapes: the sizes.
      mesh: the devices, present or only described.
      ordered: whether devices' sums run in rank order.
      quantized_cache: whether the cache holds int8 and scales.
      accelerator: kernels of a TPU or GPU; None for plain products everywhere.
    """

    config: Grok1Config
    numerics: Numerics
    layout: Layout
    shapes: Shapes
    mesh: Mesh
    ordered: bool = True
    quantized_cache: bool = False
    accelerator: Kernels | None = None

    def network(self, tile_rows: int, expert_rows: int) -> Network:
        """The network as a step of this tile size runs it."""
        exchange = Collectives(self.mesh.size, self.ordered, self.numerics.operand)
        return Network(
            self.config, self.numerics, exchange, tile_rows, expert_rows, self.accelerator
        )

    @property
    def decoding(self) -> Network:
        """The network of the decode step."""
        return self.network(self.shapes.tile_rows, self.shapes.expert_rows)

    @property
    def prefilling(self) -> Network:
        """The network of the prefill step."""
        return self.network(self.shapes.prefill_tile_rows, self.shapes.prefill_expert_rows)

    @property
    def kernels(self) -> str:
        """Whose kernels the steps use, as it is recorded."""
        if self.accelerator is not None:
            return self.accelerator.platform
        return build.kind() if self.layout.packed else "plain"

    @property
    def cache_spec(self) -> PagedCache:
        """The cache is split by KV heads."""
        vectors = PartitionSpec(None, None, MODEL, None, None)
        scales = PartitionSpec(None, None, MODEL, None) if self.quantized_cache else None
        return PagedCache(vectors, vectors, scales, scales, self.layout.packed)

    @property
    def tables_spec(self) -> PartitionSpec:
        """Each device holds the slots, or the rows, that it samples."""
        return PartitionSpec(MODEL)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: a function of local arrays, and how its arguments are split and shaped.

    Attributes:
      name: for progress and reports.
      function: takes each device's part of the arguments.
      inputs: partition of each argument, as prefix trees.
      outputs: partition of the results.
      arguments: shape, dtype and sharding of each argument.
      donated: arguments whose memory the results take over.
    """

    name: str
    function: Callable
    inputs: tuple[Any, ...]
    outputs: Any
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The step, traced for a mesh; ``compile()`` it."""
        function = self.function
        if mesh.size > 1:
            function = jax.shard_map(
                function,
                mesh=mesh,
                in_specs=self.inputs,
                out_specs=self.outputs,
                check_vma=False,
            )
        return jax.jit(function, donate_argnums=self.donated).lower(*self.arguments)


def steps(plan: Plan) -> dict[str, Step]:
    """All steps that an engine uses, by name."""
    shapes, mesh = plan.shapes, plan.mesh
    params = abstract_params(plan.config, mesh, plan.numerics, plan.layout)
    specs = param_specs(plan.config, plan.layout)
    cache, tables = abstract_cache(plan), abstract_tables(plan)
    state = _like(empty_slots(shapes.slots, shapes.sequence_pages), mesh)
    rows, queries = abstract_prompts(plan)
    asks = _like(no_asks(shapes), mesh)
    flags = _abstract((shapes.slots,), jnp.bool_, mesh)
    pages = _abstract((shapes.rows,), jnp.int32, mesh)
    histories = abstract_histories(plan)
    begun = [
        _abstract(shape, jnp.int32, mesh)
        for shape in ((FILL_ROWS,), (FILL_ROWS, histories.tokens.shape[1]))
    ]
    cached, split, same = plan.cache_spec, plan.tables_spec, _REPLICATED
    ran = Pending(rows=StepRows(same, same, same, same), tokens=same, positions=same, hidden=split)
    masks = _abstract(
        empty_masks(shapes.slots, plan.config.vocab_size).shape, jnp.uint32, mesh, split
    )
    made = [
        Step(
            "prefill",
            partial(step.prefill, plan.prefilling),
            (specs, cached, same, same),
            cached,
            (params, cache, rows, queries),
            (1,),
        ),
        Step(
            "score",
            partial(step.score, plan.prefilling, tile_rows=shapes.score_tile_rows),
            (specs, cached, same, same, same),
            (cached, same),
            (params, cache, rows, queries, asks),
            (1,),
        ),
        Step(
            "decode",
            partial(
                step.decode,
                plan.decoding,
                rows=shapes.rows,
                steps=shapes.steps,
                drafts=shapes.drafts,
                free_rows=shapes.free_rows,
            ),
            (specs, cached, same, split, same, split),
            (cached, same, split, same, same),
            (params, cache, state, tables, histories, masks),
            (1, 2, 3, 4),
        ),
        Step(
            "run",
            partial(step.run, plan.decoding, rows=shapes.rows),
            (specs, cached, same),
            (cached, ran),
            (params, cache, state),
            (1,),
        ),
        Step(
            "draw",
            partial(step.draw, plan.decoding),
            (_head(specs), same, split, split, same, ran),
            (same, split, same),
            (_head(params), state, tables, masks, flags, abstract_pending(plan)),
            (1, 2),
        ),
        Step(
            "fill_tables",
            partial(step.fill_slots, plan.decoding),
            (split, same),
            split,
            (tables, _like(no_rows(shapes, plan.config.vocab_size), mesh)),
            (0,),
        ),
        Step("fill_histories", fill_histories, (same, same, same), same, (histories, *begun), (0,)),
        Step("edit_slots", edit_slots, (same, same, same), same, (state, flags, state), (0,)),
        Step("copy_pages", copy_pages, (cached, same, same), cached, (cache, pages, pages), (0,)),
    ]
    return {s.name: s for s in made}


def abstract_cache(plan: Plan) -> PagedCache:
    """Shape and sharding of the cache."""
    c, shapes, specs = plan.config, plan.shapes, plan.cache_spec
    shape = (c.num_layers, shapes.pages, c.num_kv_heads, shapes.block_size)
    dtype = jnp.int8 if plan.quantized_cache else plan.layout.cached(plan.numerics.operand)
    vectors = _abstract((*shape, c.key_size), dtype, plan.mesh, specs.keys)
    if not plan.quantized_cache:
        return PagedCache(vectors, vectors, packed=plan.layout.packed)
    scales = _abstract(shape, jnp.float32, plan.mesh, specs.key_scales)
    return PagedCache(vectors, vectors, scales, scales)


def abstract_tables(plan: Plan) -> Tables:
    """Shape and sharding of the tables: all slots, split over the devices."""
    spec = plan.tables_spec
    empty = jax.eval_shape(lambda: empty_tables(plan.shapes.slots, plan.config.vocab_size))
    return jax.tree.map(lambda x: _abstract(x.shape, x.dtype, plan.mesh, spec), empty)


def abstract_histories(plan: Plan) -> Histories:
    """Shape and sharding of what drafts are looked up in: all of it on each device."""
    return _like(empty_histories(plan.shapes.slots, plan.shapes.history_tokens), plan.mesh)


def abstract_pending(plan: Plan) -> Pending:
    """Shape and sharding of what the run step leaves to be drawn from."""
    rows, mesh = plan.shapes.rows, plan.mesh
    each = _abstract((rows,), jnp.int32, mesh)
    return Pending(
        rows=StepRows(each, each, each, tiles=_abstract((), jnp.int32, mesh)),
        tokens=each,
        positions=each,
        hidden=_abstract((rows, plan.config.emb_size), jnp.float32, mesh, plan.tables_spec),
    )


def abstract_prompts(plan: Plan) -> tuple[TokenRows, Queries]:
    """Shapes of the prompt tokens of one prefill step."""
    shapes = plan.shapes
    return _like(empty_prompts(shapes), plan.mesh)


def _head(params: Any) -> dict[str, Any]:
    """What of the weights, or of their partitions, the draw step needs."""
    return {name: params[name] for name in HEAD}


def _like(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: _abstract(np.shape(x), x.dtype, mesh), tree)


def _abstract(
    shape: tuple[int, ...], dtype: Any, mesh: Mesh, spec: PartitionSpec = _REPLICATED
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
