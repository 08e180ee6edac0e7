import hypothesis.strategies as st
import pytest
from hypothesis import given

from model.engine.request import Request
from model.engine.ticket import End
from model.engine.watch import StopWatcher, Watch
from schemas.sampling import SamplingParams


class Characters:
    """A decoder for which each token is one short text."""

    def __init__(self, texts):
        self.texts = texts

    def push(self, ids):
        return "".join(self.texts[i] for i in ids)

    def finish(self):
        return ""


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_the_first_complete_stop_string_wins_however_tokens_come(texts, stops, min_tokens, step):
    watcher = StopWatcher(stops, min_tokens, Characters(texts))
    match = None
    for start in range(0, len(texts), step):
        ids = range(start, min(start + step, len(texts)))
        match = watcher.feed(ids, last=ids.stop == len(texts))
        if match:
            break
    early = len("".join(texts[:min_tokens]))
    whole = "".join(texts)
    ends = [
        (end, end - len(stop), stop)
        for stop in stops
        for end in range(early + 1, len(whole) + 1)
        if whole[:end].endswith(stop)
    ]
    if not ends:
        assert match is None
        return
    end, start, stop = min(ends)
    assert (match.end, match.start, match.text) == (end, start, stop)
    needed = next(k for k in range(len(texts) + 1) if len("".join(texts[:k])) >= end)
    assert match.tokens == needed


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_stop_token_that_is_a_stop_string_ends_as_a_token(trained, step):
    """As in vLLM: its text is looked at only where it comes out."""
    ids = trained.encode("a = b\nc = d\n")
    end = End("stop", ids[-1])

    def look(**wish):
        params = SamplingParams(stop_token_ids=[ids[-1]], max_tokens=99, **wish)
        watch = Watch(Request(prompt_token_ids=(5,), params=params), trained)
        for stop in range(step, len(ids), step):
            if found := watch.look(ids, stop, None):
                return found
        return watch.look(ids, len(ids), end)

    last = trained.decode([trained.encode("x")[0], ids[-1]])[-1:]
    assert last == "\n"
    assert look(stop=["d\n"]) is None
    tokens, _, match = look(stop=["d\n"], include_stop_str_in_output=True)
    assert (tokens, match.text) == (len(ids), "d\n")
    tokens, _, match = look(stop=["d\n", " d"])  # complete in the text before
    assert (tokens, match.text) == (len(ids) - 1, " d")
