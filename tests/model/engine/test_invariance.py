"""Same bits whatever the neighbours: hidden states below the engine, whole answers through it."""

import concurrent.futures
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import constraint, layout
from model.attention import Queries
from model.checkpoint.source import open_checkpoint
from model.engine.options import EngineOptions
from model.engine.programs import Plan, abstract_cache
from model.engine.request import Request
from model.engine.shapes import Machine, choose_shapes
from model.numerics import MODES
from model.paged_cache import Place
from model.placement import load_params
from model.sharding import make_mesh
from model.transformer import TokenRows, forward
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import GOLDEN, greedy

SIZE = 16


class Steps:
    """The network as the decode and the prefill step run it, on a cache of random prompts."""

    def __init__(self, numerics: str, kv_cache_dtype: str):
        checkpoint = open_checkpoint(str(GOLDEN))
        mode = MODES[numerics]
        mesh = make_mesh(1, checkpoint.config, jax.devices())
        options = EngineOptions(
            numerics=numerics,
            kv_cache_dtype=kv_cache_dtype,
            slots=24,
            prefill_rows=96,
            block_size=SIZE,
        )
        shapes = choose_shapes(
            checkpoint.config,
            options,
            Machine(platform="cpu", devices=1, cache_bytes=1 << 27),
        )
        shapes = dataclasses.replace(shapes, tile_rows=8, prefill_tile_rows=32)
        packed = layout.kernels_fit(checkpoint.config, options, mesh)
        weights = layout.choose_layout("cpu", mode, packed=packed)
        int8 = kv_cache_dtype == "int8"
        self.plan = Plan(checkpoint.config, mode, weights, shapes, mesh, quantized_cache=int8)
        self.params = load_params(checkpoint.read_parts, checkpoint.config, mesh, mode, weights)
        rng = np.random.default_rng(0)

        def random(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            values = rng.normal(size=leaf.shape)
            if leaf.dtype == jnp.uint16:  # bfloat16's bits
                return jnp.asarray(values, jnp.bfloat16).view(leaf.dtype)
            return jnp.asarray(values * (40.0 if leaf.dtype == jnp.int8 else 1.0), leaf.dtype)

        self.cache = jax.tree.map(
            random,
            abstract_cache(self.plan),
        )
        self.decode = jax.jit(lambda *a: forward(self.plan.decoding, self.params, *a)[0])
        self.prefill = jax.jit(lambda *a: forward(self.plan.prefilling, self.params, *a)[0])

    def decode_rows(self, rows: dict[int, tuple[int, int, int]]) -> np.ndarray:
        """Hidden states of decode rows, given as row -> (token, position, first page)."""
        shapes = self.plan.shapes
        tokens = np.zeros(shapes.rows, np.int32)
        positions = np.full(shapes.rows, -1, np.int32)
        pages = np.zeros((shapes.rows, shapes.sequence_pages), np.int32)
        for row, (token, position, first) in rows.items():
            tokens[row], positions[row] = token, position
            pages[row] = first + np.arange(shapes.sequence_pages)
        page = pages[np.arange(shapes.rows), np.maximum(positions, 0) // SIZE]
        at = Place(np.where(positions < 0, 0, page), np.maximum(positions, 0) % SIZE)
        tiles = np.int32(max(rows) // shapes.tile_rows + 1)
        index = np.arange(shapes.rows, dtype=np.int32)
        blocks = np.int32(positions.max() // SIZE + 1)
        return np.asarray(
            self.decode(
                self.cache,
                TokenRows(tokens, np.maximum(positions, 0), at, positions >= 0, tiles),
                Queries(index[:, None], index, positions[:, None], pages, blocks),
            )
        )

    def prefill_rows(self, segments: list[tuple[int, int, int, int]]) -> np.ndarray:
        """Hidden states of segments (row, block, start position, first page) of SIZE - 3 tokens."""
        shapes = self.plan.shapes
        count, wide = shapes.prefill_rows, SIZE - 3
        tokens, positions = np.zeros((2, count), np.int32)
        page, offset = np.zeros((2, count), np.int32)
        live = np.zeros(count, bool)
        rows = np.full((shapes.prefill_blocks, SIZE), count, np.int32)
        inverse = np.full(count, rows.size, np.int32)
        asked = np.full(rows.shape, -1, np.int32)
        pages = np.zeros((shapes.prefill_blocks, shapes.sequence_pages), np.int32)
        for row, block, start, first in segments:
            span, lane = slice(row, row + wide), slice(0, wide)
            tokens[span] = (np.arange(wide) * 7 + first) % 1000
            positions[span] = start + np.arange(wide)
            page[span], offset[span] = first + start // SIZE, positions[span] % SIZE
            live[span] = True
            rows[block, lane] = np.arange(row, row + wide)
            inverse[span] = block * SIZE + np.arange(wide)
            asked[block, lane] = positions[span]
            pages[block] = first + np.arange(shapes.sequence_pages)
        tiles = np.int32(np.flatnonzero(live).max() // shapes.prefill_tile_rows + 1)
        blocks = np.int32(asked.max() // SIZE + 1)
        return np.asarray(
            self.prefill(
                self.cache,
                TokenRows(tokens, positions, Place(page, offset), live, tiles),
                Queries(rows, inverse, asked, pages, blocks),
            )
        )


MODES_AND_CACHES = [
    ("bf16", "auto"),
    pytest.param(("float32", "auto"), marks=pytest.mark.slow),
    pytest.param(("bf16", "int8"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=MODES_AND_CACHES)
def network(request):
    return Steps(*request.param)


def test_decode_rows_do_not_see_each_other(network):
    row = (77, 100, 40)
    alone = network.decode_rows({0: row})[0]
    assert np.isfinite(alone).all()
    assert abs(alone).max() > 0
    for place in (1, 7, 8, 15, 23):
        assert (network.decode_rows({place: row})[place] == alone).all(), place
    rng = np.random.default_rng(1)
    for longest in (10, 130, 240):  # of the neighbours, so that the loop over pages varies
        others = {
            r: (int(rng.integers(1000)), int(rng.integers(longest)), 60 + 16 * (r % 14))
            for r in range(24)
        }
        for place in (0, 9, 20):
            together = network.decode_rows({**others, place: row})
            assert (together[place] == alone).all(), (longest, place)


def test_equal_tokens_crowd_on_the_same_experts_without_harm(network):
    row = (77, 100, 40)
    alone = network.decode_rows({0: row})[0]
    crowd = network.decode_rows(dict.fromkeys(range(24), row))
    # All write the same keys to the same place, so every row is the row.
    assert (crowd == alone).all()


def test_prompt_segments_do_not_see_each_other(network):
    wide = SIZE - 3
    alone = network.prefill_rows([(0, 0, 96, 40)])[:wide]
    assert abs(alone).max() > 0
    for row, block in ((1, 3), (20, 0), (33, 5), (80, 1)):
        moved = network.prefill_rows([(row, block, 96, 40)])[row : row + wide]
        assert (moved == alone).all(), (row, block)
    others = [
        (wide, 1, 0, 60),
        (2 * wide, 2, 224, 76),
        (3 * wide, 3, 16, 92),
        (4 * wide, 4, 48, 60),
    ]
    together = network.prefill_rows([*others, (0, 0, 96, 40)])[:wide]
    assert (together == alone).all()


PROMPTS = [tuple(row["prompt"]) for row in greedy("greedy_exact")]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, logprobs=3),
    SamplingParams(temperature=1.0, top_p=0.9, max_tokens=24, logprobs=1, n=2),
    SamplingParams(temperature=0.7, top_k=20, max_tokens=9, min_tokens=4),
    SamplingParams(temperature=1.3, max_tokens=17, prompt_logprobs=2, stop_token_ids=[5, 9]),
    SamplingParams(temperature=1.0, max_tokens=5, seed=11, n=3, ignore_eos=True),
    SamplingParams(temperature=0, repetition_penalty=1.4, max_tokens=18, logprobs=2),
    SamplingParams(frequency_penalty=1.1, presence_penalty=-0.5, max_tokens=22, n=2),
    SamplingParams(temperature=1.5, min_p=0.05, bad_words=["e", " the", "in"], max_tokens=16),
    SamplingParams(logit_bias={5: 7.5, 9: -100}, allowed_token_ids=range(3, 60), max_tokens=12),
    SamplingParams(
        logit_bias={70: 9.5},
        repetition_detection={"max_pattern_size": 4, "min_count": 3},
        max_tokens=30,
    ),
    SamplingParams(stop=["e", "or", "\n"], temperature=1.2, max_tokens=25, top_p=0.97),
    SamplingParams(structured_outputs={"regex": r"[a-z]+ = [0-9]+\\n"}, max_tokens=14, logprobs=1),
    SamplingParams(temperature=0, structured_outputs={"json_object": True}, max_tokens=10),
    SamplingParams(beam_width=3, n=2, max_tokens=11, logprobs=2, ignore_eos=True),
]
if not constraint.available():  # where there is only what model/ needs
    PARAMS = [params for params in PARAMS if params.structured_outputs is None]


def ask(i: int) -> Request:
    params = PARAMS[i % len(PARAMS)]
    return Request(prompt_token_ids=PROMPTS[i % len(PROMPTS)], params=params, address=f"0/{i}")


def answer(output):
    assert output.error is None
    return (
        output.outputs,
        output.prompt_logprobs,
    )


@pytest.mark.parametrize("how", MODES_AND_CACHES)
def test_answers_do_not_depend_on_what_runs_beside_them(engines, talking, how):
    numerics, cache = how
    engine = engines(talking, numerics=numerics, kv_cache_dtype=cache)
    order, kinds = list(range(42)), len(PARAMS)
    together = [answer(f.result()) for f in engine.submit_all([ask(i) for i in order])]
    backwards = [answer(f.result()) for f in engine.submit_all([ask(i) for i in order[::-1]])]
    assert backwards[::-1] == together
    assert [answer(engine.submit(ask(i)).result()) for i in order[:kinds]] == together[:kinds]
    few = [f for i in order[:3] for f in engine.submit_all([ask(i)])]
    assert [answer(f.result()) for f in few] == together[:3]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        chunks = [order[i::4] for i in range(4)]
        results = threads.map(
            lambda chunk: [answer(f.result()) for f in engine.submit_all([ask(i) for i in chunk])],
            chunks,
        )
        threaded = {
            i: a
            for chunk, r in zip(chunks, results, strict=True)
            for i, a in zip(chunk, r, strict=True)
        }
    assert [threaded[i] for i in order] == together
