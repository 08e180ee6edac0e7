import pathlib

import pytest

from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.tokenizer import Tokenizer

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny() -> str:
    """The folder of a small checkpoint in the release's layout, with numbers to test against."""
    return str(_ROOT / "tests" / "data" / "grok1-tiny")


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """A tokenizer of the release's kind with 1024 pieces."""
    return Tokenizer(synthesize_tokenizer(1024))


@pytest.fixture(scope="session")
def released_tokenizer_dir() -> pathlib.Path:
    """The folder with the tokenizer that was published with Grok-1; 2 MB, not shipped."""
    folder = _ROOT.parent / "shared" / "tokenizer"
    if not (folder / "grok-1.model").is_file():
        pytest.skip("the released tokenizer is not at hand")
    return folder
