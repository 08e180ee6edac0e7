"""The arguments that all jobs take."""

import argparse
from collections.abc import Sequence
from typing import Any

from model.engine.options import (
    COLLECTIVES,
    DRAFTS,
    KERNELS,
    KV_CACHE_DTYPES,
    NUMERICS,
    EngineOptions,
)
from pipeline.options import BOS, FEW_SHOT_SAMPLING

USAGE = "%(prog)s --checkpoint DIR --input PATH [PATH ...] --output DIR [options]"
"""Of a command that runs a job."""


def add_files(parser: argparse.ArgumentParser, *, output_required: bool = True) -> None:
    """What is read and written."""
    add = parser.add_argument_group("input and output").add_argument
    add("--checkpoint", required=True, metavar="DIR", help="folder that holds ckpt-0")
    add(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="Parquet files, quoted globs, or folders",
    )
    add("--output", required=output_required, metavar="DIR", help="folder of the results")
    add("--tokenizer", metavar="FILE", help="SentencePiece model (default: the checkpoint's)")
    add(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="ROLE=COLUMN",
        help="columns that play a role under another name: prompt=question custom_id=id; "
        "an empty name (seed=) lets a column of the role's name pass through",
    )
    add(
        "--rename",
        nargs="+",
        action="extend",
        default=[],
        metavar="OLD=NEW",
        help="input columns that get another name in the output",
    )
    add("--output-prefix", default="", metavar="P", help="put before the added columns' names")
    add("--input-root", metavar="DIR", help="folder that row ids are relative to")
    add(
        "--unique-custom-id",
        action="store_true",
        help="custom_id is unique: derive row ids from it, not from file and row number",
    )


def add_prompting(parser: argparse.ArgumentParser, what: str) -> Any:
    """How ``what`` is built of columns and examples; returns the group."""
    group = parser.add_argument_group("prompt building")
    add = group.add_argument
    add(
        "--template",
        metavar="FILE|TEXT",
        help=f"Jinja2 template over the columns that makes the {what}: "
        "'Q: {{ question }}\\nA:'; a file's last line end is left out",
    )
    add("--few-shot", metavar="FILE", help=f"Parquet file of examples that precede the {what}")
    add(
        "--few-shot-template",
        metavar="FILE|TEXT",
        help="Jinja2 template over the columns of an example",
    )
    add("--few-shot-count", type=int, metavar="K", help="examples a row (all)")
    add(
        "--few-shot-sampling",
        choices=FEW_SHOT_SAMPLING,
        default=FEW_SHOT_SAMPLING[0],
        help="the first K, or K that each row draws by its id (fixed)",
    )
    add("--separator", default=None, metavar="TEXT", help="between them (an empty line)")
    return group


def add_run(parser: argparse.ArgumentParser, over_length: Sequence[str], meaning: str) -> Any:
    """How rows are treated, and how a run goes; returns the group.

    Args:
      parser: of the command.
      over_length: what may become of a row that is too long, the default first.
      meaning: which rows those are.
    """
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--run-seed", "--seed", type=int, default=0, metavar="N", help="seed of the run (0)")
    add("--bos", choices=BOS, default="never", help="begin texts with BOS (never)")
    add(
        "--over-length",
        choices=over_length,
        default=over_length[0],
        help=f"{meaning} ({over_length[0]})",
    )
    add(
        "--dedupe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute rows that ask the same in a chunk once (on; changes no result)",
    )
    add("--limit", type=int, metavar="N", help="only the first N rows")
    add("--chunk-rows", type=int, metavar="N", help="rows of a part (by their length, up to 2048)")
    add(
        "--allow-errors",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="SHARE",
        help="share of errored rows that still exits 0; without a value, any",
    )
    add(
        "--allow-file-errors",
        action="store_true",
        help="files that cannot be read still exit 0; their rows that were planned are errored",
    )
    add("--strict", action="store_true", help="stop at the first errored file or row")
    add("--overwrite", action="store_true", help="discard another run in the output folder")
    add(
        "--extend",
        action="store_true",
        help="take files added or mended since that run was started, too",
    )
    return group


def add_dataflow(parser: argparse.ArgumentParser) -> None:
    """How a job runs on Dataflow."""
    add = parser.add_argument_group(
        "Dataflow", "with --runner=DataflowRunner --project=PROJECT --region=REGION"
    ).add_argument
    add("--machine", metavar="NAME", help="v5p-4, v6e-8, h100x8, a100x8: sets all it needs")
    add("--bucket", metavar="URL", help="gs://BUCKET/FOLDER for staging and temporary files")
    add("--explain", action="store_true", help="print the job that would be sent, and send nothing")
    add("--rates", metavar="FILE", help="a table of prices (pipeline/estimate/rates.toml)")
    add("--detach", action="store_true", help="return once submitted; see grok1 status")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How the model runs."""
    add, default = parser.add_argument_group("engine").add_argument, EngineOptions()
    add(
        "--numerics",
        choices=NUMERICS,
        default=default.numerics,
        help="release: rounds where the release does; float32: slow, for truth (%(default)s)",
    )
    add(
        "--slots",
        type=int,
        metavar="N",
        help="sequences that a copy decodes at once (128 on CPUs, 256 on accelerators)",
    )
    add("--max-context", type=int, metavar="N", help="longest prompt and completion, in tokens")
    add(
        "--draft-tokens",
        type=int,
        metavar="N",
        help=f"tokens of a row guessed ahead where rows idle, 0 for none; same results ({DRAFTS})",
    )
    add(
        "--kv-cache-dtype",
        choices=KV_CACHE_DTYPES,
        default=default.kv_cache_dtype,
        help="int8 halves the cache for a little error (%(default)s)",
    )
    add(
        "--devices",
        type=int,
        metavar="N",
        help="accelerators that share one copy of the model: 1, 2, 4 or 8",
    )
    add(
        "--replicas",
        type=int,
        metavar="N",
        help="copies of the model, each on devices of its own (as many as the devices hold; "
        "one if --devices is given)",
    )
    add(
        "--collectives",
        choices=COLLECTIVES,
        default=default.collectives,
        help="ordered: a row's bits do not depend on its neighbours' (%(default)s)",
    )
    add(
        "--kernels",
        choices=KERNELS,
        default=default.kernels,
        help="plain: no kernels but XLA's own, as on any machine (%(default)s)",
    )
    add(
        "--compile-cache",
        metavar="DIR",
        help="keeps what was compiled for the next start; none keeps nothing (the account's own)",
    )
