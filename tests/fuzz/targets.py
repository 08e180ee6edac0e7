"""What reads files of strangers: each target takes any bytes, and raises if a promise is broken.

The promises: whatever the bytes, nothing of them runs, nothing beside the folder is opened, no
memory is taken for what they merely claim, and the only exception is a ``SetupError`` of one line.
"""

import codecs
import json
import pathlib
import pickle
import sys
from collections.abc import Callable, Iterator

import fsspec
import ml_dtypes
import numpy as np

import __main__
from model.checkpoint.huggingface import CONFIG, INDEX, HuggingFaceCheckpoint
from model.checkpoint.pickle_read import locate_arrays
from model.checkpoint.ports import PORTS, to_port_config
from model.checkpoint.release import file_order
from model.checkpoint.safetensors_header import read_header, write_header
from model.checkpoint.store_index import StoreIndex
from model.checkpoint.store_plan import plan_files
from model.config import PRESETS, Grok1Config
from model.params import tensors
from model.tokenizer import Tokenizer
from schemas.error import SetupError
from tests import sentencepiece_models

CUT = b"\0"
"""Between the files of a target that reads several: no JSON holds it."""

_ROOT = pathlib.Path(__file__).parents[2]
_MEMORY = fsspec.filesystem("memory")
_MOST_READ = 8 << 20
_MOST_TOLD = 2000
_MOST_TEXT = 10_000
_MOST_TOKENS = 256
"""A byte."""

_TEXTS = ("The answer [EOS] \0 日本 ﷺ ", "a" * 500, " \t\n" * 50, "\U0010ffff\x80\r<0x41>▁▁")

_FORBIDDEN = ("exec", "compile", "open", "os.system", "os.exec", "os.posix_spawn", "pickle.find")
_FORBIDDEN_FAMILIES = ("subprocess.", "socket.", "ctypes.", "shutil.", "marshal.")
_watching = False
_seen: list[str] = []
_warm: set[str] = set()


class Broken(AssertionError):
    """A promise is broken."""


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and (event in _FORBIDDEN or event.startswith(_FORBIDDEN_FAMILIES)):
        _seen.append(f"{event}{arguments!r:.200}")  # an exception might be caught on its way


sys.addaudithook(_audit)
for _encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le"):
    codecs.lookup(_encoding)  # which Python opens files for, when JSON comes so


class _Reader:
    """Gives ranges of a file, and none beyond it; and not for ever."""

    def __init__(self, data: bytes) -> None:
        self._data, self._read = data, 0

    def __call__(self, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= len(self._data):
            raise Broken(f"bytes [{start}, {stop}) of {len(self._data)} were asked for")
        self._read += stop - start
        if self._read > _MOST_READ:
            raise Broken(f"{self._read} bytes of {len(self._data)} were asked for in all")
        return self._data[start:stop]


def tensor_pickle(data: bytes) -> None:
    """A tensor file of the release."""
    found = locate_arrays(_Reader(data), len(data), "tensor00000_000")
    for array in filter(None, (found.values, found.scales)):
        _inside(array, len(data))


def safetensors(data: bytes) -> None:
    """A shard."""
    for array in read_header(_Reader(data), len(data), "a.safetensors").values():
        _inside(array, len(data))


def port(data: bytes) -> None:
    """The index, the config and one shard's header of a port to Hugging Face."""
    index, config, shard = [*data.split(CUT, 2), b"", b""][:3]
    for name, content in ((INDEX, index), (CONFIG, config), ("a.safetensors", shard)):
        _MEMORY.pipe_file(f"/port/{name}", content)
    if checkpoint := HuggingFaceCheckpoint.find("memory://port"):
        checkpoint.verify()


def store_index(data: bytes) -> None:
    """The index of a converted checkpoint."""
    index = StoreIndex.from_json(data, "store.json")
    for file in index.files():
        if "/" in file.name or ".." in file.name:
            raise Broken(f"a file is called {file.name}")


def config(data: bytes) -> None:
    """A ``config.json``."""
    found = Grok1Config.from_json(data)
    if not 0 < found.active_params <= found.num_params:
        raise Broken(f"{found} has {found.num_params} parameters")
    file_order(found)


def tokenizer(data: bytes) -> None:
    """A SentencePiece model, and texts through it: its pieces', and what comes to mind."""
    found = Tokenizer(data)
    texts = ["", *_TEXTS, found.decode(range(found.vocab_size))[:_MOST_TEXT]]
    for text, ids in zip(texts, found.encode_batch(texts), strict=True):
        if len(ids) > _MOST_TOKENS * (len(text.encode()) + 1):
            raise Broken(f"{text!r:.100} became {len(ids)} tokens")
        if not all(0 <= token < found.vocab_size for token in ids):
            raise Broken(f"{text!r:.100} became {ids!r:.200}")
        found.decode(ids, skip_special_tokens=False)
    found.encode_inside(_TEXTS[0])


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (tensor_pickle, safetensors, port, store_index, config, tokenizer)
}


