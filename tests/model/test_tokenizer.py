import concurrent.futures
import dataclasses
import io
import json
import pickle
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint import sink
from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.config import PRESETS
from model.tokenizer import Tokenizer
from schemas.error import SetupError

TRAINED = Tokenizer(synthesize_tokenizer(1024))
THEIRS = sentencepiece.SentencePieceProcessor(model_proto=TRAINED.model)

BYTE = 69
"""Id of byte 0 in the release's kind of tokenizer."""


def byte_ids(data: bytes) -> list[int]:
    return [BYTE + byte for byte in data]


# Ids that meet every rule of decoding often: bytes, parts of characters, spaces, special tokens.
_IDS = st.lists(
    st.integers(0, 1023)
    | st.integers(BYTE, BYTE + 255)
    | st.sampled_from(
        [*range(4), 32, 325, *byte_ids("é≈😀\ufffd".encode()), THEIRS.piece_to_id("▁")]
    ),
    max_size=12,
)


# Encoding.


def test_the_released_tokenizer_gives_the_listed_ids(released_tokenizer_dir):
    tokenizer = Tokenizer.load(str(released_tokenizer_dir / "grok-1.model"))
    cases = json.loads((released_tokenizer_dir / "grok-1-cases.json").read_text())
    special = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id
    assert special == tuple(cases[name] for name in ("pad", "bos", "eos", "unk"))
    assert tokenizer.vocab_size == cases["vocab_size"]
    for case in cases["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        for cut in range(len(case["ids"])):
            prompt, completion = case["ids"][:cut], case["ids"][cut:]
            text = tokenizer.decode_completion(prompt, completion)
            assert case["decoded"].endswith(text)
    texts = [case["text"] for case in cases["cases"]]
    assert tokenizer.encode_batch(texts) == [case["ids"] for case in cases["cases"]]


@given(text=st.text())
def test_text_survives(text):
    ids = TRAINED.encode(text)
    # U+2581 is how SentencePiece writes a space: it comes back as one.
    assert TRAINED.decode(ids) == text.replace("▁", " ")
    assert TRAINED.encode_batch([text, "", text]) == [ids, [], ids]
    assert not TRAINED.special_ids & set(ids)


def test_control_tokens_in_a_text_are_plain_text():
    for name in ("[EOS]", "[BOS]", "[PAD]", "[UNK]"):
        ids = TRAINED.encode(f"a{name}")
        assert not {0, 1, 2, 3} & set(ids)
        assert TRAINED.decode(ids) == f"a{name}"


def test_bos_is_put_where_asked_for():
    assert TRAINED.encode("The", bos=True) == [1, *TRAINED.encode("The")]
    assert TRAINED.encode_batch(["The", ""], bos=True) == [[1, *TRAINED.encode("The")], [1]]
    without = _other_tokenizer(bos_id=-1)
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        without.encode("a", bos=True)


def test_nul_and_control_characters_survive():
    text = "a\x00b\x00\x7f\x1b[31m\u200b\u2028\r\n"
    assert TRAINED.decode(TRAINED.encode(text)) == text


@pytest.mark.parametrize("text", ["a\ud800", "\udfff", "ab\udc80c"])
def test_lone_surrogates_are_a_clean_error(text):
    for encode in (TRAINED.encode, lambda t: TRAINED.encode_batch(["good", t])):
        with pytest.raises(ValueError, match=r"lone surrogate \(U\+D[8C-F]..\) at character"):
            encode(text)


# Decoding.


@settings(max_examples=500)
@given(ids=_IDS)
def test_whole_texts_decode_as_sentencepiece_decodes_them(ids):
    ids = [i for i in ids if i != TRAINED.unk_id]
    assert TRAINED.decode(ids) == THEIRS.decode(ids)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"byte_fallback": True, "model_type": "unigram"},
        {"treat_whitespace_as_suffix": True},
    ],
)
def test_tokenizers_with_other_settings_decode_as_sentencepiece_does(options):
    tokenizer = _other_tokenizer(**options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    draw = random.Random(0)
    space = theirs.piece_to_id("▁")
    for _ in range(300):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(6))]
        ids = [i for i in [space] * draw.randrange(3) + ids if i != tokenizer.unk_id]
        assert tokenizer.decode(ids) == theirs.decode(ids)
    ids = theirs.encode("The answer to life")
    assert tokenizer.encode("The answer to life") == ids
    assert tokenizer.decode(ids) == theirs.decode(ids)


@settings(max_examples=1000)
@given(prompt=_IDS, completion=_IDS, skip=st.booleans())
def test_prompt_and_completion_make_the_whole(prompt, completion, skip):
    whole = TRAINED.decode(prompt + completion, skip)
    text = TRAINED.decode_completion(prompt, completion, skip)
    before = TRAINED.decode(prompt, skip)
    if before + text != whole:
        # Only where a character begins in the one and ends in the other: it is the completion's.
        unfinished = len(before) - len(before.rstrip("\ufffd"))
        assert unfinished >= 1
        assert whole.endswith(text)
        kept = whole[: len(whole) - len(text)]
        assert before.startswith(kept)
        assert 1 <= len(before) - len(kept) <= 3


@settings(max_examples=500)
@given(prompt=_IDS, completion=_IDS, skip=st.booleans(), data=st.data())
def test_a_stream_gives_the_same_text_and_never_takes_any_back(prompt, completion, skip, data):
    whole = TRAINED.decode_completion(prompt, completion, skip)
    stream, text, rest = TRAINED.stream(prompt, skip), "", completion
    while rest:
        count = data.draw(st.integers(0, len(rest)))
        text += stream.push(rest[:count] if count else iter(rest[:1]))
        rest = rest[max(count, 1) :]
        assert whole.startswith(text)
    assert text + stream.finish() == whole


