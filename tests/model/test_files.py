import os
import zipfile

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import files, sink
from schemas.error import SetupError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://key:se/c:r@et@bucket/a", "s3://***@bucket/a"),
        ("ftp://joe@host/x", "ftp://***@host/x"),
        ("https://u:p@h/x?token=abc&y=1", "https://***@h/x?***"),
        ("simplecache::https://h/x?sig=abc", "simplecache::https://h/x?***"),
        ('http://h/it\'s "so".parquet?token=abc', 'http://h/it\'s "so".parquet?***'),
        ("http://h/x?sig=X&y='q'rest z", "http://h/x?***"),
        ("https://h:443/x?sig=a@b", "https://h:443/x?***"),
        ("https://h/x#token=abc", "https://h/x#***"),
        ("https://u:p/w@h/x", "https://***@h/x"),
        ("https://u:p?w@h/x", "https://***@h/x"),
        ("memory://me:p w@bucket/x", "memory://***@bucket/x"),
        ("/tmp/what?/me@home", "/tmp/what?/me@home"),
    ],
)
def test_redact(url, shown):
    assert files.redact(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("got 'https://h/x?sig=1', then s3://k:v@b/y", "got 'https://h/x?***', then s3://***@b/y"),
        ("http://h/it's.parquet?token=abc is gone", "http://h/it's.parquet?*** is gone"),
        ("no http://h/x?a='q'rest here", "no http://h/x?*** here"),
        ("s3://b/x has no column q; is it prompt?", "s3://b/x has no column q; is it prompt?"),
    ],
)
def test_redact_text(text, shown):
    assert files.redact_text(text) == shown


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2222@bk/x", 'Invalid bucket name "key:hunter2222@bk"'),
        ("http://h/it's.parquet?token=hunter2222", "403, http://h/it's.parquet?token=hunter2222"),
    ],
)
def test_a_client_may_quote_what_it_was_given(url, message):
    assert "hunter2222" not in files.without_secrets(message, url)


_SECRET = st.text("abcXYZ0189/@:+=% '\"", min_size=8, max_size=20).map(lambda s: f"q{s}q")


@given(secret=_SECRET)
def test_redact_leaves_no_part_of_a_password(secret):
    shown = files.redact(f"s3://key:{secret}@bucket/path")
    assert shown.endswith("@bucket/path")
    assert secret not in shown
    assert "key" not in shown


@given(path=st.text("ab'\"() ;,[]", max_size=9), secret=_SECRET)
def test_redact_leaves_no_part_of_a_query(path, secret):
    shown = files.redact(f"https://host/{path}?sig={secret}")
    assert shown == f"https://host/{path}?***"


@pytest.mark.parametrize(
    ("url", "names", "joined"),
    [
        ("a/b/", ["c"], "a/b/c"),
        ("/", ["c"], "/c"),
        ("s3://b", ["c", "d"], "s3://b/c/d"),
        ("https://h/x?sig=1", ["y"], "https://h/x/y?sig=1"),
        ("zip://in::s3://b/x.zip", ["y"], "zip://in/y::s3://b/x.zip"),
        ("simplecache::s3://b/x", ["y"], "simplecache::s3://b/x/y"),
    ],
)
def test_join(url, names, joined):
    assert files.join(url, *names) == joined


def test_parent_and_basename(tmp_path, monkeypatch):
    assert files.parent(str(tmp_path / "a/")) == str(tmp_path)
    assert files.parent("s3://b/x/ckpt-0/") == "s3://b/x"
    assert files.parent("zip://x/ckpt-0::s3://b/a.zip") == "zip://x::s3://b/a.zip"
    assert files.basename("s3://b/x/ckpt-0/") == "ckpt-0"
    monkeypatch.chdir(tmp_path)
    assert files.basename(".") == tmp_path.name


def test_local_paths_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    sink.write_bytes("new/folder/file", b"abc")
    assert files.read_bytes("~/new/folder/file", 10) == b"abc"
    assert files.local_path("new") == os.path.join(os.getcwd(), "new")
    assert files.local_path("memory://new") is None


def test_list_files_gives_files_only_and_follows_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert files.list_files(str(tmp_path)) == {"one": 1, "two": 1}
    assert files.list_files(str(tmp_path / "absent")) == {}
    assert files.list_files(str(tmp_path / "one")) == {}


def test_any_fsspec_url(tmp_path):
    sink.write_bytes("memory://files/a/b", b"hello")
    assert files.list_files("memory://files/a") == {"b": 5}
    assert files.exists("memory://files/a/b")
    assert not files.exists("memory://files/c")
    sink.write_bytes("memory://files/c", b"")
    files.remove("memory://files/c")
    assert not files.exists("memory://files/c")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("in/b", b"zipped")
    inside = f"zip://in::{tmp_path}/x.zip"
    assert files.list_files(inside) == {"b": 6}
    assert files.read_range(files.join(inside, "b"), 1, 3) == b"ip"


def test_read_bytes_is_bounded():
    sink.write_bytes("memory://files/big", bytes(11))
    with pytest.raises(SetupError, match="has 11 bytes, more than the 10"):
        files.read_bytes("memory://files/big", 10)


@pytest.mark.parametrize("place", ["memory://files/range", "{tmp}/range"])
def test_ranges_and_buffers(place, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RANGE_BYTES", 7)
    url, data = place.format(tmp=tmp_path), np.arange(100, dtype=np.uint8)
    sink.write_bytes(url, data.tobytes())
    assert files.read_range(url, 3, 5) == bytes([3, 4])
    assert files.read_range(url, 3, 3) == b""
    np.testing.assert_array_equal(files.read_buffer(url, 3, 90), data[3:90])
    for read in files.read_range, files.read_buffer:
        with pytest.raises(SetupError, match="cut short"):
            read(url, 90, 101)


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*absent: no such file"):
        files.read_bytes(str(tmp_path / "absent"), 10)
    with pytest.raises(SetupError, match="Protocol not known: nope"):
        files.exists("nope://x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="cannot write"):
        sink.write_bytes(str(tmp_path / "file" / "below"), b"")


class _Leaky(fsspec.AbstractFileSystem):
    """A store whose client quotes all it knows in its exceptions, in pieces."""

    protocol = "leaky"

    def ls(self, path, detail=True, **kwargs):
        raise RuntimeError(f"no bucket {path}: key sesame and token open%20sesame, open sesame")

    info = cat_file = ls


def test_no_secret_of_a_url_reaches_a_message():
    fsspec.register_implementation("leaky", _Leaky, clobber=True)
    url = "leaky://alibaba:sesame@cave/x?token=open%20sesame"
    for action in (files.list_files, files.exists, lambda u: files.read_range(u, 0, 1)):
        with pytest.raises(SetupError) as caught:
            action(url)
        message = str(caught.value)
        assert "sesame" not in message
        assert "alibaba" not in message
        assert caught.value.__suppress_context__
        assert "no bucket" in message


def test_in_parallel_keeps_order_and_stops_at_a_fault():
    assert files.in_parallel(lambda n: n * n, range(100)) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        files.in_parallel(lambda n: 1 // n, range(-5, 5))
