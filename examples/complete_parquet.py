"""Own Parquet to completions, without Beam: ``python examples/complete_parquet.py CKPT IN OUT``.

For a file that fits in memory. ``grok1 generate`` does the same for a bucket, resumes, and keeps
what is done.
"""

import sys

import pyarrow as pa
import pyarrow.parquet as pq

from model.engine.engine import Engine
from schemas.sampling import SamplingParams


def main(checkpoint: str, source: str, target: str) -> None:
    """Adds a column ``completion`` to the rows of a Parquet file with a column ``prompt``."""
    table = pq.read_table(source)
    prompts = table.column("prompt").to_pylist()
    with Engine.from_checkpoint(checkpoint) as engine:
        outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=32))
    texts = [None if output.error else output.outputs[0].text for output in outputs]
    pq.write_table(table.append_column("completion", pa.array(texts, pa.string())), target)
    print(f"{len(texts) - texts.count(None)} of {len(texts)} rows completed, in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
