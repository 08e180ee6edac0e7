"""The arguments that all jobs take."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from model.engine.options import (
    COLLECTIVES,
    DRAFTS,
    KERNELS,
    KV_CACHE_DTYPES,
    NUMERICS,
    EngineOptions,
)
from pipeline.commands.limits import limits
from pipeline.options import BOS, FEW_SHOT_SAMPLING, JobOptions, PromptOptions
from schemas.error import SetupError

USAGE = "%(prog)s --checkpoint DIR --input PATH [PATH ...] --output DIR [options]"
"""Of a command that runs a job."""

_MAX_TEMPLATE = 1 << 20
"""Bytes of a template."""


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
    add("--extend", action="store_true", help="take files added since that run was started, too")
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


def job_options(given: argparse.Namespace) -> dict[str, Any]:
    """What they say, by the names of ``JobOptions``.

    Raises:
      SetupError: a value is out of bounds.
    """
    same = (
        "checkpoint",
        "output",
        "tokenizer",
        "output_prefix",
        "input_root",
        "unique_custom_id",
        "run_seed",
        "chunk_rows",
        "limit",
        "over_length",
        "bos",
        "dedupe",
        "strict",
        "overwrite",
        "extend",
        "allow_errors",
        "allow_file_errors",
    )
    return {
        **{name: getattr(given, name) for name in same},
        "input": tuple(given.input),
        "engine": EngineOptions(
            numerics=given.numerics,
            slots=given.slots,
            max_context=given.max_context,
            draft_tokens=given.draft_tokens,
            devices=given.devices,
            replicas=given.replicas,
            collectives=given.collectives,
            kernels=given.kernels,
            compile_cache=given.compile_cache,
            kv_cache_dtype=given.kv_cache_dtype,
            row_deadline=given.row_deadline,
        ),
        "limits": limits(given),
        "columns": _pairs("--columns", given.columns),
        "rename": _pairs("--rename", given.rename),
        "prompting": _prompting(given),
    }


def _prompting(given: argparse.Namespace) -> PromptOptions:
    options = PromptOptions(
        template=_template("--template", given.template),
        few_shot=given.few_shot,
        few_shot_template=_template("--few-shot-template", given.few_shot_template),
        few_shot_count=given.few_shot_count,
        few_shot_sampling=given.few_shot_sampling,
    )
    if given.separator is None:
        return options
    return dataclasses.replace(options, separator=_unescaped(given.separator))


def _template(flag: str, value: str | None) -> str | None:
    """The text of a template that is given as it is, or as a file."""
    if value is None:
        return None
    if "{{" in value or "{%" in value:
        return _unescaped(value)
    from model.checkpoint import files

    try:
        text = files.read_bytes(value, _MAX_TEMPLATE).decode()
    except UnicodeDecodeError:
        raise SetupError(f"{flag} {files.redact(value)} is not valid UTF-8; save it so") from None
    except SetupError as error:
        raise SetupError(f"{flag} {value!r:.60} names no column, and as a file: {error}") from None
    return text.removesuffix("\n")


def _unescaped(text: str) -> str:
    """A text as a shell hands it over, where a line end is hard to write."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def run_job(
    options: JobOptions,
    given: argparse.Namespace,
    beam_arguments: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], None],
    *,
    report: bool,
) -> int:
    """Runs the job of a command with ``add_arguments``; returns the exit code."""
    from pipeline.commands import remote

    if beam_arguments:
        # Only then: it imports Beam, and most faults of a set-up can be told before that.
        from pipeline import beam_options

        parser = argparse.ArgumentParser(add_help=False)
        add_arguments(parser)
        beam_options.check(beam_options.complete(beam_arguments), parser._option_string_actions)
    where = remote.Remote(
        machine=given.machine,
        bucket=given.bucket,
        explain=given.explain,
        detach=given.detach,
        rates=given.rates,
    )
    return remote.run_job(
        options, list(beam_arguments), remote=where, report=report, debug=given.debug
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
