"""Beam's own arguments: the local runner by the name that works, and typing errors found."""

import contextlib
import difflib
import importlib
import os
from collections.abc import Iterable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.worker import sdk_worker

from pipeline.dataflow.options import Parser, is_dataflow, names_dataflow
from schemas.error import SetupError

LOCAL_RUNNER = "FnApiRunner"
"""What the others of ``_LOCAL`` stand for; those may download a runner and use that."""

_LOCAL = ("directrunner", "switchingdirectrunner", "fnapirunner")

_DATAFLOW_ATTEMPTS = 4
"""Of a work item in a batch job."""

LOCAL_THREADS = 4
"""Chunks in flight in a local run, so that the engine's slots stay full across chunk ends."""


def local_options() -> PipelineOptions:
    """Beam's options of a run on this machine."""
    return PipelineOptions(complete([]))


def make_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline on the runner that the options name; this machine's by its own name."""
    if not _is_local(options.view_as(StandardOptions).runner):
        return beam.Pipeline(options=options)
    # The runner talks to its threads by gRPC, which would ask a proxy for the way to localhost.
    os.environ.setdefault("no_grpc_proxy", "localhost,127.0.0.1")
    return beam.Pipeline(runner=LOCAL_RUNNER, options=options)


def attempts(options: PipelineOptions) -> int | None:
    """How often the runner tries a piece of work before it gives the job up; None for once."""
    if names_dataflow(options.view_as(StandardOptions).runner):
        return _DATAFLOW_ATTEMPTS
    # Beam passes this on to its runner, and does not know it itself.
    told = options.get_all_options(drop_default=True, retain_unknown_options=True)
    retries = int(told.get("number_of_execution_retries") or -1)
    return None if retries < 0 else retries + 1


def complete(arguments: Sequence[str]) -> list[str]:
    """The arguments with a runner: the one they name, or this machine's, with several threads."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner", default="DirectRunner")
    parser.add_argument("--direct_running_mode", default="multi_threading")
    parser.add_argument("--direct_num_workers", default=str(LOCAL_THREADS))
    given, others = parser.parse_known_args(list(arguments))
    if not _is_local(given.runner):
        return list(arguments)
    return [
        *others,
        f"--runner={LOCAL_RUNNER}",
        f"--direct_running_mode={given.direct_running_mode}",
        f"--direct_num_workers={given.direct_num_workers}",
    ]


def runs_here(arguments: Sequence[str]) -> bool:
    """Whether completed arguments name a run in this very process, whose counters can be seen."""
    apart = "--direct_running_mode=multi_processing"
    return f"--runner={LOCAL_RUNNER}" in arguments and apart not in arguments


def print_no_tracebacks() -> None:
    """Keeps workers in this process from printing each fault: it is logged and raised as well."""
    vars(sdk_worker)["print"] = lambda *_, **__: None


def check(arguments: Sequence[str], ours: Iterable[str]) -> None:
    """Refuses arguments that nobody knows, which Beam would drop with a warning at most.

    Runners elsewhere bring options of their own that are not known here, so only those of a local
    run and of Dataflow are checked.

    Args:
      arguments: completed ones.
      ours: this command's own option names, for the suggestion.

    Raises:
      SetupError: an argument is not one of Beam's, or there is no such runner.
    """
    if f"--runner={LOCAL_RUNNER}" not in arguments:
        _check_runner(arguments)
        if not is_dataflow(arguments):
            return
    parser = Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in _subclasses(PipelineOptions):
        options._add_argparse_args(parser)  # type: ignore[arg-type]  # argparse's is enough
    _, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [*ours, *parser._option_string_actions]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see grok1 generate --help"
        raise SetupError(f"unknown argument {name}{hint}")


def _check_runner(arguments: Sequence[str]) -> None:
    name = PipelineOptions(list(arguments)).view_as(StandardOptions).runner or ""
    known = [path.rpartition(".")[2] for path in StandardOptions.ALL_KNOWN_RUNNERS]
    if name.lower() in {alias for each in known for alias in (each.lower(), each[:-6].lower())}:
        return
    module, _, runner = name.rpartition(".")
    with contextlib.suppress(ImportError, ValueError):
        if module and hasattr(importlib.import_module(module), runner):
            return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "name one of your own as package.module.Class"
    raise SetupError(f"Beam has no runner {name}; {hint}")


def _is_local(runner: str | None) -> bool:
    # As Beam reads the name: any case, the last word left out, or with its module before it.
    name = (runner or "DirectRunner").rpartition(".")[2].lower()
    return name in _LOCAL or f"{name}runner" in _LOCAL


def _subclasses(kind: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    found = [kind]
    for child in kind.__subclasses__():
        found.extend(_subclasses(child))
    return found
