"""Rows of a long run: long and short, greedy and sampled, some bad, some equal."""

import collections
import math
import os
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CONTEXT = 256
"""Most tokens of a prompt and its completion together."""

_VOCABULARY = 2048
_FIRST_ID = 300
_FILES = 40
_SCHEMA = pa.schema(
    {
        "prompt_token_ids": pa.list_(pa.int32()),
        "max_tokens": pa.int32(),
        "temperature": pa.float32(),
        "n": pa.int32(),
        "logprobs": pa.int32(),
        "stop": pa.list_(pa.string()),
        "note": pa.string(),
    }
)
_FAULTS: list[dict[str, Any]] = [
    {"prompt_token_ids": None},
    {"prompt_token_ids": [_VOCABULARY]},
    {"prompt_token_ids": [_FIRST_ID] * CONTEXT},
    {"temperature": -1.0},
]


def write(folder: str, rows: int) -> int:
    """Writes prompts as Parquet; returns how many of them are bad.

    Lengths are log-normal around 16 tokens in and geometric around 6 out, so that long and short
    rows meet. One row in fifty is bad, in one of four ways; one in eight asks the same as one of
    the greedy ones just before it.
    """
    os.makedirs(folder)
    bad, share = 0, -(-rows // _FILES)
    for file in range(_FILES):
        draw = random.Random(file)
        table: list[dict[str, Any]] = []
        recent: collections.deque[dict[str, Any]] = collections.deque(maxlen=16)
        for _ in range(min(share, rows - file * share)):
            row = _row(draw)
            if draw.random() < 1 / 50:
                row |= draw.choice(_FAULTS)
                bad += 1
            elif recent and draw.random() < 1 / 8:
                row = draw.choice(recent)
            elif row["temperature"] == 0:
                recent.append(row)
            table.append(row)
        if table:
            pq.write_table(pa.Table.from_pylist(table, _SCHEMA), f"{folder}/{file:03d}.parquet")
    return bad


def _row(draw: random.Random) -> dict[str, Any]:
    length = min(CONTEXT // 2, max(1, round(draw.lognormvariate(math.log(16), 0.8))))
    new = math.ceil(math.log(1 - draw.random()) / math.log(1 - 1 / 6)) or 1
    temperature = draw.choice([0.0, 0.0, 0.7, 1.0])
    return {
        "prompt_token_ids": [draw.randrange(_FIRST_ID, _VOCABULARY) for _ in range(length)],
        "max_tokens": min(CONTEXT // 2, new),
        "temperature": temperature,
        "n": 2 if temperature and draw.random() < 1 / 10 else 1,
        "logprobs": draw.choice([None] * 9 + [2]),
        "stop": draw.choice([None] * 9 + [["\n", "return"]]),
        "note": "x" * draw.randrange(100),
    }
