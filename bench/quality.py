"""What quantisation and rounding cost: error against float64 truth, for each kind of weights.

Truth is the network in float64 on the checkpoint's own int8 weights times their scales. For each
numerics mode, kind of weights and kind of cache: the error of all logits, how often the likeliest
token is the same, and the perplexity of a text. With ``--write`` the tables go to
docs/quantization.md, between the marks of the checkpoint's name.
"""

import argparse
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from bench import markdown
from bench.int4_schemes import GROUPS, SCHEMES
from bench.logits import Logits
from model.checkpoint.base import Checkpoint, HostTensor
from model.checkpoint.recode import read_as
from model.checkpoint.source import open_checkpoint
from model.engine.options import EngineOptions
from model.params import Param, Tensor, declare
from model.tokenizer import Tokenizer
from schemas.error import SetupError
from tests.model import reference

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "quantization.md"
VARIANTS = [
    *((numerics, "int8", "auto") for numerics in ("float32", "bf16", "release")),
    ("bf16", "int8", "int8"),
    *((numerics, "int4", "auto") for numerics in ("float32", "bf16", "release")),
    ("bf16", "int4", "int8"),
]
"""Numerics, weights, cache."""


def main() -> None:
    """Measures, prints, and records if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="int8 weights, in any layout")
    parser.add_argument("--text", help="a text file; by default Python modules kept from training")
    parser.add_argument("--ids", help="an .npz of token ids instead: arrays tokens and lens")
    parser.add_argument("--tokens", type=int, default=2048, help="how many to measure on (2048)")
    parser.add_argument("--write", action="store_true", help=f"record in {DOCUMENT.name}")
    given = parser.parse_args()

    checkpoint = open_checkpoint(given.checkpoint)
    if checkpoint.weights != "int8":
        raise SetupError(f"{checkpoint.url} holds {checkpoint.weights}: truth is that of int8")
    sequences = _sequences(given, checkpoint)
    truth = Truth(checkpoint, sequences)
    report = "\n\n".join(
        [
            f"{len(truth.targets):,} tokens in {len(sequences)} sequences; perplexity of the truth "
            f"{truth.perplexity(truth.logits):.3f}, spread of its logits {truth.spread:.2f}.",
            _variants(checkpoint, truth),
            _schemes(checkpoint, truth),
        ]
    )
    print(report)
    if given.write:
        name = pathlib.Path(checkpoint.url).name
        markdown.replace(DOCUMENT, f"quality {name}", report)


class Truth:
    """Float64 logits of sequences, and what others are worth beside them.

    Attributes:
      sequences: token ids.
      logits: [T, V] of all of them.
      targets: [T] the token that follows, -1 at a sequence's end.
      spread: standard deviation of a position's logits, on average.
    """

    def __init__(self, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> None:
        weights = reference.dequantized(checkpoint)
        self.sequences = sequences
        each = [reference.logits(checkpoint.config, weights, list(s)) for s in sequences]
        self.logits = np.concatenate(each)
        self.targets = np.concatenate([[*s[1:], -1] for s in sequences])
        self.spread = self.logits.std(1).mean()

    def perplexity(self, logits: np.ndarray) -> float:
        """Of the tokens that follow."""
        known = self.targets >= 0
        wide = logits[known].astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        logprob = wide - np.log(np.exp(wide).sum(1, keepdims=True))
        return float(np.exp(-logprob[np.arange(len(wide)), self.targets[known]].mean()))

    def row(self, logits: np.ndarray) -> list[str]:
        """Logit error relative to their spread, agreement on the likeliest token, perplexity."""
        error = np.sqrt(np.square(logits - self.logits).mean()) / self.spread
        agreed = (logits.argmax(1) == self.logits.argmax(1)).mean()
        return [f"{error:.2%}", f"{agreed:.2%}", f"{self.perplexity(logits):.3f}"]


def _variants(checkpoint: Checkpoint, truth: Truth) -> str:
    rows = []
    for numerics, weights, cache in VARIANTS:
        options = _options(truth, numerics=numerics, kv_cache_dtype=cache)
        model = Logits(checkpoint.config, read_as(checkpoint, weights), weights, options)
        found = np.concatenate([model(s) for s in truth.sequences])
        held = "int8" if cache == "int8" else "float32" if numerics == "float32" else "bf16"
        rows.append([numerics, weights, held, *truth.row(found)])
    header = ["numerics", "weights", "cache", "logit error", "same top token", "perplexity"]
    return markdown.table(header, rows)


def _schemes(checkpoint: Checkpoint, truth: Truth) -> str:
    """Ways to make 4-bit experts, all else in float32."""
    rows = []
    # A small model's scale groups may have fewer rows than the sizes to compare.
    own = min(p.shape[-2] // p.groups for p in _experts(checkpoint))
    sizes = [size for size in GROUPS if size <= own] or [own]
    for name, (scheme, bits) in SCHEMES.items():
        for size in sizes:
            reader = _Requantized(checkpoint, scheme, size)
            options = _options(truth, numerics="float32")
            model = Logits(checkpoint.config, reader, "bf16", options)
            found = np.concatenate([model(s) for s in truth.sequences])
            error = np.sqrt(reader.lost / reader.whole)
            taken = f"{4 + bits * reader.scales:.2f}"
            rows.append([name, f"≤ {size}", taken, f"{error:.2%}", *truth.row(found)])
    header = ["4-bit experts", "rows a scale", "bits a weight", "weight error"]
    return markdown.table([*header, "logit error", "same top token", "perplexity"], rows)


def _experts(checkpoint: Checkpoint) -> list[Param]:
    return [p for p in declare(checkpoint.config).values() if "experts" in p.axes]


class _Requantized:
    """Reads a checkpoint's experts as a scheme leaves them, the other matrices as they are.

    Attributes:
      lost: sum of squared errors so far.
      whole: sum of squared weights.
    """

    def __init__(self, checkpoint: Checkpoint, scheme, size: int) -> None:
        self._checkpoint, self._scheme, self._size = checkpoint, scheme, size
        self._declared = declare(checkpoint.config)
        self.lost = self.whole = 0.0
        self._groups = self._weights = 0
        self._lock = threading.Lock()

    @property
    def scales(self) -> float:
        """Of a weight, on average: not each matrix has groups of the size asked for."""
        return self._groups / self._weights

    def __call__(self, tensor: Tensor, count: int) -> Iterator[HostTensor]:
        source = Tensor(self._declared[tensor.param.name], tensor.layer)
        for host in self._checkpoint.read_parts(source, count):
            if "experts" in tensor.param.axes:
                yield HostTensor(self._experts(host))
            elif source.param.quantized:
                yield HostTensor(reference.numbers(host))
            else:
                yield host

    def _experts(self, host: HostTensor) -> np.ndarray:
        exact = reference.numbers(host)
        assert host.scales is not None
        *lead, rows, out = exact.shape
        own = rows // host.scales.shape[-2]
        size = next(n for n in range(min(self._size, own), 0, -1) if own % n == 0)
        grouped = exact.reshape(-1, size, out)
        made = self._scheme(grouped)
        with self._lock:  # several tensors are read at once
            self.lost += np.square(made - grouped).sum()
            self.whole += np.square(grouped).sum()
            self._groups += len(grouped) * out
            self._weights += grouped.size
        return made.reshape(*lead, rows, out)


def _options(truth: Truth, **given: str) -> EngineOptions:
    longest = max(map(len, truth.sequences))
    return EngineOptions(slots=8, prefill_rows=-(-longest // 64) * 64, kernels="plain", **given)


def _sequences(given: argparse.Namespace, checkpoint: Checkpoint) -> list[list[int]]:
    if given.ids:
        data = np.load(given.ids)
        every = np.split(data["tokens"], np.cumsum(data["lens"])[:-1])
        return [sequence.tolist() for sequence in every][: max(1, given.tokens // 64)]
    if not checkpoint.tokenizer_url:
        raise SetupError(f"{checkpoint.url} has no tokenizer: give --ids")
    if given.text:
        text = pathlib.Path(given.text).read_text("utf-8")
    else:
        from examples.training.text import read_documents

        text = "\n".join(read_documents()[1])
    ids = Tokenizer.load(checkpoint.tokenizer_url).encode(text)[: given.tokens]
    length = min(512, checkpoint.config.sequence_len - 1)
    return [list(ids[at : at + length]) for at in range(0, len(ids), length)]


if __name__ == "__main__":
    main()
