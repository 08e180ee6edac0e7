"""Keep the likelier part of a corpus: ``python examples/score_and_filter.py CKPT IN OUT KEEP``.

Scores each document of Parquet files with a column ``text``, and keeps the share ``KEEP`` that the
model finds least surprising, by perplexity a byte, which does not depend on the tokenizer.
"""

import sys
import tempfile

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import ScoreOptions, build_pipeline, read_completions


def main(checkpoint: str, source: str, target: str, keep: str = "0.5") -> None:
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
    limit = pc.quantile(scored.column("byte_perplexity"), q=float(keep))[0]
    kept = scored.filter(pc.less_equal(scored.column("byte_perplexity"), limit))
    pq.write_table(kept.drop_columns("status"), target)
    print(f"{kept.num_rows} of {scored.num_rows} documents kept, in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