def test_a_completion_keeps_its_leading_space():
    prompt, completion = TRAINED.encode("The"), TRAINED.encode("the")
    assert TRAINED.decode_completion(prompt, completion) == " the"
    assert TRAINED.decode_completion([1], completion) == "the"
    assert TRAINED.decode_completion([], completion) == "the"
    assert TRAINED.decode_completion([325], completion) == " the"


def test_a_character_over_the_boundary_is_the_completions():
    first, rest = byte_ids("≈".encode()[:2]), byte_ids("≈".encode()[2:])
    the = TRAINED.encode("The")
    assert TRAINED.decode_completion(the + first, rest) == "≈"
    assert TRAINED.decode_completion(the + first, the) == " The"
    assert TRAINED.decode_completion(the + first, []) == ""
    assert TRAINED.decode_completion(the + first, [2, *rest]) == "\ufffd"
    assert TRAINED.decode_completion(the + first, first) == "\ufffd\ufffd"
    mark = "\ufffd".encode()
    assert TRAINED.decode_completion(byte_ids(mark[:1]), byte_ids(mark[1:])) == "\ufffd"


def test_a_stream_holds_back_what_may_become_a_character():
    stream = TRAINED.stream(TRAINED.encode("The"))
    assert [stream.push([i]) for i in byte_ids("é😀".encode())] == ["", "é", "", "", "", "😀"]
    assert stream.push(byte_ids(b"\xf0\x9f")) == ""
    assert stream.push(byte_ids(b"x")) == "\ufffd\ufffdx"
    assert stream.push(byte_ids(b"\xe2\x89")) == ""
    assert stream.finish() == "\ufffd\ufffd"
    assert stream.finish() == ""


def test_special_tokens_are_left_out_or_named():
    ids = [1, *TRAINED.encode("The"), 2, 0, 3]
    assert TRAINED.decode(ids) == "The"
    assert TRAINED.decode(ids, skip_special_tokens=False) == "[BOS]The[EOS][PAD][UNK]"
    assert TRAINED.decode([47, 68]) == "<|separator|><|control20|>"


@pytest.mark.parametrize("token", [-1, 1024, 2**40])
def test_ids_outside_the_vocabulary_are_refused(token):
    with pytest.raises(ValueError, match=rf"token id {token} is outside the 1024"):
        TRAINED.decode([5, token])
    with pytest.raises(ValueError, match="outside"):
        TRAINED.stream().push([token])


# The file.


def test_load_and_identity(tmp_path):
    sink.write_bytes("memory://tok/tokenizer.model", TRAINED.model)
    loaded = Tokenizer.load("memory://tok/tokenizer.model")
    assert loaded.identity == TRAINED.identity
    assert len(loaded.identity) == 64
    assert pickle.loads(pickle.dumps(loaded)).encode("The") == TRAINED.encode("The")
    loaded.check_against(PRESETS["tiny"])
    with pytest.raises(
        SetupError, match="has 1024 pieces, the checkpoint's config a vocabulary of 9"
    ):
        loaded.check_against(dataclasses.replace(PRESETS["tiny"], vocab_size=9))


@pytest.mark.parametrize("model", [b"", b"junk", bytes(100), b"<!DOCTYPE html>"])
def test_what_is_no_model_is_refused(model, tmp_path):
    (tmp_path / "t.model").write_bytes(model)
    with pytest.raises(SetupError, match=r"t\.model is no SentencePiece model"):
        Tokenizer.load(str(tmp_path / "t.model"))


def test_a_file_too_large_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SetupError, match="more than the 67108864 expected"):
        Tokenizer.load(str(tmp_path / "large"))


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(TRAINED.model) - 1), st.integers(0, 255)), max_size=4
    ),
    stop=st.none() | st.integers(0, len(TRAINED.model)),
)
def test_a_damaged_model_works_or_is_refused(edits, stop):
    damaged = bytearray(TRAINED.model)
    for at, value in edits:
        damaged[at] = value
    try:
        tokenizer = Tokenizer(bytes(damaged[:stop]))
    except SetupError:
        return
    tokenizer.decode(range(tokenizer.vocab_size))
    tokenizer.encode("The answer [EOS] \x00 日本")


def test_threads_may_share_one():
    texts = [f"The answer {n} 日本 \x00" for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(TRAINED.encode, texts))
        assert list(pool.map(TRAINED.decode, ids)) == texts
    assert ids == TRAINED.encode_batch(texts)


def _other_tokenizer(**options) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The answer to life the universe and everything"] * 20),
        model_writer=model,
        vocab_size=300 if options.get("byte_fallback") else 40,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", **options},
    )
    return Tokenizer(model.getvalue())


def test_what_begins_with_a_token(trained):
    word = next(i for i in range(4, 1024) if trained.can_heal([400, i]))
    ids = trained.beginning_with(word)
    text = trained.token_bytes()[word]
    assert word in ids
    assert [
        i for i in range(1024) if trained.token_bytes()[i].startswith(text) and i in ids
    ] == list(ids)
    assert not set(ids) & trained.special_ids
    longer = next(i for i in ids if i != word)
    rest = trained.decode_completion([400], [longer, 400], healed=word)
    assert trained.decode([400, longer, 400]) == trained.decode([400, word]) + rest
    stream = trained.stream([400], healed=word)
    assert "".join([stream.push([longer]), stream.push([400]), stream.finish()]) == rest
    assert not trained.can_heal([word])
    assert not trained.can_heal([trained.bos_id, word])
    assert not trained.can_heal([400, trained.eos_id])
