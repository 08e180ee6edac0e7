"""Arguments of what a run may take."""

import argparse

from pipeline.options import Limits


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What a run may take."""
    group = parser.add_argument_group(
        "limits", "a run that reaches one exits with 4, and goes on when it is started again"
    )
    add, default = group.add_argument, Limits()
    add("--max-total-tokens", type=int, metavar="N", help="prompt and completion tokens in all")
    add("--max-hours", type=float, metavar="H", help="of this start")
    add("--row-deadline", type=float, metavar="S", help="seconds after which a row is an error")
    add(
        "--stall-seconds",
        type=float,
        default=default.stall_seconds,
        metavar="S",
        help="end the process when a device gives no token for so long, or loading no sign for "
        "four times as long; 0 for never (%(default)g)",
    )


def limits(given: argparse.Namespace) -> Limits:
    """What was given.

    Raises:
      SetupError: a value is out of bounds.
    """
    return Limits(
        max_total_tokens=given.max_total_tokens,
        max_hours=given.max_hours,
        stall_seconds=given.stall_seconds or None,
    )
