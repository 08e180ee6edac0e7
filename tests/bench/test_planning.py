import pytest

from bench import planning


@pytest.mark.slow
def test_every_row_is_counted_by_both():
    texts = planning.prompts(40, 60)
    assert len(set(texts)) == 40
    assert {len(text) for text in texts} == {60}
    found = planning.measure(texts, rounds=1)
    assert found["rows"] == 40
    assert found["tokens"] > 40
    told = planning.summary(found)
    assert told.startswith("40 prompts of ")
    assert told.count("\n| ") == 4
