import pytest

from pipeline.commands.run import root_cause

BEAM = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
  File "/site/pipeline/commit.py", line 99, in commit
    raise RowFailed(f"{where}: stops")
          ^^^^^^^^^^^^^^^^
pipeline.commit.RowFailed: row 1 of a.parquet: stops

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 310, in _execute
    response = task()
               ^^^^^^
  File "apache_beam/runners/common.py", line 1512, in process
"""


@pytest.mark.parametrize(
    ("last", "want"),
    [
        (
            "pipeline.commit.RowFailed: row 1 of a.parquet: stops [while running 'Write/Commit']",
            ("RowFailed", "row 1 of a.parquet: stops"),
        ),
        ("ValueError: one line\nand another: more\n", ("ValueError", "one line and another: more")),
        (
            "schemas.error.SetupError: no such file [while running 'x']",
            ("SetupError", "no such file"),
        ),
    ],
)
def test_the_fault_is_found_in_beams_traceback(last, want):
    assert root_cause(RuntimeError(BEAM + last)) == want


def test_another_error_is_told_as_it_is():
    assert root_cause(ValueError("plain: text")) == ("ValueError", "plain: text")
    assert root_cause(RuntimeError("")) == ("RuntimeError", "")
    kind, reason = root_cause(RuntimeError("a\n" * 5000))
    assert (kind, len(reason)) == ("RuntimeError", 500)
