import pathlib
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.shards import list_inputs, read_footers
from schemas.error import SetupError
from tests.jobs import write


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Four files with rows, and some that no dataset reader would take."""
    for name in ("a.parquet", "deep/b.parquet", "deep/er/c.pq", "x[1].parquet"):
        write(tmp_path / name, {"prompt": [name]})
    for name in ("_manifest.parquet", "_plan/files.parquet", ".hidden.parquet"):
        write(tmp_path / name, {"other": [1]})
    (tmp_path / "notes.txt").write_text("not for this")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, root=None):
    return [file.path for file in list_inputs([str(i) for i in inputs], root)]


def refused(*inputs, **more) -> str:
    with pytest.raises(SetupError) as caught:
        list_inputs([*map(str, inputs)], **more)
    return str(caught.value)


def test_a_folder_stands_for_its_parquet_files(tree):
    assert names(tree) == ["a.parquet", "deep/b.parquet", "deep/er/c.pq", "x[1].parquet"]
    assert names(f"{tree}/") == names(tree)


def test_globs(tree):
    assert names(tree / "*.parquet") == ["a.parquet", "x[1].parquet"]
    assert names(tree / "**" / "*.parquet") == ["a.parquet", "deep/b.parquet", "x[1].parquet"]
    assert names(tree / "deep" / "?.parquet") == ["b.parquet"]


def test_a_file_named_outright_is_taken_whatever_its_name(tree):
    assert names(tree / "_manifest.parquet") == ["_manifest.parquet"]
    assert names(tree / "x[1].parquet") == ["x[1].parquet"]
    assert names(tree / "notes.txt") == ["notes.txt"]


def test_what_the_run_writes_is_not_what_it_reads(tree):
    write(tree / "deep" / "out" / "part-0.parquet", {"prompt": ["an answer"]})
    for pattern in (tree, tree / "**" / "*.parquet", "."):
        found = list_inputs([str(pattern)], output="deep/out/")
        assert [file.path for file in found if "out" in file.path] == []
        assert len(found) >= 3
    [named] = list_inputs([str(tree / "deep" / "out" / "part-0.parquet")], output="deep/out")
    assert named.path == "part-0.parquet"
    assert len(list_inputs([str(tree / "deep" / "o*" / "*")], output="memory://deep/out")) == 1


def test_a_file_named_twice_is_one(tree):
    assert names("a.parquet", "*.parquet", tree / "a.parquet", ".") == names(tree)


def test_relative_paths_outlive_a_change_of_folder(tree, monkeypatch):
    [file] = list_inputs(["a.parquet"])
    monkeypatch.chdir("/")
    assert pathlib.Path(file.url) == tree / "a.parquet"


def test_ids_come_from_the_path_below_the_input_or_the_root(tree):
    assert names(tree / "deep" / "b.parquet") == ["b.parquet"]
    assert names(tree / "deep" / "b.parquet", root=str(tree)) == ["deep/b.parquet"]
    assert names(tree / "deep" / "b.parquet", root="deep") == ["b.parquet"]


def test_two_files_of_one_name(tree):
    write(tree / "a" / "b.parquet", {"prompt": ["x"]})
    sentence = refused("a", "deep/b.parquet")
    assert "are both 'b.parquet'" in sentence
    assert "--input-root" in sentence
    assert names("a", "deep/b.parquet", root=".") == ["a/b.parquet", "deep/b.parquet"]


def test_a_root_that_is_not_above(tree):
    assert "does not lie below --input-root" in refused("a.parquet", root=str(tree / "deep"))


def test_nothing_matches(tree):
    for pattern in ("none", "*.csv", "gone/*.parquet"):
        assert refused(tree / pattern).startswith(f"no input file matches {tree / pattern};")


def test_an_input_within_the_output_is_told(tree):
    sentence = refused("*.parquet", output=str(tree))
    assert sentence.startswith("all input files that match *.parquet lie in the output folder")


def test_a_store_that_is_out_of_reach_is_told(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, "info", unreachable)
    assert refused("memory://bucket/a.parquet").startswith(
        "cannot list memory://bucket/a.parquet: no route to host; check the path"
    )


def test_an_unknown_store_is_told(tree):
    assert "nosuch" in refused("nosuch://bucket/*.parquet")


def test_urls():
    base = f"memory://{uuid.uuid4().hex}"
    for name in ("p/a.parquet", "p/q/b.parquet"):
        with fsspec.open(f"{base}/{name}", "wb") as file:
            pq.write_table(pa.table({"prompt": ["x"]}), file)
    assert names(base) == ["p/a.parquet", "p/q/b.parquet"]
    assert names(f"{base}/p/*.parquet") == ["a.parquet"]
    [file] = list_inputs([f"{base}/p/*.parquet"])
    assert file.url == f"{base}/p/a.parquet"
    assert read_footers([file])[0].metadata.num_rows == 1


def test_a_changed_file_has_another_footer(tmp_path):
    def footer():
        return read_footers(list_inputs([str(tmp_path)]))[0].footer

    write(tmp_path / "a.parquet", {"prompt": ["x"]})
    one = footer()
    write(tmp_path / "a.parquet", {"prompt": ["x"]})
    assert footer() == one
    write(tmp_path / "a.parquet", {"prompt": ["y"]})
    assert footer() != one


def test_rows_in_another_order_make_another_file(tmp_path):
    """Their sizes and statistics are the same."""

    def footer(*prompts):
        write(tmp_path / "a.parquet", {"prompt": prompts})
        return read_footers(list_inputs([str(tmp_path)]))[0].footer

    assert footer("a", "b", "c") != footer("c", "a", "b")


def test_a_footer_larger_than_the_first_read(tmp_path):
    wide = {f"column_{i:04d}": ["x" * 50] for i in range(1500)}
    path = pathlib.Path(write(tmp_path / "a.parquet", wide))
    [shard] = read_footers(list_inputs([str(path)]))
    assert len(shard.metadata.schema) == 1500


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it has 0 bytes"),
        (b"PAR1 but a text file, longer than twelve", "does not end as one"),
        (b"PAR1" + bytes(20) + b"\xff\xff\xff\x7fPAR1", "its footer is cut short"),
        (b"PAR1" + bytes(20) + b"\x08\0\0\0PAR1", "is no readable Parquet file"),
        (b"PAR1" + bytes(20) + b"\x08\0\0\0PARE", "its footer is encrypted"),
    ],
)
def test_a_file_that_is_no_parquet(tmp_path, data, told):
    (tmp_path / "a.parquet").write_bytes(data)
    [shard] = read_footers(list_inputs([str(tmp_path)]))
    assert shard.metadata is None
    assert str(shard.fault.code) == "input_unreadable"
    assert str(tmp_path / "a.parquet") in shard.fault.message
    assert told in shard.fault.message


@pytest.mark.parametrize(("name", "hint"), [("a.csv.gz", True), ("a.jsonl", True), ("a.b", False)])
def test_a_file_of_another_format_tells_what_makes_parquet_of_it(tmp_path, name, hint):
    path = tmp_path / name
    path.write_text('{"prompt": "so that it is long enough"}\n')
    [shard] = read_footers(list_inputs([str(path)]))
    assert ("grok1 import" in shard.fault.message) == hint
