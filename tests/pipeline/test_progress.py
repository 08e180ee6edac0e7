import io
import re
import types

import pytest

from model.engine.options import EngineStats
from pipeline.progress import Progress
from pipeline.progress_line import Line, Reading, duration

JOB = types.SimpleNamespace(
    rows=1000, rows_done=200, options=types.SimpleNamespace(task="generate")
)


def reading(
    at: float,
    committed: int = 0,
    errored: int = 0,
    phases=(),
    compiling=(),
    rows_read: int = 0,
    **stats: float,
) -> Reading:
    return Reading(
        at=at,
        committed=committed,
        errored=errored,
        stats=EngineStats(**stats),
        phases=dict(phases),
        compiling=compiling,
        rows_read=rows_read,
    )


def test_before_the_first_token_it_tells_the_phases():
    line = Line(JOB, reading(0.0))
    rows = "200 of 1,000 rows (20%)"
    assert line.tell(reading(1.0)) == f"{rows} · reading"
    assert line.tell(reading(2.0, rows_read=60)) == f"{rows} · 60 rows read · starting the engine"
    phases = {"loading": (2e9, 8e9, 1.0), "compiling": (1, 4, 1.0)}
    names = ("prefill", "copy_pages")
    told = line.tell(reading(5.0, phases=phases.items(), compiling=names, rows_read=60))
    assert told == (
        f"{rows} · loading 2.0 of 8.0 GB, 0.50 GB/s · compiling prefill, copy pages (1 of 4 done)"
    )
    done = {"loading": (8e9, 8e9, 1.0), "compiling": (4, 4, 1.0)}
    assert line.tell(reading(6.0, phases=done.items())) == f"{rows} · starting the engine"
    made = {"compile_seconds": 3.0, "prefilled_tokens": 512}
    told = line.tell(reading(9.0, rows_read=60, **made))
    assert told == f"{rows} · computing prompts, 512 tokens so far"


def test_rates_are_those_of_the_last_seconds_and_not_of_other_runs():
    before = {"decode_rows_used": 50, "decode_rows": 60, "requests": 7}
    line = Line(JOB, reading(0.0, committed=40, errored=1, **before))
    slow = {"decode_rows_used": 60, "decode_rows": 160, "requests": 7, "prefilled_tokens": 0}
    line.tell(reading(1000.0, committed=40, errored=1, **slow))
    fast = {"decode_rows_used": 1060, "decode_rows": 1410, "requests": 27, "prefilled_tokens": 300}
    told = line.tell(reading(1010.0, committed=60, errored=4, **fast))
    assert told == (
        "220 of 1,000 rows (22%) · 3 errored since resuming · 6 min 30 s left · "
        "30 prompt, 100 completion tokens/s · slots 80% full"
    )


def test_what_is_left_follows_from_rows_answered():
    line = Line(JOB, reading(0.0))
    line.tell(reading(10.0, decode_rows_used=1, decode_rows=1))
    told = line.tell(reading(110.0, decode_rows_used=900, decode_rows=900, requests=100))
    assert "rows (30%) · 11 min 40 s left · " in told  # 700 rows at one a second


def test_scored_rows_are_done_once_committed_whatever_was_asked_for_them():
    job = types.SimpleNamespace(**{**vars(JOB), "options": types.SimpleNamespace(task="score")})
    line = Line(job, reading(0.0))
    line.tell(reading(10.0, scored_tokens=1, requests=9))
    told = line.tell(reading(20.0, committed=100, scored_tokens=801, requests=700))
    assert told.startswith("300 of 1,000 rows")
    assert told.endswith("1 min 10 s left · 0 prompt, 80 scored tokens/s")


def fresh_job(rows: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{**vars(JOB), "rows": rows, "rows_done": 0})


def test_a_narrow_line_has_all_of_it_in_fewer_words():
    line = Line(fresh_job(12_000), reading(0.0))
    line.tell(reading(10.0, decode_rows_used=1, decode_rows=1))
    made = {"decode_rows_used": 43_381, "decode_rows": 48_201, "prefilled_tokens": 126_610}
    now = reading(20.0, errored=4, requests=4975, **made)
    told = line.tell(now)
    assert told == (
        "4,975 of 12,000 rows (41%) · 4 errored · 14 s left · "
        "12,661 prompt, 4,338 completion tokens/s · slots 90% full"
    )
    assert line.tell(now, len(told)) == told
    assert line.tell(now, 78) == (
        "4,975/12,000 rows 41% · 4 errored · 14 s left · 12.7k + 4.3k tok/s · 90% full"
    )


