"""Measures what one GPU of eight does with the full model, against what the card can do at all.

    python -m bench.gpu [--json FILE] [--golden]

The engine's own steps run on one device's slice of 8-way tensor parallelism: all 64 layers, 6 query
heads and 1 KV head, an eighth of each expert and of the vocabulary; 39.4 GB of int8 weights, drawn
at random. Decoding is held against the card's measured copy bandwidth, prefill against its measured
rate of products. Exchanges between devices do not happen here: they are added on paper, at the
bandwidth that ``--link`` gives, and the table says so. What the card has no memory for is left out,
which the table says, too.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from bench import golden, markdown
from bench.device_slice import DeviceSlice, copy_bandwidth, device_memory, matmul_rate, slice_of
from model.config import GROK_1, Grok1Config
from model.engine.memory import is_out_of_memory
from model.engine.programs import Plan
from model.engine.tuning import prepare_gpu
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
class Case:
    """What is to be measured.

    Attributes:
      what: ``decode`` or ``prefill``.
      weights: ``int8`` or ``int4``.
      batch: rows of a step: sequences that decode, or prompt tokens.
      context: tokens of each sequence.
    """

    what: str
    weights: str
    batch: int
    context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Case):
    """One measurement; tokens a second are those of eight such devices.

    Attributes:
      tokens_per_second: without exchanges between devices.
      with_exchanges: with them, on paper.
      share: of the copy bandwidth (decode) or the rate of products (prefill) that was reached.
    """

    tokens_per_second: float
    with_exchanges: float
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped(Case):
    """A case that the card has no memory for.

    Attributes:
      reason: in words.
    """

    reason: str


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


def measure(
    part: DeviceSlice, card: Card, what: str, batch: int, context: int, link: float, rounds: int
) -> Result | Skipped:
    """One case: ``what`` is ``decode`` or ``prefill``; nothing is allocated if it cannot fit."""
    plan = part.plan(batch, context)
    rows = plan.shapes.prefill_rows if what == "prefill" else plan.shapes.rows

    def skipped(reason: str) -> Skipped:
        return Skipped(what=what, weights=part.weights, batch=rows, context=context, reason=reason)

    needed, memory = part.needed_bytes(plan), device_memory()
    if memory is not None and needed > memory:
        gib = f"{needed / (1 << 30):,.1f} GiB, and programs have {memory / (1 << 30):,.1f}"
        return skipped(f"does not fit: takes {gib}")
    try:
        if what == "prefill":
            return measure_prefill(part, card, plan, link)
        return measure_decode(part, card, plan, link, rounds)
    except Exception as error:
        # Temporaries, and holes between arrays, are beyond arithmetic.
        if not is_out_of_memory(error):
            raise
        return skipped("does not fit: the device ran out of memory")


def measure_decode(part: DeviceSlice, card: Card, plan: Plan, link: float, rounds: int) -> Result:
    """Decode steps of all rows at the end of a context; each draws a token for each row."""
    batch, context = plan.shapes.rows, plan.shapes.max_context
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


def measure_prefill(part: DeviceSlice, card: Card, plan: Plan, link: float) -> Result:
    """Prefill steps over whole prompts."""
    context = plan.shapes.max_context
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


def report(card: Card, outcomes: Sequence[Result | Skipped]) -> str:
    """The card's own rates and a Markdown table of what was reached."""
    table = markdown.table(
        ["step", "weights", "rows", "context", "tok/s of 8", "with exchanges", "share of the card"],
        [(o.what, o.weights, f"{o.batch:,}", f"{o.context:,}", *_reached(o)) for o in outcomes],
    )
    return (
        f"{card.kind}: copies at {card.bandwidth / 1e9:,.0f} GB/s, multiplies at "
        f"{card.flops / 1e12:,.1f} TFLOP/s. Decode is held against the one, prefill against the "
        f"other. Exchanges are computed, not measured.\n\n{table}"
    )


def _reached(outcome: Result | Skipped) -> tuple[str, str, str]:
    """The last three columns."""
    if isinstance(outcome, Skipped):
        return "", "", outcome.reason
    speeds = f"{outcome.tokens_per_second:,.0f}", f"{outcome.with_exchanges:,.0f}"
    return *speeds, f"{outcome.share:.0%}"


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
    add("--json", metavar="FILE", help="write the figures there too, as they come")
    add("--golden", action="store_true", help="run the golden tests on the GPU first")
    given = parser.parse_args(arguments)
    tests = 0
    if given.golden:
        # Before this process takes the GPU's memory.
        if (found := golden.backend()) != "gpu":
            parser.error(f"--golden needs a GPU: JAX runs on {found} here, which proves nothing")
        tests = golden.run()
    prepare_gpu()
    config = slice_of(_scaled(GROK_1, given.layers, given.scale), DEVICES)
    card = measure_card(given.scale**2)
    outcomes: list[Result | Skipped] = []
    try:
        for outcome in _measure_all(given, config, card):
            outcomes.append(outcome)
            if given.json:
                _write(pathlib.Path(given.json), card, config, outcomes)
    finally:
        # Whatever ends it, what was measured is told.
        print(report(card, outcomes))
    return tests


def _measure_all(
    given: argparse.Namespace, config: Grok1Config, card: Card
) -> Iterator[Result | Skipped]:
    for weights in given.weights:
        part = DeviceSlice(config, weights, "bf16", given.kernels)
        for context in given.context:
            cases = [("prefill", plan_rows(context)), *(("decode", n) for n in given.batch)]
            for what, batch in cases:
                yield measure(part, card, what, batch, context, given.link, given.rounds)
        # The next kind's weights take its place.
        del part


def _write(
    path: pathlib.Path, card: Card, config: Grok1Config, outcomes: Sequence[Result | Skipped]
) -> None:
    """All figures so far; a file that is there already is whole at any time."""
    found = {
        "card": dataclasses.asdict(card),
        "config": dataclasses.asdict(config),
        "results": [dataclasses.asdict(o) for o in outcomes if isinstance(o, Result)],
        "skipped": [dataclasses.asdict(o) for o in outcomes if isinstance(o, Skipped)],
    }
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(path)


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
