"""Write a random checkpoint in the release's layout, to rehearse without 318 GB of weights.

It has the named preset's shape, or that of a config file; int8 weights with scale groups, and a
small tokenizer. It says nothing sensible, but runs everywhere the released model would.

  grok1 synth --preset tiny --output checkpoint
"""

import argparse
import sys
from collections.abc import Sequence

from model.config import PRESETS, Grok1Config
from model.params import Tensor, tensors
from schemas.error import SetupError

HELP = "write a random checkpoint to rehearse with"

_MAX_CONFIG = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--preset", choices=sorted(PRESETS), help="a named shape")
    shape.add_argument("--config", metavar="FILE", help="a config.json")
    add("--output", required=True, metavar="DIR", help="folder of the checkpoint")
    add("--seed", type=int, default=0, metavar="N", help="of the weights (0)")
    add("--tokenizer", metavar="FILE", help="a SentencePiece model (default: trains a small one)")
    add("--overwrite", action="store_true", help="replace a checkpoint that is there")


def run(given: argparse.Namespace, _: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from model.checkpoint import files
    from model.checkpoint.inspect import inspect_checkpoint
    from model.checkpoint.synth import synthesize
    from model.checkpoint.synth_tokenizer import synthesize_tokenizer

    if given.preset:
        config = PRESETS[given.preset]
    else:
        text = files.read_bytes(given.config, _MAX_CONFIG)
        try:
            config = Grok1Config.from_json(text)
        except SetupError as error:
            raise SetupError(
                f"{files.redact(given.config)}: {error}; "
                "a config.json that grok1 synth --preset tiny writes shows what belongs there"
            ) from None
    tokenizer: str | bytes | None = given.tokenizer
    if tokenizer is None:
        try:
            tokenizer = synthesize_tokenizer(config.vocab_size)
        except SetupError as error:
            print(f"no tokenizer, so prompts must be token ids ({error})", file=sys.stderr)
    synthesize(
        given.output,
        config,
        seed=given.seed,
        tokenizer=tokenizer,
        overwrite=given.overwrite,
        progress=_Progress(config),
    )
    found = inspect_checkpoint(given.output)
    print(
        f"{found.tensors} tensors, {found.parameters:,} parameters, {found.nbytes / 1e6:,.1f} MB "
        f"in {files.redact(given.output)}"
    )
    return 0


class _Progress:
    """A line on a terminal that says how far it is; nothing elsewhere."""

    def __init__(self, config: Grok1Config) -> None:
        self._all, self._done, self._bytes = len(tensors(config)), 0, 0

    def __call__(self, _: Tensor, size: int) -> None:
        self._done += 1
        self._bytes += size
        if sys.stderr.isatty():
            end = "\n" if self._done == self._all else ""
            line = f"\r{self._done} of {self._all} tensors, {self._bytes / 1e9:,.2f} GB"
            print(line, end=end, file=sys.stderr, flush=True)