@pytest.mark.parametrize("rows_done", [0, 200_000])
@pytest.mark.parametrize("rows", [1_000_000, 1_234_567, 999_999_999])
@pytest.mark.parametrize("seconds", [5.0, 500.0, 100_000.0])
@pytest.mark.parametrize("tokens", [127_460, 999_999_999])
def test_an_80_column_terminal_has_room_for_large_jobs(rows_done, rows, seconds, tokens):
    line = Line(
        types.SimpleNamespace(**{**vars(JOB), "rows": rows, "rows_done": rows_done}), reading(0.0)
    )
    line.tell(reading(1.0, decode_rows_used=1, decode_rows=1))
    made = {"decode_rows_used": tokens, "decode_rows": tokens, "prefilled_tokens": tokens}
    now = reading(1.0 + seconds, errored=9_123, requests=123_456, **made)
    told = line.tell(now, 78)
    assert len(told) <= 78
    assert re.search(r"9(\.1k|,123) errored", told)
    assert re.search(r"left · .* tok/s · 100% full$", told)


def test_an_80_column_terminal_has_room_for_the_phases():
    line = Line(fresh_job(1_000_000), reading(0.0))
    phases = {"loading": (123.4e9, 316.1e9, 1.0), "compiling": (0, 5, 1.0)}
    names = ("prefill", "decode")
    now = reading(101.0, phases=phases.items(), compiling=names, errored=1234)
    told = line.tell(now, 78)
    assert told == "0/1M rows 0% · 1.2k errored · loading 123.4/316.1 GB, 1.2 GB/s · compiling 0/5"
    made = {"compile_seconds": 3.0, "prefilled_tokens": 1_234_567}
    assert len(line.tell(reading(102.0, errored=1234, **made), 78)) <= 78


def test_rows_answered_before_the_first_token_was_seen_do_not_hasten_the_end():
    line = Line(fresh_job(100_000), reading(0.0))
    made = [{"decode_rows_used": n, "decode_rows": n, "requests": n} for n in (6000, 12_000)]
    assert "left" not in line.tell(reading(60.0, **made[0]))
    assert " · 14 min 40 s left · " in line.tell(reading(120.0, **made[1]))


def test_once_all_rows_are_answered_nothing_is_left():
    line = Line(fresh_job(1000), reading(0.0))
    line.tell(reading(1.0, decode_rows_used=1, decode_rows=1))
    almost = {"decode_rows_used": 999, "decode_rows": 999}
    assert line.tell(reading(2.0, requests=999, **almost)).startswith("999 of 1,000 rows (99%)")
    told = line.tell(reading(3.0, requests=1000, **almost))
    assert told.startswith("1,000 of 1,000 rows (100%)")
    assert "left" not in told


def test_errors_of_a_resumed_run_are_not_passed_off_as_all():
    told = Line(JOB, reading(0.0)).tell(reading(1.0, errored=2))
    assert told == "200 of 1,000 rows (20%) · 2 errored since resuming · reading"
    told = Line(fresh_job(1000), reading(0.0)).tell(reading(1.0, errored=2))
    assert told == "0 of 1,000 rows (0%) · 2 errored · reading"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")]
)
def test_durations(seconds, told):
    assert duration(seconds) == told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_and_is_left_clean(monkeypatch):
    monkeypatch.setattr("pipeline.progress._REFRESH_SECONDS", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(JOB, stream) as progress:
        while "200 of 1,000 rows" not in stream.getvalue():
            pass
    assert not progress._thread.is_alive()
    erased, shown = "\x1b[2K", "\x1b[?25h"  # the line, and the cursor again
    assert stream.getvalue().rfind(erased) > stream.getvalue().rfind("rows (20%)")
    assert stream.getvalue().rfind(shown) > stream.getvalue().rfind("\x1b[?25l")


def test_a_narrow_terminal_has_one_line_too(monkeypatch):
    monkeypatch.setattr("pipeline.progress._REFRESH_SECONDS", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    with Progress(JOB, stream):
        while "200/1k 20% · read…" not in stream.getvalue():
            pass
    assert "reading" not in stream.getvalue()


def test_elsewhere_it_is_a_line_a_minute(monkeypatch):
    quiet = io.StringIO()
    with Progress(JOB, quiet):
        pass
    assert quiet.getvalue() == ""
    monkeypatch.setattr("pipeline.progress._LOG_SECONDS", 0.01)
    stream = io.StringIO()
    with Progress(JOB, stream):
        while "\n" not in stream.getvalue():
            pass
    assert re.match(r"\d\d:\d\d:\d\d 200 of 1,000 rows \(20%\) · reading\n", stream.getvalue())


def test_in_a_log_it_reads_more_often_than_it_prints(monkeypatch):
    monkeypatch.setattr("pipeline.progress._REFRESH_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.progress._LOG_SECONDS", 0.1)
    stream, told = io.StringIO(), []
    with Progress(JOB, stream) as progress:
        monkeypatch.setattr(progress._line, "tell", lambda now: told.append(now) or "how it is")
        while stream.getvalue().count("\n") < 2:
            pass
    assert len(told) > 2 * stream.getvalue().count("\n")
