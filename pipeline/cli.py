"""The command ``grok1``. Nothing heavy is imported until a subcommand needs it."""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.stdout import outliving_its_reader
from schemas.error import SetupError

OK, FAILED, SETUP, ROW_ERRORS, BUDGET, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes. ``BUDGET``: a budget was reached, and starting again with more goes on."""

_COMMANDS = (
    "generate",
    "score",
    "plan",
    "retry",
    "report",
    "status",
    "inspect",
    "import_",
    "export",
    "convert",
    "synth",
    "fit",
    "completion",
)

_EPILOG = """\
examples:
  grok1 plan --checkpoint grok-1 --input 'prompts/*.parquet'
  grok1 generate --checkpoint grok-1 --input 'prompts/*.parquet' --output completions
  grok1 status completions
  grok1 generate --help        all arguments of a command, with examples

exit codes:
  0  all rows are accounted for, none is errored
  1  failed; what was committed is kept, and starting again goes on
  2  wrong set-up or usage
  3  finished, all rows are accounted for, some are errored
  4  stopped at a budget; starting again with a larger one goes on
  130  interrupted; a run that is started again goes on
"""


class Failed(Exception):
    """A command that failed for a reason that one sentence tells."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code, after one sentence on stderr for any fault."""
    with outliving_its_reader():
        parser = make_parser()
        _check_command(parser, sys.argv[1:] if arguments is None else arguments)
        given, others = parser.parse_known_args(arguments)
        if not hasattr(given, "run"):
            parser.print_help()
            return SETUP
        if others and not given.passes_through:
            parser.error(f"unknown argument {others[0]}; see grok1 {given.command} --help")
        _quiet(given.debug)
        return _run(given, others)


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """The process ``grok1``: runs its command line, and ends with its exit code."""
    code = main(arguments)
    if code == INTERRUPTED:
        # Threads of a runner and of devices that were given up may be at work, and would abort an
        # interpreter that ends under them. Nothing is left to do: what is written is whole.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _check_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Says which command a misspelt one may have been, where argparse would list them all."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    known = [name.rstrip("_") for name in _COMMANDS]
    if named is not None and named not in known:
        near = difflib.get_close_matches(named, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"they are {', '.join(known)}"
        parser.error(f"there is no command {named}; {meant}")


def _run(given: argparse.Namespace, others: list[str]) -> int:
    try:
        return given.run(given, others)
    except SetupError as error:
        return _fault(error, SETUP, given.debug)
    except KeyboardInterrupt:
        goes_on = "; start the same command again to go on" if given.resumes else ""
        print(f"\ngrok1: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _fault(error, FAILED, given.debug)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="grok1",
        description="Batch generation with Grok-1: prompts in Parquet, completions in Parquet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--debug", action="store_true", help="show logs, and tracebacks of faults")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name in _COMMANDS:
        module = importlib.import_module(f"pipeline.commands.{name}")
        command = commands.add_parser(
            name.rstrip("_"),  # a module cannot be called import
            parents=[common],
            # Else a usage of dozens of lines would hide what is wrong with a command.
            usage=getattr(module, "USAGE", None),
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        passes_through = getattr(module, "PASSES_THROUGH", False)
        resumes = getattr(module, "RESUMES", False)
        command.set_defaults(run=module.run, passes_through=passes_through, resumes=resumes)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, help="versions and machine, for a bug report"
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pipeline.versions import facts

        for name, fact in facts().items():
            print(f"{name} {fact}" if name == "grok1" else f"{name}: {fact}")
        parser.exit()


def _quiet(debug: bool) -> None:
    """A normal run shows what the command prints, and nothing of its libraries."""
    logging.getLogger("grok1").setLevel(logging.INFO if debug else logging.WARNING)
    if debug:
        logging.basicConfig(level=logging.INFO)
    else:
        logging.basicConfig(level=logging.ERROR, format="grok1: %(message)s")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # These log each fault, some several times; the command reports it once.
        for name in ("apache_beam", "gcsfs"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _fault(error: Exception, code: int, debug: bool) -> int:
    if debug:
        logging.getLogger("grok1").exception("%s", error)
    from model.checkpoint import files

    sentence = files.redact_text(" ".join(str(error).split())) or type(error).__name__
    if code == FAILED and not isinstance(error, Failed):
        sentence = f"{type(error).__name__}: {sentence} (more with --debug)"
    print(f"grok1: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
