"""What the promises rest on: on each store, a file appears whole or not at all, and only once."""

import os
import subprocess
import sys
import threading

import fsspec
import pytest

from pipeline.storage import Folder, open_parquet, read_tail


def _write_at_once(write, writers: int) -> list[int]:
    """Calls ``write(i)`` from as many threads at the same moment; returns those that say True."""
    barrier, won = threading.Barrier(writers), []

    def run(i: int) -> None:
        barrier.wait()
        if write(i):
            won.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.parametrize("server", ["s3", "gcs"])
def test_servers_enforce_create_if_absent(server, request):
    """The emulator itself, without this project: a second conditional write is refused."""
    fs, path = fsspec.core.url_to_fs(f"{request.getfixturevalue(server)}/precondition")
    fs.pipe_file(path, b"first", mode="create")
    # s3fs has no class of its own for a condition that does not hold, and gcsfs no words.
    with pytest.raises(OSError, match=r"pre-conditions|^http") as refused:
        fs.pipe_file(path, b"second", mode="create")
    assert server == "s3" or refused.type is FileExistsError
    assert fs.cat_file(path) == b"first"

    def write(i: int) -> bool:
        try:
            fs.pipe_file(f"{path}-raced", bytes([i]) * 4096, mode="create")
        except Exception:
            return False
        return True

    won = _write_at_once(write, 16)
    assert len(won) == 1
    assert fs.cat_file(f"{path}-raced") == bytes(won) * 4096


def test_first_writer_wins(store):
    folder = Folder(store)
    assert folder.create("part", b"first")
    assert not folder.create("part", b"second")
    assert folder.read("part") == b"first"
    for name in ("a", "b", "c", "d"):
        won = _write_at_once(lambda i, name=name: folder.create(name, bytes([i]) * 4096), 8)
        assert len(won) == 1
        assert folder.read(name) == bytes(won) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("server", ["s3", "gcs"])
def test_a_large_part_is_one_request(server, request):
    """In pieces it could be left half uploaded by a kill, invisible and paid for."""
    folder = Folder(f"{request.getfixturevalue(server)}/large")
    size = 110 << 20
    assert folder.create("part", bytes(size))
    assert not folder.create("part", b"1" * size)
    assert folder.read("part") == bytes(size)


def test_a_file_below_a_folder_that_is_not_there(store):
    folder = Folder(store)
    assert folder.create("_errors/files.parquet", b"x")
    folder.replace("_plan/chunks.parquet", b"y")
    assert folder.read("_errors/files.parquet") == b"x"
    assert folder.read("_plan/chunks.parquet") == b"y"


def test_a_file_that_is_swept_before_it_has_its_name(tmp_path, monkeypatch):
    """A run that takes a folder over removes what it finds there, at any moment."""
    folder = Folder(str(tmp_path / "out"))
    write, written = Folder._write_temporary, []

    def swept(self, *arguments):
        written.append(write(self, *arguments))
        if len(written) % 2:
            os.remove(written[-1])
        return written[-1]

    monkeypatch.setattr(Folder, "_write_temporary", swept)
    folder.replace("record", b"x")
    assert folder.create("part", b"y")
    assert not folder.create("part", b"z")
    assert (folder.read("record"), folder.read("part")) == (b"x", b"y")
    assert sorted(folder.names()) == ["part", "record"]


def test_what_is_written_is_seen_at_once(store):
    """Clients keep listings; a look after a write must not be answered from one."""
    folder = Folder(store)
    assert folder.names() == {}
    assert not folder.exists("part")
    assert folder.read("part") is None
    Folder(store).create("part", b"12345")
    assert folder.exists("part")
    assert folder.names() == {"part": 5}
    assert folder.size("part") == 5
    folder.replace("part", b"123456789")
    assert folder.read("part") == b"123456789"
    assert folder.names() == {"part": 9}
    assert read_tail(folder.at("part"), 9, 4) == b"6789"
    with open_parquet(folder.at("part"), 4096) as file:
        assert file.read(3) == b"123"
    folder.remove(["part", "never there"])
    assert folder.names() == {}


def test_another_process_sees_and_is_seen(store):
    """What one process's client remembers must not hide what another process wrote."""
    if store.startswith("memory:"):
        pytest.skip("memory:// belongs to one process")
    folder = Folder(store)
    assert folder.names() == {}
    assert not folder.exists("part")
    code = (
        "import sys; from pipeline.storage import Folder; "
        "sys.exit(0 if Folder(sys.argv[1]).create('part', b'theirs') else 1)"
    )
    subprocess.run([sys.executable, "-c", code, store], check=True, timeout=60)
    assert folder.exists("part")
    assert folder.names() == {"part": 6}
    assert not folder.create("part", b"ours")
    assert folder.read("part") == b"theirs"
