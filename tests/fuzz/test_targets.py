"""What reads files of strangers, on bytes that stray from good ones. ``make fuzz`` looks longer."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import sentencepiece_models as models
from tests.fuzz import targets
from tests.fuzz.targets import CUT, Broken, bad_seeds, check, seeds

MOST_MEMORY = 64 << 20


@st.composite
def strays(draw, name: str) -> bytes:
    """A good file with some bytes of it gone, doubled or put in."""
    data = draw(st.sampled_from([*seeds(name), *bad_seeds(name)]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from([0, 1, 2, 4, 8, 64, 1 << 20])))
        between = draw(st.sampled_from([b"", data[start:stop] * 2]) | st.binary(max_size=12))
        data = data[:start] + between + data[stop:]
    return data


_NUMBERS = st.sampled_from([0, 1, -1, 2**10, 2**24, 2**31, 2**63, 1e308, 10**30])
_VALUES = _NUMBERS | st.none() | st.booleans() | st.text(max_size=4) | st.just([[]]) | st.just({})


@st.composite
def other_values(draw, name: str) -> bytes:
    """A good file with other values in its JSON."""
    first, *rest = draw(st.sampled_from(list(seeds(name)))).split(CUT, 2)
    texts = [first, *rest[:1]]
    at = draw(st.integers(0, len(texts) - 1))
    whole = values = json.loads(texts[at])
    while True:
        key = draw(st.sampled_from(sorted(values)))
        if not isinstance(values[key], dict) or not values[key] or draw(st.booleans()):
            break
        values = values[key]
    values[draw(st.just(key) | st.text(max_size=4))] = draw(_VALUES)
    texts[at] = json.dumps(whole).encode()
    return CUT.join([*texts, *rest[1:]])


def _checked(name: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        check(name, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("name", targets.TARGETS)
def test_good_files_are_taken(name):
    assert all(check(name, seed) for seed in seeds(name))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_bad_files_are_refused(name):
    assert not any(check(name, seed) for seed in bad_seeds(name))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes(name):
    @settings(deadline=None)
    @given(strays(name) | st.binary(max_size=100))
    def holds(data):
        _checked(name, data)

    holds()


@pytest.mark.parametrize("name", ["config", "store_index", "port"])
def test_any_values(name):
    @settings(deadline=None)
    @given(other_values(name))
    def holds(data):
        _checked(name, data)

    holds()


_PIECES = st.tuples(
    st.text("ab▁ \0é", max_size=6) | st.text(max_size=3) | st.integers(1, 300).map("a".__mul__),
    st.floats(width=32),
    st.integers(0, 7),
)


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=40), st.integers(0, 5), st.booleans())
def test_any_pieces(pieces, kind, normalizes):
    """A tokenizer whose fields are all in order, and what they say is not."""
    more = b"".join(models.piece(*piece) for piece in pieces)
    table = models.charsmap() if normalizes else None
    _checked("tokenizer", models.model(more, kind, table))


@settings(deadline=None)
@given(st.data())
def test_any_normalization(data):
    table = bytearray(models.charsmap())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(table) - 1) | st.sampled_from([0, 1, 4, 5, 392, 1416]))
        table[at] = data.draw(st.integers(0, 255))
    _checked("tokenizer", models.model(charsmap=bytes(table)))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_experts": 1 << 24},
        {"num_experts": 1 << 24, "num_hidden_layers": 1 << 10},
        {"vocab_size": 1 << 24, "hidden_size": 1 << 24, "head_dim": 1 << 20},
    ],
)
def test_sizes_that_a_port_merely_claims_take_no_memory(sizes):
    index, config, shard = next(seeds("port")).split(CUT, 2)
    claimed = json.dumps({**json.loads(config), **sizes}).encode()
    data = CUT.join((index, claimed, shard))
    _checked("port", data)
    assert not check("port", data)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "b/../../a.safetensors", ""])
def test_a_port_names_no_file_beyond_its_folder(shard):
    index, config, data = next(seeds("port")).split(CUT, 2)
    names = json.loads(index)["weight_map"]
    index = json.dumps({"weight_map": dict.fromkeys(names, shard)}).encode()
    assert not check("port", CUT.join((index, config, data)))


def test_a_broken_promise_is_found(monkeypatch):
    """The watch itself works: what opens a file, asks for more than there is, or tells too much."""

    def opens(data):
        open("/dev/null").close()

    def greedy(data):
        targets._Reader(data)(0, len(data) + 1)

    def wordy(data):
        raise targets.SetupError("two\nlines")

    for name, target in {"opens": opens, "greedy": greedy, "wordy": wordy}.items():
        monkeypatch.setitem(targets.TARGETS, name, target)
        with pytest.raises(Broken):
            check(name, b"a")