def check(name: str, data: bytes) -> bool:
    """Runs a target; whether it took the bytes for what they should be.

    Raises:
      Broken, or whatever else escapes from it.
    """
    global _watching
    if name not in _warm:  # Python opens the files of what is imported late
        _warm.add(name)
        for seed in seeds(name):
            TARGETS[name](seed)
    _watching = True
    try:
        TARGETS[name](data)
    except SetupError as error:
        told = str(error)
        if not told or "\n" in told or len(told) > _MOST_TOLD:
            raise Broken(f"the sentence is {told!r:.300}") from error
        return False
    finally:
        _watching = False
        seen = [*_seen]
        _seen.clear()
        if seen:
            raise Broken(f"a file of a stranger led to {seen[0]}")
    return True


def bad_seeds(name: str) -> Iterator[bytes]:
    """Files that are refused, from which it is not far to others that should be."""
    if name == "tokenizer":
        field, overlong = sentencepiece_models.field, sentencepiece_models.overlong
        table = field(2, sentencepiece_models.charsmap())
        for hidden in (
            overlong(field(3, table)),
            field(3, overlong(table)),
            overlong(sentencepiece_models.piece("ab")),
        ):
            yield sentencepiece_models.model() + hidden


def seeds(name: str) -> Iterator[bytes]:
    """Good files of small models, from which to stray."""
    tiny = PRESETS["tiny"]
    if name == "tensor_pickle":
        yield from _pickles()
    elif name == "safetensors":
        yield _shard({"a": (np.dtype("<f4"), (2, 3)), "b": (np.dtype("i1"), (4,))})
    elif name == "config":
        yield tiny.to_json().encode()
        yield (_ROOT / "tests" / "data" / "grok1-tiny" / CONFIG).read_bytes()
    elif name == "store_index":
        sums = {
            file.name: {piece.name: "0" * 8 * len(piece.blocks) for piece in file.pieces}
            for file in plan_files(_SMALL, "int8", 1)
        }
        source = {"kind": "release", "identity": "0"}
        yield StoreIndex(_SMALL, "int8", 1, source, sums).to_json().encode()
    elif name == "port":
        yield _port()
    elif name == "tokenizer":
        yield from sentencepiece_models.small()
        yield from (path.read_bytes() for path in sorted(_ROOT.glob("examples/*/tokenizer.model")))


_SMALL = Grok1Config(
    vocab_size=8,
    emb_size=4,
    num_layers=1,
    num_q_heads=2,
    num_kv_heads=1,
    key_size=4,
    ffn_size=8,
    num_experts=2,
    model_shards=8,
    sequence_len=8,
    attn_output_multiplier=0.5,
    embedding_multiplier_scale=2.0,
)


def _pickles() -> Iterator[bytes]:
    """As NumPy writes arrays; the class of quantised ones stands where their pickles look."""
    values = np.arange(6, dtype=np.int8).reshape(2, 3)
    scales = np.ones((1, 3), ml_dtypes.bfloat16)
    quantized = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    before = vars(__main__).get("QuantizedWeight8bit")
    __main__.QuantizedWeight8bit = quantized
    try:
        both = quantized()
        both.weight, both.scales = values, scales
        for protocol in (2, 3, 4, 5):
            yield pickle.dumps(values.astype(np.float32), protocol)
            yield pickle.dumps(both, protocol)
    finally:
        del __main__.QuantizedWeight8bit
        if before is not None:
            __main__.QuantizedWeight8bit = before


def _shard(arrays: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    header = write_header([(name, dtype, shape) for name, (dtype, shape) in arrays.items()])
    size = sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in arrays.values())
    return header + bytes(size)


def _port() -> bytes:
    arrays = {}
    for tensor in tensors(_SMALL):
        embedding = tensor.param.name == "embedding"
        shape = tensor.param.shape if embedding else tensor.param.shape[:-3:-1]
        arrays |= dict.fromkeys(PORTS[0].names_of(tensor), (np.dtype(ml_dtypes.bfloat16), shape))
    index = json.dumps({"weight_map": dict.fromkeys(arrays, "a.safetensors")})
    config = json.dumps(to_port_config(_SMALL))
    return CUT.join((index.encode(), config.encode(), _shard(arrays)))


def _inside(array, size: int) -> None:
    if not 0 <= array.offset <= array.offset + array.length <= size:
        raise Broken(f"{array!r} does not lie within {size} bytes")
    need = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
    if need > array.length:
        raise Broken(f"{array!r} claims more than is stored")
