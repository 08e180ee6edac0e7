"""Score every row of Parquet files: how likely the model finds a continuation, or a whole text.

Columns `context` and `continuation` (or `continuations`, a list: one output row each), or
`document` for whole texts of any length; `context_token_ids`, `continuation_token_ids` and
`document_token_ids` take tokens. Spaces at the end of a context count to its continuation, and
without a context the text begins after BOS, both as in lm-evaluation-harness. The output has
`logprob`, `is_greedy`, `token_logprobs` and `perplexity` beside the input's columns.

Started again, the same command does only what is missing. Every path may be a URL (s3://, gs://).

  grok1 score --checkpoint grok-1 --input questions.parquet --output scores
  grok1 score … --columns document=text --stride 4096
"""

import argparse
from collections.abc import Sequence

from pipeline.commands import arguments, job, report
from pipeline.commands.limits import add_limits
from pipeline.options import ScoreOptions
from schemas.sampling import MAX_LOGPROBS

HELP = "score continuations or documents in Parquet files"
USAGE = arguments.USAGE
PASSES_THROUGH = True
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    arguments.add_files(parser)
    add = parser.add_argument_group("scoring").add_argument
    add(
        "--logprobs",
        type=int,
        metavar="N",
        help=f"per token, its rank and the N likeliest, up to {MAX_LOGPROBS}",
    )
    add(
        "--stride",
        type=int,
        metavar="N",
        help="documents longer than the context: tokens scored by each window after the first; "
        "fewer give each token more context, and cost more (the whole context, as in "
        "lm-evaluation-harness)",
    )
    arguments.add_prompting(parser, "context")
    run = arguments.add_run(
        parser,
        ("error", "truncate_left"),
        "contexts that leave no room for their continuation",
    )
    report.add_switch(run)
    add_limits(parser)
    arguments.add_dataflow(parser)
    arguments.add_engine(parser)


def run(given: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    options = ScoreOptions(logprobs=given.logprobs, stride=given.stride, **job.job_options(given))
    return job.run_job(options, given, beam_arguments, add_arguments, report=given.report)
