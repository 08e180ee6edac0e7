"""The sampling flags of a command, by vLLM's names with dashes."""

import argparse
from typing import Any

from schemas.error import SetupError
from schemas.sampling import (
    MAX_BEAM_WIDTH,
    MAX_LOGPROBS,
    PARAM_NAMES,
    TO_CONTEXT_END,
    InvalidParameter,
    SamplingParams,
)
from schemas.structured import SHORTHANDS


def add_sampling(group: Any) -> None:
    """Adds a flag for each sampling parameter; one that is not given is None."""
    add, default = group.add_argument, SamplingParams()
    add("--n", type=int, metavar="N", help="completions of each prompt (1)")
    add(
        "--beam-width",
        type=int,
        metavar="N",
        help=f"search with N beams, up to {MAX_BEAM_WIDTH}, instead of drawing; --n of the best",
    )
    add(
        "--length-penalty",
        type=float,
        metavar="X",
        help="of a search: above 0 favours long completions (1.0)",
    )
    add("--temperature", type=float, metavar="T", help="0 is greedy (1.0)")
    add("--top-p", type=float, metavar="P", help="smallest set of tokens of this probability (1.0)")
    add("--top-k", type=int, metavar="K", help="only the likeliest K; 0 is all (0)")
    add("--min-p", type=float, metavar="P", help="only tokens this part as likely as the best (0)")
    add(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1 makes tokens of the prompt and the completion less likely (1.0)",
    )
    add(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="taken off the logits of tokens in the completion, -2 to 2 (0)",
    )
    add(
        "--frequency-penalty",
        type=float,
        metavar="X",
        help="the same, once for each time that they stand there (0)",
    )
    add("--logit-bias", metavar="JSON", help='added to logits: \'{"50": -100, "7": 2.5}\'')
    add("--allowed-token-ids", type=int, nargs="+", metavar="ID", help="only these may be drawn")
    add(
        "--bad-words",
        action="append",
        metavar="TEXT",
        help="may not be drawn; may be repeated",
    )
    add("--stop", action="append", metavar="STRING", help="ends the completion; may be repeated")
    add("--stop-token-ids", type=int, nargs="+", metavar="ID", help="token ids that end it")
    add(
        "--include-stop-str-in-output",
        action="store_true",
        default=None,
        help="keep the stop string in the text",
    )
    add("--ignore-eos", action="store_true", default=None, help="go on past the end of the text")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"most tokens; {TO_CONTEXT_END} is up to the context's end ({default.max_tokens})",
    )
    add("--min-tokens", type=int, metavar="N", help="no end before so many tokens (0)")
    add(
        "--repetition-detection",
        metavar="JSON",
        help='end a loop: \'{"max_pattern_size": 32, "min_count": 4}\'',
    )
    add(
        "--structured-outputs",
        metavar="JSON",
        help="what the text must look like; one of json, regex, choice, grammar, json_object, "
        'as in \'{"regex": "[0-9]+"}\'',
    )
    add("--guided-json", metavar="SCHEMA", help="short for one kind: a JSON schema")
    add("--guided-regex", metavar="REGEX", help="short for a regular expression")
    add("--guided-choice", nargs="+", metavar="TEXT", help="short for one of these texts")
    add("--guided-grammar", metavar="GRAMMAR", help="short for a grammar (Lark or GBNF)")
    add("--logprobs", type=int, metavar="N", help=f"with the N likeliest, up to {MAX_LOGPROBS}")
    add("--prompt-logprobs", type=int, metavar="N", help="the same for the prompt")
    add(
        "--skip-special-tokens",
        action=argparse.BooleanOptionalAction,
        help="leave special tokens out of the text (on)",
    )


def sampling_params(given: argparse.Namespace) -> SamplingParams:
    """The parameters that the flags ask for.

    Raises:
      SetupError: a value is out of bounds.
    """
    names = (*PARAM_NAMES, *SHORTHANDS)
    try:
        return SamplingParams().override({name: getattr(given, name, None) for name in names})
    except InvalidParameter as error:
        flag = "--" + error.param.replace("_", "-")
        raise SetupError(str(error).replace(error.param, flag, 1)) from None
