"""A tokenizer's file is a stranger's: what it may ask for is bounded, whatever it says."""

import io
import subprocess
import sys

import pytest
import sentencepiece

from model.tokenizer import Tokenizer
from schemas.error import SetupError
from tests import sentencepiece_models as models
from tests.sentencepiece_models import field, piece


def _refused(model: bytes, why: str) -> None:
    with pytest.raises(SetupError, match=f"is no SentencePiece model: {why}; give the") as told:
        Tokenizer(model)
    assert "\n" not in str(told.value)


def test_small_models_are_taken():
    for model in models.small():
        tokenizer = Tokenizer(model)
        assert tokenizer.encode("de f")
        assert "def" in tokenizer.decode(range(tokenizer.vocab_size))
    normalizing = Tokenizer(models.model(charsmap=models.charsmap()))
    assert [normalizing.decode(normalizing.encode(text)) for text in ("da", "dab")] == ["dbb", "dc"]


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"])
def test_the_trainer_s_own_normalizations_are_taken(rule):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The answer to life the universe and everything"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        normalization_rule_name=rule,
        minloglevel=2,
    )
    assert Tokenizer(model.getvalue()).encode("answer")


_MANY = """
import re
from model.tokenizer import Tokenizer
from schemas.error import SetupError

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak()
try:
    Tokenizer(b"\\x0a\\x00" * (16 << 20))
except SetupError as error:
    print(peak() - before >> 10, error)
"""


def test_pieces_of_two_bytes_take_no_memory():
    """The library makes 40 bytes and more of each."""
    ended = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
    grown, said = ended.stdout.split(" ", 1)
    assert "it has more than 1048576 pieces; give" in said
    assert int(grown) < 128  # MiB, 32 of them the file's


@pytest.mark.parametrize("number", [3, 5])
def test_a_character_is_not_replaced_by_a_book(number):
    """A prompt of thousands would take gigabytes."""
    book = models.charsmap(of_a=b"b" * 1_000_000)
    _refused(
        models.model() + field(number, field(2, book)),
        "its normalization puts 1000000 bytes in a character's place, more than the 64 expected",
    )


def test_pieces_are_short():
    _refused(
        models.model(piece("a" * 5000, kind=models.USER_DEFINED)),
        "piece 11 takes 5010 bytes, more than the 1024 expected",
    )


def test_its_own_tests_are_short():
    texts = b"".join(field(1, field(1, "a" * 1000)) for _ in range(1100))
    _refused(models.model() + field(4, texts), "its own tests have more than 1048576 bytes")


@pytest.mark.parametrize(
    "tail",
    [
        b"\x0a",  # no length
        b"\x0a\x05a",  # a length beyond the end
        b"\x15\0\0",  # a number cut short
        b"\x10" + b"\xff" * 10 + b"\x01",  # a number of more than 64 bits
        b"\x00\x00",  # no field has this number
        field(3, b"\x12\x05a"),  # cut short inside
        models.overlong(field(3, b"")),  # the library drops the bit that makes it another field
        models.overlong(field(3, b""), 0),  # a tag longer than need be
        field(3, models.overlong(field(2, b""))),
    ],
)
def test_what_is_no_protocol_buffer(tail):
    _refused(models.model() + tail, "it is cut short or damaged")


@pytest.mark.parametrize("last", [0, 0x10, 0x20, 0x40])
def test_no_field_hides_behind_a_long_tag(last):
    """The library would take up the book, or the pieces."""
    book = models.charsmap(of_a=b"b" * 1_000_000)
    for hidden in (
        models.overlong(field(3, field(2, book)), last),
        field(3, models.overlong(field(2, book), last)),
        models.overlong(field(1, b""), last) * 3,
    ):
        _refused(models.model() + hidden, "it is cut short or damaged")


@pytest.mark.parametrize("wrap", [bytes, lambda data: field(3, data)])
def test_fields_are_no_more_than_a_model_needs(wrap):
    """Going through them all would take seconds."""
    _refused(models.model() + wrap(b"\xe0\x0c\x00" * (5 << 20)), "it has more than 2097152 fields")


def test_groups_are_refused():
    _refused(models.model() + b"\x0b\x0c", "field 1 has wire type 3")


def test_fields_of_later_versions_are_passed_over():
    later = field(200, "new") + field(201, 1 << 40) + field(202, 1.0) + b"\xd9\x0c" + b"x" * 8
    assert Tokenizer(models.model() + later).vocab_size == 11


def test_a_model_that_joins_all_that_it_can_encodes_inside_a_text():
    """No "a" stands behind what is put before it: a long text is gone through to its end."""
    joins = b"".join(piece(text) for text in ("\n", "=", "\na", "=a"))
    tokenizer = Tokenizer(models.model(joins))
    assert tokenizer.encode_inside("a" * 1500) == [tokenizer.unk_id] * 1500


def test_a_model_that_joins_all_that_it_can_takes_no_longer_for_long_texts(monkeypatch):
    joins = b"".join(piece(text) for text in ("\n", "=", "\na", "=a"))
    tokenizer = Tokenizer(models.model(joins))
    asked = []
    encode = Tokenizer.encode_batch

    def counted(self, texts, bos=False):
        asked.append(texts)
        return encode(self, texts, bos)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    assert len(tokenizer.encode_inside("a" * 100_000)) == 100_000
    assert len(asked) < 50
    # What can stand by itself a little further on does so.
    assert tokenizer.encode_inside("aaad") == [tokenizer.unk_id] * 3 + tokenizer.encode("d")[1:]
