import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator, Iterator

import fsspec
import hypothesis
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from model.checkpoint.synth_tokenizer import synthesize_tokenizer
from model.tokenizer import Tokenizer
from tests import emulators

# Many tests make an engine of the same shapes: each program is compiled once a session, whose
# processes all see the folder that the first of them makes.
_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="grok1-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# A compile or a busy machine may make one example slow; that is no failure.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failed one")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
    return report


def pytest_unconfigure() -> None:
    if _CACHE is not None:
        shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _own_memory() -> None:
    """A file of tests finds nothing at ``memory://``, whichever ran before it in this process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def tiny() -> str:
    """The folder of a small checkpoint in the release's layout, with numbers to test against."""
    return str(pathlib.Path(__file__).parent / "data" / "grok1-tiny")


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """A tokenizer of the release's kind with 1024 pieces."""
    return Tokenizer(synthesize_tokenizer(1024))


@pytest.fixture(scope="session")
def talking(tiny: str, trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the same small checkpoint, with a tokenizer of its vocabulary's size."""
    folder = tmp_path_factory.mktemp("talking")
    (folder / "ckpt-0").symlink_to(pathlib.Path(tiny, "ckpt-0"))
    (folder / "config.json").write_bytes(pathlib.Path(tiny, "config.json").read_bytes())
    (folder / "tokenizer.model").write_bytes(trained.model)
    return str(folder)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server; the environment points at it from now on."""
    with emulators.s3_server() as environment, emulators.pointed_at(environment):
        fsspec.filesystem("s3").mkdir("prompts-bucket")
        yield "s3://prompts-bucket"


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The URL of a bucket on a Google Cloud Storage server."""
    with emulators.gcs_server() as environment, emulators.pointed_at(environment):
        fsspec.filesystem("gs").mkdir("prompts-bucket")
        yield "gs://prompts-bucket"
