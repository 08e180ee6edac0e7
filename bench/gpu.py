"""Measures what one GPU of eight does with the full model, against what the card can do at all.

    python -m bench.gpu [--json FILE] [--golden]

The engine's own steps run on one device's slice of 8-way tensor parallelism: all 64 layers, 6 query
heads and 1 KV head, an eighth of each expert and of the vocabulary; 39.4 GB of int8 weights, drawn
at random. Decoding is held against the card's measured copy bandwidth, prefill against its measured
rate of products. Exchanges between devices do not happen here: they are added on paper, at the
bandwidth that ``--link`` gives, and the table says so.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

import jax

from bench import markdown
from bench.device_slice import DeviceSlice, copy_bandwidth, matmul_rate, slice_of
from model.config import GROK_1, Grok1Config
from model.machines import cache_bytes_per_token, weight_bytes

DEVICES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What the device can do at all, measured.

    Attributes:
      kind: the device's name.
      bandwidth: bytes a second of a copy, reads and writes together.
      flops: bfloat16 operations a second of a large product.
    """

    kind: str
    bandwidth: float
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One measurement; tokens a second are those of eight such devices.

    Attributes:
      what: ``decode`` or ``prefill``.
      weights: ``int8`` or ``int4``.
      batch: sequences of a step.
      context: tokens of each.
      tokens_per_second: without exchanges between devices.
      with_exchanges: with them, on paper.
      share: of the copy bandwidth (decode) or the rate of products (prefill) that was reached.
    """

    what: str
    weights: str
    batch: int
    context: int
    tokens_per_second: float
    with_exchanges: float
    share: float


def measure_card(scale: int) -> Card:
    """Copy bandwidth and rate of products, at sizes ``scale`` times smaller than a GPU likes."""
    return Card(
        kind=jax.devices()[0].device_kind,
        bandwidth=copy_bandwidth((4 << 30) // scale),
        flops=matmul_rate(max(8192 // scale, 128)),
    )


def exchange_seconds(config: Grok1Config, rows: int, link: float) -> float:
    """On paper: two sums over devices a layer, each an all-to-all and an all-gather in bfloat16."""
    each = 2 * rows * config.emb_size * (DEVICES - 1) / DEVICES
    return config.num_layers * 2 * 2 * each / link


def measure_decode(
    part: DeviceSlice, card: Card, batch: int, context: int, link: float, rounds: int
) -> Result:
    """Decode steps of a batch at the end of a context."""
    plan = part.plan(batch, context)
    seconds = part.decode_seconds(plan, context, rounds)
    read = weight_bytes(part.config, part.weights)
    read += batch * context * cache_bytes_per_token(part.config)
    whole = seconds + exchange_seconds(part.config, batch, link)
    return Result(
        what="decode",
        weights=part.weights,
        batch=batch,
        context=context,
        tokens_per_second=batch / seconds,
        with_exchanges=batch / whole,
        share=read / seconds / card.bandwidth,
    )


def measure_prefill(part: DeviceSlice, card: Card, context: int, link: float) -> Result:
    """Prefill steps over whole prompts."""
    plan = part.plan(max(plan_rows(context), 1), context)
    tokens, seconds = part.prefill_seconds(plan, context)
    # The head is a decode step's.
    active = part.config.active_params - part.config.vocab_size * part.config.emb_size
    whole = seconds + exchange_seconds(part.config, tokens, link)
    return Result(
        what="prefill",
        weights=part.weights,
        batch=plan.shapes.prefill_rows,
        context=context,
        tokens_per_second=tokens / seconds,
        with_exchanges=tokens / whole,
        share=2 * active * tokens / seconds / card.flops,
    )


def plan_rows(context: int) -> int:
    """Sequences whose prompts fill a prefill step of an accelerator."""
    return -(-2048 // context)


def report(card: Card, results: list[Result]) -> str:
    """The card's own rates and a Markdown table of what was reached."""
    table = markdown.table(
        ["step", "weights", "rows", "context", "tok/s of 8", "with exchanges", "share of the card"],
        [
            (
                r.what,
                r.weights,
                f"{r.batch:,}",
                f"{r.context:,}",
                f"{r.tokens_per_second:,.0f}",
                f"{r.with_exchanges:,.0f}",
                f"{r.share:.0%}",
            )
            for r in results
        ],
    )
    return (
        f"{card.kind}: copies at {card.bandwidth / 1e9:,.0f} GB/s, multiplies at "
        f"{card.flops / 1e12:,.1f} TFLOP/s. Decode is held against the one, prefill against the "
        f"other. Exchanges are computed, not measured.\n\n{table}"
    )


def run_golden() -> int:
    """The golden tests on this device, in release and bf16 modes; pytest's exit code."""
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/model/engine/test_golden.py",
            "-k",
            "bf16 or release",
        ],
        cwd=root,
    ).returncode


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--weights", nargs="+", default=["int8", "int4"], choices=["int8", "int4"])
    add("--batch", nargs="+", type=int, default=[64, 128, 256, 512])
    add("--context", nargs="+", type=int, default=[1024, 4096])
    add("--layers", type=int, default=GROK_1.num_layers, help="fewer, for a smaller card")
    add("--scale", type=int, default=1, help="divides widths, for a machine without a GPU")
    add("--rounds", type=int, default=8, help="calls that are timed")
    add("--kernels", default="auto", choices=["auto", "plain"])
    add("--link", type=float, default=450e9, help="bytes/s between devices, one way (NVLink 4)")
    add("--json", metavar="FILE", help="write the figures there too")
    add("--golden", action="store_true", help="run the golden tests on the device as well")
    given = parser.parse_args(arguments)
    config = slice_of(_scaled(GROK_1, given.layers, given.scale), DEVICES)
    card = measure_card(given.scale**2)
    results = []
    for weights in given.weights:
        part = DeviceSlice(config, weights, "bf16", given.kernels)
        for context in given.context:
            results.append(measure_prefill(part, card, context, given.link))
            for batch in given.batch:
                results.append(measure_decode(part, card, batch, context, given.link, given.rounds))
        del part
    print(report(card, results))
    if given.json:
        found = {
            "card": dataclasses.asdict(card),
            "config": dataclasses.asdict(config),
            "results": [dataclasses.asdict(r) for r in results],
        }
        pathlib.Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    return run_golden() if given.golden else 0


def _scaled(config: Grok1Config, layers: int, scale: int) -> Grok1Config:
    """The model with fewer layers and narrower matrices; heads keep their number."""
    return dataclasses.replace(
        config,
        num_layers=layers,
        emb_size=config.emb_size // scale,
        ffn_size=config.ffn_size // scale,
        vocab_size=config.vocab_size // scale,
        key_size=max(config.key_size // scale, 16),
    )


if __name__ == "__main__":
    sys.exit(main())
