"""Keep the likelier part of a corpus: ``python examples/score_and_filter.py CKPT IN OUT KEEP``.

Scores each document of Parquet files with a column ``text``, and keeps the share ``KEEP`` that the
model finds least surprising, by perplexity a byte, which does not depend on the tokenizer.
"""

import argparse
import tempfile

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import ScoreOptions, build_pipeline, read_completions


def main(checkpoint: str, source: str, target: str, keep: float = 0.5) -> None:
    """Writes the kept documents with their scores."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ScoreOptions(
            checkpoint=checkpoint,
            input=(source,),
            output=scratch,
            columns={"document": "text"},
        )
        with build_pipeline(options):  # leaving the block runs it
            pass
        scored = read_completions(scratch, columns=["text", "status", "byte_perplexity"])
    scored = scored.filter(pc.equal(scored.column("status"), "succeeded"))
    limit = pc.quantile(scored.column("byte_perplexity"), q=keep)[0]
    kept = scored.filter(pc.less_equal(scored.column("byte_perplexity"), limit))
    pq.write_table(kept.drop_columns("status"), target)
    print(f"{kept.num_rows} of {scored.num_rows} documents kept, in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("keep", nargs="?", type=float, default=0.5, help="share (0.5)")
    main(**vars(parser.parse_args()))
