"""The few shapes that an engine compiles, chosen from the model, the machine and the options."""

import dataclasses
import math

from model.config import Grok1Config
from model.engine.options import ACCELERATOR_SLOTS, CPU_SLOTS, DRAFTS, EngineOptions
from schemas.error import SetupError

ACCELERATOR_BLOCK = 128
"""C on accelerators, unless told otherwise."""

_SCORE_TILE_ROWS = 256
"""Most questions of the score step in a tile: few are asked of a step's rows, or all."""

_CPU_TILE_ROWS = 32
"""Of a decode step: as fast as 64 where the step is full, and half the waste where it is not."""

_CPU_FREE_ROWS = 16
"""Between what the bench model's first rows cost, which ask for experts of their own (a step took
8 ms with 1 row, 15 with 4, 22 with 16), and its later ones (0.3 ms each)."""

_ACCELERATOR_FREE_ROWS = 256
"""A v5p multiplies 80 rows with each expert in the time it reads their int8; 2 of 8 see a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of the compiled steps.

    Attributes:
      rows: B, sequences decoded at once.
      slots: S, sequences admitted at once; the spare ones have their prompts computed ahead.
      steps: K, decode steps between two looks of the host.
      drafts: J, most tokens of a sequence that are run beside its last where rows are left.
      free_rows: rows of a decode step whose products take as long as reading the weights.
      tile_rows: R of the decode step.
      expert_rows: rows that an expert computes at once in it.
      prefill_rows: T of the prefill step.
      prefill_tile_rows: R of it.
      prefill_expert_rows: rows that an expert computes at once in it.
      score_tile_rows: questions of the score step that the head answers at once.
      prefill_blocks: most segments of it, each of one block of one prompt.
      block_size: C, tokens of a page.
      sequence_pages: P, pages of the longest sequence.
      pages: of the cache, page 0 included.
      max_context: longest prompt plus completion, in tokens.
    """

    rows: int
    slots: int
    steps: int
    drafts: int
    free_rows: int
    tile_rows: int
    expert_rows: int
    prefill_rows: int
    prefill_tile_rows: int
    prefill_expert_rows: int
    score_tile_rows: int
    prefill_blocks: int
    block_size: int
    sequence_pages: int
    pages: int
    max_context: int

    @property
    def history_tokens(self) -> int:
        """X, tokens of a sequence that drafts are looked up in."""
        return self.max_context if self.drafts else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What the choice of shapes asks of a machine.

    Attributes:
      platform: ``cpu``, ``gpu`` or ``tpu``.
      devices: of the mesh.
      cache_bytes: memory for the cache, over all devices.
    """

    platform: str
    devices: int
    cache_bytes: int


def choose_shapes(config: Grok1Config, options: EngineOptions, machine: Machine) -> Shapes:
    """Shapes for a model on a machine; what the options leave open is filled in.

    On a CPU rows are computed in tiles, whose number follows the load. An accelerator reads all
    weights for a tile, so there each step is one.

    Raises:
      SetupError: the cache cannot hold one longest sequence, or the model is not made for it.
    """
    on_cpu = machine.platform == "cpu"
    rows = _up(options.slots or (CPU_SLOTS if on_cpu else ACCELERATOR_SLOTS), machine.devices)
    tile_rows = min(rows, _CPU_TILE_ROWS) if on_cpu else rows
    rows = _up(rows, tile_rows)
    block_size = options.block_size or (16 if on_cpu else ACCELERATOR_BLOCK)
    prefill_tile_rows = 64 if on_cpu else 2048
    prefill_rows = options.prefill_rows or (512 if on_cpu else prefill_tile_rows)
    prefill_rows = _up(max(prefill_rows, block_size), machine.devices)
    prefill_tile_rows = min(prefill_rows, prefill_tile_rows)
    prefill_rows = _up(prefill_rows, prefill_tile_rows)
    max_context = options.context_of(config)
    sequence_pages = -(-max_context // block_size)
    slots = admitted(rows, machine.devices)
    pages = 1 + slots * sequence_pages
    if options.cache_tokens is not None:
        pages = 1 + options.cache_tokens // block_size
    else:
        pages = min(
            pages, 1 + machine.cache_bytes // (cache_bytes_per_token(config, options) * block_size)
        )
    # A sample of several needs the page of its prompt's tail beside its own.
    if pages < sequence_pages + 2:
        raise SetupError(
            f"the cache holds {(pages - 1) * block_size} tokens, less than one sequence of "
            f"--max-context {max_context}; lower that, or raise --cache-tokens"
        )
    return Shapes(
        rows=rows,
        slots=slots,
        steps=options.steps_per_round or 4,
        free_rows=_CPU_FREE_ROWS if on_cpu else _ACCELERATOR_FREE_ROWS,
        drafts=DRAFTS if options.draft_tokens is None else options.draft_tokens,
        tile_rows=tile_rows,
        expert_rows=_expert_rows(config, min(rows, 64) if on_cpu else rows, on_cpu),
        prefill_rows=prefill_rows,
        prefill_tile_rows=prefill_tile_rows,
        prefill_expert_rows=_expert_rows(config, prefill_rows, on_cpu),
        score_tile_rows=math.gcd(prefill_tile_rows, _SCORE_TILE_ROWS),
        prefill_blocks=2 * (prefill_rows // block_size) or 2,
        block_size=block_size,
        sequence_pages=sequence_pages,
        pages=pages,
        max_context=max_context,
    )


def admitted(rows: int, devices: int) -> int:
    """S, sequences admitted at once where ``rows`` are decoded at once."""
    return rows + _up(max(rows // 4, 2), devices)


def cache_bytes_per_token(config: Grok1Config, options: EngineOptions) -> int:
    """Bytes of one token's keys and values in all layers, over all devices."""
    if options.kv_cache_dtype == "int8":
        vector = config.key_size + 4
    else:
        vector = config.key_size * (4 if options.numerics == "float32" else 2)
    return 2 * config.num_layers * config.num_kv_heads * vector


def _expert_rows(config: Grok1Config, rows: int, on_cpu: bool) -> int:
    """Twice an even share, so that one round mostly does; on a CPU no more than is fast."""
    share = rows * config.num_selected_experts / config.num_experts
    return min(1 << max(3, math.ceil(math.log2(2 * share))), 64 if on_cpu else 512)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
