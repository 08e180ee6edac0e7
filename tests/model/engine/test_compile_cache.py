"""What was compiled once is not compiled again, wherever it is kept; nobody else's is run."""

import json
import os
import pathlib
import subprocess
import sys
import uuid

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from model.checkpoint import files, sink
from model.engine.compile_cache import NONE, CompileCache
from model.private_folder import ensure_private, own_cache
from schemas.error import SetupError

MESH = jax.sharding.Mesh(jax.devices()[:1], "model")


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """The process's settings, put back afterwards; a home of its own."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_enable_xla_caches",
    )
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled_anew(seed: int) -> bool:
    """Compiles a function of its own for each seed; whether the compiler had to."""
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    try:
        jax.clear_caches()
        jax.jit(lambda x: jnp.sin(x) * seed).lower(jnp.ones(3)).compile()
    finally:
        jax.monitoring.clear_event_listeners()
    return "/jax/compilation_cache/cache_hits" not in hits


@pytest.mark.parametrize("where", ["local", "remote", "own"])
def test_a_second_start_compiles_nothing(tmp_path, where):
    urls = {"local": str(tmp_path / "a"), "remote": f"memory://{uuid.uuid4()}/b", "own": None}
    url, seed = urls[where], uuid.uuid4().int % 10**6
    first = CompileCache(url, MESH)
    assert compiled_anew(seed)
    first.keep()
    CompileCache(str(tmp_path / "elsewhere"), MESH)
    assert compiled_anew(seed)
    second = CompileCache(url, MESH)
    assert not compiled_anew(seed)
    second.keep()
    if where == "remote":
        (folder,) = files.split(url)[0].ls(url.removeprefix("memory:/"), detail=False)
        assert len(files.list_files(f"memory:/{folder}")) >= 1


def start(model: str, cache: str) -> dict[str, float]:
    """Starts an engine in a process of its own, up to its first token."""
    command = [sys.executable, "-m", "bench.start", model, cache]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_only_the_first_of_two_processes_compiles(gcs, tiny):
    """As a fleet's workers do, which share nothing but a bucket."""
    cache = f"{gcs}/{uuid.uuid4()}"
    first, second = start(tiny, cache), start(tiny, cache)
    assert (first["compiled"] > 0, first["found"]) == (True, 0)
    assert (second["compiled"], second["found"]) == (0, first["compiled"])


def test_a_cache_that_may_only_be_read_still_serves(tmp_path, monkeypatch, caplog):
    def refuse(url: str, data: bytes) -> None:
        raise SetupError("cannot write")

    cache = CompileCache(f"memory://{uuid.uuid4()}", MESH)
    assert compiled_anew(11)
    monkeypatch.setattr(sink, "write_bytes", refuse)
    cache.keep()
    assert "what was compiled is not kept for the next start: cannot write" in caplog.text


def test_nothing_is_kept_when_told_so(tmp_path):
    CompileCache(NONE, MESH).keep()
    assert compiled_anew(7)
    assert compiled_anew(7)
    assert not list(tmp_path.iterdir())


def test_jax_own_setting_is_left_alone(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    CompileCache(None, MESH)
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "mine")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SetupError, match=r"others may write to .*open"):
        CompileCache(str(folder), MESH)


def test_jax_own_folder_is_refused_as_well(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "open"))
    with pytest.raises(SetupError, match=r"JAX_COMPILATION_CACHE_DIR: others may write to .*open"):
        CompileCache(None, MESH)


def test_a_folder_that_others_may_replace_is_refused(tmp_path):
    (tmp_path / "open" / "mine").mkdir(parents=True, mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SetupError, match=r"put another folder in the place of .*mine"):
        CompileCache(str(tmp_path / "open" / "mine"), MESH)
    (tmp_path / "open").chmod(0o1777)
    ensure_private(tmp_path / "open" / "mine", "--compile-cache")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to others")
def test_a_file_of_another_account_is_refused(tmp_path):
    (tmp_path / "planted").write_bytes(b"")
    os.chown(tmp_path / "planted", 4242, 4242)
    with pytest.raises(SetupError, match=r"planted belongs to another account"):
        ensure_private(tmp_path, "--compile-cache")


def test_another_account_s_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(SetupError, match="belongs to another account"):
        ensure_private(tmp_path, "--compile-cache")
    assert own_cache("compiled") is None


def test_own_folders_are_private(tmp_path):
    folder = own_cache("kernels")
    assert folder == tmp_path / "home" / "grok1-batch" / "kernels"
    assert pathlib.Path(folder).stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    assert own_cache("kernels") is None
