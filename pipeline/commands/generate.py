"""Complete every prompt of Parquet files, and write the completions as Parquet.

The output folder holds one part a chunk of rows, in input order, and `_SUCCESS` when all are there.
Started again, the same command does only what is missing. Every path may be a URL (s3://, gs://).
Beam's own options, such as --runner or --direct_num_workers, pass through.

  grok1 generate --checkpoint grok-1 --input 'prompts/*.parquet' --output completions
  grok1 generate … --temperature 0.7 --top-p 0.9 --max-tokens 256 --n 4 --logprobs 5
  grok1 generate … --columns prompt=question --stop 'Q:' --run-seed 7
  grok1 generate … --template 'Q: {{ question }}\\nA:' --few-shot shots.parquet \\
    --few-shot-template 'Q: {{ question }}\\nA: {{ answer }}' --few-shot-count 5
"""

import argparse
from collections.abc import Sequence

from pipeline.commands import arguments, job, report
from pipeline.commands.limits import add_limits
from pipeline.commands.sampling import add_sampling, sampling_params
from pipeline.options import OVER_LENGTH, GenerateOptions

HELP = "complete prompts in Parquet files"
USAGE = arguments.USAGE
PASSES_THROUGH = True
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser, *, output_required: bool = True) -> None:
    """Adds the command's arguments."""
    arguments.add_files(parser, output_required=output_required)
    add_sampling(
        parser.add_argument_group(
            "sampling", "for rows without a column of that name (vLLM's names and meaning)"
        )
    )
    building = arguments.add_prompting(parser, "prompt")
    building.add_argument(
        "--token-healing",
        action="store_true",
        help="let the first token finish the word that the prompt ends in",
    )
    building.add_argument(
        "--echo", action="store_true", help="put the prompt before the completion's text"
    )
    run = arguments.add_run(parser, OVER_LENGTH, "prompts that leave no room for max_tokens")
    report.add_switch(run)
    add_limits(parser)
    arguments.add_dataflow(parser)
    arguments.add_engine(parser)


def run(given: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return job.run_job(options_of(given), given, beam_arguments, add_arguments, report=given.report)


def options_of(given: argparse.Namespace) -> GenerateOptions:
    """The job that parsed arguments ask for.

    Raises:
      SetupError: a value is out of bounds.
    """
    return GenerateOptions(
        sampling=sampling_params(given),
        token_healing=given.token_healing,
        echo=given.echo,
        **job.job_options(given),
    )
