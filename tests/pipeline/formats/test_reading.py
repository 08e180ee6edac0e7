import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import OK, ROW_ERRORS, SETUP, main
from pipeline.formats.columns import KNOWN, Kinds, convert, table
from pipeline.formats.records import Record, read_json_lines
from schemas.sampling import PARAM_NAMES


def imported(tmp_path: pathlib.Path, name: str, text: str | bytes, *more: str) -> tuple[int, list]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    code = main(["import", str(path), "--to", str(tmp_path / "out"), *more])
    return code, pq.read_table(tmp_path / "out").to_pylist()


def faults(tmp_path: pathlib.Path) -> dict[int, str]:
    (path,) = (tmp_path / "out").glob("_errors-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["line"]: line["message"] for line in lines}


def test_json_lines(tmp_path):
    lines = [
        {"prompt": "a", "temperature": 1, "topic": 7, "extra": {"x": [1]}},
        {"prompt": "b", "stop": "\n", "topic": 2.5, "logit_bias": {"5": -100}},
        {"prompt_token_ids": [1, 2], "stop": ["x", "y"], "extra": "text"},
    ]
    code, rows = imported(tmp_path, "in.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert code == OK
    assert [row["prompt"] for row in rows] == ["a", "b", None]
    assert [row["temperature"] for row in rows] == [1.0, None, None]
    assert [row["topic"] for row in rows] == [7.0, 2.5, None]
    assert [row["stop"] for row in rows] == [None, ["\n"], ["x", "y"]]
    assert [row["extra"] for row in rows] == ['{"x": [1]}', None, "text"]
    assert rows[2]["prompt_token_ids"] == [1, 2]


def test_a_bad_line_does_not_harm_the_others(tmp_path):
    text = b'{"prompt": "a"}\n{"prompt": \n[1]\n\xff\n{"prompt": 5.5}\n{"prompt": "z", "n": 2.5}\n'
    text += b'{"prompt": "last", "n": 2}\n'
    code, rows = imported(tmp_path, "in.jsonl", text)
    assert code == ROW_ERRORS
    assert [row["prompt"] for row in rows] == ["a", "last"]
    found = faults(tmp_path)
    assert sorted(found) == [2, 3, 4, 5, 6]
    remedy = "write one JSON object on the line"
    assert found[2] == f"is no JSON: Expecting value (character 12); {remedy}"
    assert found[3] == f"is no JSON object; {remedy}"
    assert found[4] == "is not valid UTF-8 at byte 0; save the file as UTF-8"
    assert found[5] == "prompt is no string; put it in quotes"
    assert found[6] == "n is 2.5; give an integer, or leave it out"


def test_a_mended_source_takes_the_place_of_the_broken_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.formats.reading._FILE_ROWS", 2)
    broken = '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n{"prompt":\n'
    code, rows = imported(tmp_path, "in.jsonl", broken)
    assert (code, len(rows)) == (ROW_ERRORS, 3)
    (tmp_path / "out" / "in-0-00000.parquet").write_bytes(b"of another import")
    mended = '{"prompt": "d"}\n'
    (tmp_path / "in.jsonl").write_text(mended)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert main(["import", str(tmp_path / "in.jsonl"), "--to", str(tmp_path / "out")]) == SETUP
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    command = ["import", str(tmp_path / "in.jsonl"), "--to", str(tmp_path / "out"), "--overwrite"]
    assert main(command) == OK
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"in-00000.parquet", "in-0-00000.parquet"}
    assert pq.read_table(tmp_path / "out" / "in-00000.parquet").to_pylist() == [{"prompt": "d"}]


def test_a_source_that_cannot_be_read_costs_nothing(tmp_path):
    imported(tmp_path, "in.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n'))
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "b"}\n')[:-9])
    assert main(["import", str(path), "--to", str(tmp_path / "out"), "--overwrite"]) == SETUP
    assert pq.read_table(tmp_path / "out").to_pylist() == [{"prompt": "a"}]


def test_csv_with_quotes_lists_and_short_rows(tmp_path):
    text = 'prompt,temperature,stop,note\n"two\nlines, ""quoted""",0.5,"[""a"",""b""]",x\n'
    text += "short,1\nplain,hot,END,\nlast,1,END,y\n"
    code, rows = imported(tmp_path, "in.csv", text)
    assert code == ROW_ERRORS
    assert rows == [
        {"prompt": 'two\nlines, "quoted"', "temperature": 0.5, "stop": ["a", "b"], "note": "x"},
        {"prompt": "last", "temperature": 1.0, "stop": ["END"], "note": "y"},
    ]
    found = faults(tmp_path)
    assert found[4].startswith("has 2 fields, the header has 4; quote fields that hold commas")
    assert found[5] == "temperature is 'hot'; give a number, or leave it out"


def test_csv_whose_bytes_are_no_text(tmp_path):
    text = b'prompt,note\na,1\nb\xff,2\n"c\n\xfe",3\nd,4\n'
    code, rows = imported(tmp_path, "in.csv", text)
    assert code == ROW_ERRORS
    assert [row["prompt"] for row in rows] == ["a", "d"]
    assert sorted(faults(tmp_path)) == [3, 4]
    assert all("save the file as UTF-8" in said for said in faults(tmp_path).values())


def request(**body) -> dict:
    return {"custom_id": "r", "method": "POST", "url": "/v1/completions", "body": body}


def test_openai_requests(tmp_path):
    lines = [
        request(model="m", prompt="a", max_tokens=5, logprobs=2),
        request(prompt=["b", "c"], temperature=0.5),
        request(prompt=[1, 2, 3]),
        request(prompt=[[4], [5, 6]], echo=False),
        request(prompt="no", echo=True),
        request(prompt="no", beams=3),
        request(),
        {**request(prompt="no"), "url": "/v1/chat/completions"},
    ]
    code, rows = imported(tmp_path, "in.jsonl", "\n".join(map(json.dumps, lines)))
    assert code == ROW_ERRORS
    prompts = [row["prompt"] or row["prompt_token_ids"] for row in rows]
    assert prompts == ["a", "b", "c", [1, 2, 3], [4], [5, 6]]
    assert [row["prompt_index"] for row in rows] == [0, 0, 1, 0, 0, 1]
    assert (rows[0]["max_tokens"], rows[0]["logprobs"], rows[1]["temperature"]) == (5, 2, 0.5)
    found = faults(tmp_path)
    assert sorted(found) == [5, 6, 7, 8]
    assert "--echo" in found[5]
    assert "'beams'" in found[6]
    assert "no prompt" in found[7]
    assert "/v1/chat/completions" in found[8]
    assert all("; " in said for said in found.values())


def test_a_request_with_one_bad_prompt_is_refused_whole(tmp_path):
    code, rows = imported(tmp_path, "in.jsonl", json.dumps(request(prompt=["good", "\ud800"])))
    assert (code, rows) == (ROW_ERRORS, [])
    (path,) = (tmp_path / "out").glob("_errors-*")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["line"], line["custom_id"]) == (1, "r")
    assert "prompt holds a lone surrogate" in line["message"]


