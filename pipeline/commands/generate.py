"""Complete every prompt of Parquet files, and write the completions as Parquet.

The output folder holds one part a chunk of rows, in input order, and `_SUCCESS` when all are there.
Started again, the same command does only what is missing. Every path may be a URL (s3://, gs://).
Beam's own options, such as --runner or --direct_num_workers, pass through.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from model.engine.options import COLLECTIVES, KERNELS, KV_CACHE_DTYPES, NUMERICS, EngineOptions
from pipeline.commands.sampling import add_sampling, sampling_params
from pipeline.options import BOS, OVER_LENGTH, GenerateOptions
from schemas.error import SetupError

HELP = "complete prompts in Parquet files"
PASSES_THROUGH = True


def add_arguments(parser: argparse.ArgumentParser, *, output_required: bool = True) -> None:
    """Adds the command's arguments."""
    _add_files(parser.add_argument_group("input and output"), output_required)
    add_sampling(
        parser.add_argument_group(
            "sampling", "for rows without a column of that name (vLLM's names and meaning)"
        )
    )
    _add_run(parser.add_argument_group("run"))
    _add_dataflow(
        parser.add_argument_group(
            "Dataflow", "with --runner=DataflowRunner --project=PROJECT --region=REGION"
        )
    )
    _add_engine(parser.add_argument_group("engine"))


def run(given: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from pipeline.commands.remote import Remote, generate

    if beam_arguments:
        # Only then: it imports Beam, and most faults of a set-up can be told before that.
        from pipeline import beam_options

        parser = argparse.ArgumentParser(add_help=False)
        add_arguments(parser)
        beam_options.check(beam_options.complete(beam_arguments), parser._option_string_actions)
    remote = Remote(
        machine=given.machine, bucket=given.bucket, explain=given.explain, detach=given.detach
    )
    return generate(
        options_of(given),
        list(beam_arguments),
        remote=remote,
        report=given.report,
        debug=given.debug,
    )


def _add_files(group: Any, output_required: bool) -> None:
    add = group.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="folder that holds ckpt-0")
    add(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="Parquet files, quoted globs, or folders",
    )
    add("--output", required=output_required, metavar="DIR", help="folder of the completions")
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


def _add_run(group: Any) -> None:
    add = group.add_argument
    add("--run-seed", "--seed", type=int, default=0, metavar="N", help="seed of the run (0)")
    add("--bos", choices=BOS, default="never", help="begin text prompts with BOS (never)")
    add(
        "--over-length",
        choices=OVER_LENGTH,
        default="error",
        help="prompts that leave no room for max_tokens (error)",
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
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write an HTML report when finished (on)",
    )


def _add_dataflow(group: Any) -> None:
    add = group.add_argument
    add("--machine", metavar="NAME", help="v5p-4, v6e-8, h100x8, a100x8: sets all it needs")
    add("--bucket", metavar="URL", help="gs://BUCKET/FOLDER for staging and temporary files")
    add("--explain", action="store_true", help="print the job that would be sent, and send nothing")
    add("--detach", action="store_true", help="return once submitted; see grok1 status")


def _add_engine(group: Any) -> None:
    add, default = group.add_argument, EngineOptions()
    add("--numerics", choices=NUMERICS, default=default.numerics, help="(%(default)s)")
    add("--slots", type=int, metavar="N", help="sequences decoded at once")
    add("--max-context", type=int, metavar="N", help="longest prompt and completion, in tokens")
    add(
        "--kv-cache-dtype",
        choices=KV_CACHE_DTYPES,
        default=default.kv_cache_dtype,
        help="int8 halves the cache for a little error (%(default)s)",
    )
    add("--devices", type=int, metavar="N", help="accelerators to use: 1, 2, 4 or 8")
    add("--collectives", choices=COLLECTIVES, default=default.collectives, help="(%(default)s)")
    add(
        "--kernels",
        choices=KERNELS,
        default=default.kernels,
        help="plain: no kernels but XLA's own, as on any machine (%(default)s)",
    )


def options_of(given: argparse.Namespace) -> GenerateOptions:
    """The job that parsed arguments ask for.

    Raises:
      SetupError: a value is out of bounds.
    """
    return GenerateOptions(
        checkpoint=given.checkpoint,
        input=tuple(given.input),
        output=given.output,
        tokenizer=given.tokenizer,
        sampling=sampling_params(given),
        engine=EngineOptions(
            numerics=given.numerics,
            slots=given.slots,
            max_context=given.max_context,
            devices=given.devices,
            collectives=given.collectives,
            kernels=given.kernels,
            kv_cache_dtype=given.kv_cache_dtype,
        ),
        columns=_pairs("--columns", given.columns),
        rename=_pairs("--rename", given.rename),
        output_prefix=given.output_prefix,
        input_root=given.input_root,
        unique_custom_id=given.unique_custom_id,
        run_seed=given.run_seed,
        chunk_rows=given.chunk_rows,
        limit=given.limit,
        over_length=given.over_length,
        bos=given.bos,
        strict=given.strict,
        overwrite=given.overwrite,
        allow_errors=given.allow_errors,
        allow_file_errors=given.allow_file_errors,
    )


def _pairs(flag: str, values: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        pieces = value.split(",")
        # A column's name may hold a comma: only a list of pairs is taken apart.
        for piece in pieces if all("=" in piece for piece in pieces) else [value]:
            key, equals, name = piece.partition("=")
            if not equals or not key:
                raise SetupError(f"{flag} takes pairs such as prompt=question, got {piece!r}")
            pairs[key] = name
    return pairs
