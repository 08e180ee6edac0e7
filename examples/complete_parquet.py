"""Own Parquet to completions, without Beam: ``python examples/complete_parquet.py CKPT IN OUT``.

For a file that fits in memory, and with the same parameters for all rows. ``grok1 generate`` takes
a bucket, parameters from columns of their names, and goes on where it was killed.
"""

import argparse

import pyarrow.parquet as pq

from model.engine.engine import Engine
from pipeline import completions_table
from schemas.sampling import SamplingParams


def main(checkpoint: str, source: str, target: str) -> None:
    """Adds ``text`` and its like to the rows of a Parquet file with a column ``prompt``."""
    table = pq.read_table(source)
    prompts = table.column("prompt").to_pylist()
    with Engine.from_checkpoint(checkpoint) as engine:
        outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=32))
    completed = completions_table(outputs, table)
    pq.write_table(completed, target)
    good = completed.column("status").to_pylist().count("succeeded")
    print(f"{good} of {len(outputs)} rows completed, in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("source")
    parser.add_argument("target")
    main(**vars(parser.parse_args()))
