"""Trains the small model that the demo completes with, and says how good it is.

Text, order and first weights are fixed: the same Python, machine and versions give the same model.
It takes half an hour on two cores.
"""

import argparse
import importlib.metadata
import math
import os
import pathlib
import platform
import time

from bench import markdown
from examples.training import ngrams
from examples.training.network import Params
from examples.training.quantize import read_checkpoint, write_checkpoint
from examples.training.text import Corpus, encode, read_documents
from examples.training.train import Phase, Progress, Recipe, held_out_losses, train
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import Grok1Config
from model.tokenizer import Tokenizer

CONFIG = Grok1Config(
    vocab_size=2048,
    emb_size=128,
    num_layers=6,
    num_q_heads=4,
    num_kv_heads=2,
    key_size=32,
    ffn_size=192,
    sequence_len=512,
    attn_output_multiplier=32**-0.5,
    embedding_multiplier_scale=128**0.5,
)
RECIPE = Recipe(CONFIG, phases=(Phase(1200, 16, 256), Phase(300, 8, 512)))

_ORDER = 5
_README = pathlib.Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Trains, writes the checkpoint, measures it, and records the measurement."""
    parser = argparse.ArgumentParser(prog="python -m examples.training", description=__doc__)
    parser.add_argument("output", help="folder of the checkpoint")
    output = parser.parse_args().output

    started = time.process_time()
    training, held_out = read_documents()
    lines = (line for text in training for line in text.splitlines() if line.strip())
    tokenizer = Tokenizer(synthesize_tokenizer(CONFIG.vocab_size, lines))
    corpus, test = encode(training, tokenizer), encode(held_out, tokenizer)
    print(
        f"{len(corpus.tokens):,} tokens to train on, {len(test.tokens):,} held out; "
        f"{CONFIG.num_params:,} parameters; {RECIPE.tokens:,} tokens in {RECIPE.steps:,} steps",
        flush=True,
    )
    params = train(RECIPE, corpus, _tell)
    write_checkpoint(output, params, CONFIG, tokenizer.model)
    minutes = (time.process_time() - started) / 60
    report = _report(_measure(params, output, corpus, test), corpus, test, minutes)
    print(f"\n{report}")
    markdown.replace(_README, "training", report)


def _tell(done: Progress) -> None:
    print(
        f"step {done.step:,} of {done.steps:,}: loss {done.loss:.3f}, {done.tokens:,} tokens, "
        f"{done.seconds / 60:.1f} min",
        flush=True,
    )


def _measure(params: Params, stored: str, corpus: Corpus, test: Corpus) -> dict[str, float]:
    """Mean losses in nats of the held-out tokens, of the same ones for each model."""
    train_tokens, test_tokens, size = corpus.tokens, test.tokens, CONFIG.vocab_size
    counted = ngrams.NGrams(train_tokens, _ORDER, size)
    quantized, _ = read_checkpoint(stored)
    losses = {
        "how often each token occurs": -ngrams.unigram_logprobs(train_tokens, test_tokens, size),
        f"{_ORDER}-gram, interpolated (Kneser-Ney)": -counted.logprobs(test_tokens),
        "this model in float32, as trained": held_out_losses(params, test, CONFIG),
        "this model in int8, as stored": held_out_losses(quantized, test, CONFIG),
    }
    scored = len(test_tokens) - _ORDER + 1  # those that have four before them
    return {name: float(each[-scored:].mean()) for name, each in losses.items()}


def _report(losses: dict[str, float], corpus: Corpus, test: Corpus, minutes: float) -> str:
    bits = len(test.tokens) / test.nbytes / math.log(2)
    rows = [
        [name, f"{loss:.3f}", f"{math.exp(loss):.1f}", f"{loss * bits:.3f}"]
        for name, loss in losses.items()
    ]
    cores = os.cpu_count() or 1
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    return (
        f"Held out: {len(test.tokens):,} tokens ({test.nbytes:,} bytes) of modules that training "
        f"did not see.\n\n"
        f"{markdown.table(['model', 'nats a token', 'perplexity', 'bits a byte'], rows)}\n\n"
        f"{CONFIG.num_params:,} parameters, {CONFIG.active_params:,} of them active for a token; "
        f"{RECIPE.tokens:,} tokens seen, of {len(corpus.tokens):,} in the text; "
        f"{minutes:.0f} minutes of processor time, so {minutes / cores:.0f} on {cores} idle cores; "
        f"Python {platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    main()
