"""What the arguments that all jobs take come to: a job's options, and its run."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from model.engine.options import EngineOptions
from pipeline.commands.limits import limits
from pipeline.options import JobOptions, PromptOptions
from schemas.error import SetupError

_MAX_TEMPLATE = 1 << 20
"""Bytes of a template."""


def job_options(given: argparse.Namespace) -> dict[str, Any]:
    """What was given, by the names of ``JobOptions``.

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

    check_beam_arguments(beam_arguments, add_arguments)
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


def check_beam_arguments(
    beam_arguments: Sequence[str], add_arguments: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Refuses arguments that neither Beam nor a command with ``add_arguments`` knows.

    Raises:
      SetupError: there is such an argument.
    """
    if not beam_arguments:
        return
    # Only then: it imports Beam, and most faults of a set-up can be told before that.
    from pipeline import beam_options

    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    beam_options.check(beam_options.complete(beam_arguments), parser._option_string_actions)