def test_compressed_files_and_the_format_by_name(tmp_path):
    code, rows = imported(tmp_path, "in.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n'))
    assert (code, rows) == (OK, [{"prompt": "a"}])


def test_wrong_set_ups(tmp_path, capsys):
    target = str(tmp_path / "out")
    assert main(["import", str(tmp_path / "none.jsonl"), "--to", target]) == SETUP
    (tmp_path / "x.txt").write_text("{}")
    assert main(["import", str(tmp_path / "x.txt"), "--to", target]) == SETUP
    assert "give --format" in capsys.readouterr().err
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text('{"prompt": "a"}')
    both = [str(tmp_path / folder / "x.jsonl") for folder in ("a", "b")]
    assert main(["import", *both, "--to", target]) == SETUP
    assert "folders of their own" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("")
    assert main(["import", str(tmp_path / "empty.csv"), "--to", target]) == SETUP


def test_names_cannot_leave_the_folder(tmp_path):
    _, rows = imported(tmp_path, "_..-$x.jsonl", '{"prompt": "a"}')
    assert rows == [{"prompt": "a"}]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x-00000.parquet"}


def test_every_sampling_parameter_has_a_type():
    assert set(PARAM_NAMES) <= set(KNOWN)
    assert KNOWN["temperature"] == pa.float64()
    assert KNOWN["seed"] == KNOWN["max_new_tokens"] == pa.int64()
    assert KNOWN["ignore_eos"] == pa.bool_()


_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.dictionaries(st.sampled_from([*KNOWN, "x", "y"]), _JSON, min_size=1), max_size=6)
)
def test_any_objects_become_columns_or_faults(objects):
    kinds = Kinds()
    for values in objects:
        kinds.add(values)
    schema = kinds.schema()
    rows = []
    for values in objects:
        try:
            rows.append({f.name: convert(values.get(f.name), f.name, f.type) for f in schema})
        except ValueError as error:
            assert str(error).split()[0] in schema.names
            assert "; " in str(error)
    made = table(rows, schema)
    made.validate(full=True)
    assert made.num_rows == len(rows)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_faults(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "in.jsonl"
    path.write_bytes(data)
    lines = [r.line for r in read_json_lines(str(path))]
    assert lines == sorted(set(lines))
    assert all(isinstance(r, Record) or "; " in r.message for r in read_json_lines(str(path)))
