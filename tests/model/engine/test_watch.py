import hypothesis.strategies as st
from hypothesis import given

from model.engine.watch import StopWatcher


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
