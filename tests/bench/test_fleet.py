import pytest

from bench import fleet, markdown
from bench.fleet import Fleet, simulate

SMALL = {"workers": 4, "threads": 2, "work": 120.0, "chunk": 3.0}


@pytest.mark.parametrize("span", [1, 7])
@pytest.mark.parametrize("preempted_every", [0.0, 20.0])
def test_time_is_conserved(span, preempted_every):
    """All that threads had time for was work, or is accounted for as something else."""
    job = Fleet(**SMALL, span=span, preempted_every=preempted_every, slow_share=0.0)
    for seed in range(5):
        outcome = simulate(job, seed)
        total = outcome.makespan * job.workers * job.threads
        other = outcome.lost + outcome.tail + outcome.commit + outcome.down
        assert total * (1 - other) == pytest.approx(job.work * job.workers * job.threads)
        assert (outcome.redone > 0) == (outcome.lost > 0) == (preempted_every > 0)
        assert (outcome.down > 0) == (preempted_every > 0)


def test_nothing_happens_to_a_fleet_that_nothing_happens_to():
    outcome = simulate(Fleet(**SMALL, span=1, preempted_every=0.0, slow_share=0.0, commit=0.0))
    assert (outcome.lost, outcome.commit, outcome.down, outcome.redone) == (0, 0, 0, 0)
    assert outcome.makespan == pytest.approx(120.0)
    assert outcome.tail == pytest.approx(0.0)


def test_slow_workers_take_longer():
    job = Fleet(**SMALL, span=1, preempted_every=0.0, slow_share=1.0, slow_factor=2.0, commit=0.0)
    assert simulate(job).makespan == pytest.approx(240.0)


def test_larger_chunks_lose_more():
    lost = [
        sum(simulate(Fleet(workers=8, work=120.0, chunk=chunk), seed).lost for seed in range(5))
        for chunk in (1.0, 20.0)
    ]
    assert lost[0] < lost[1]


def test_the_document_has_the_tables_that_were_recorded():
    """With the default size of a chunk, on machines as fast as the floors that are recorded."""
    found = fleet.json.loads((fleet.RESULTS / "fleet.json").read_text())
    assert fleet.summary(found) in fleet._DOCUMENT.read_text("utf-8")


def test_a_recorded_table_is_read_back(tmp_path):
    document = tmp_path / "a.md"
    document.write_text("x\n<!-- t -->\n<!-- /t -->\ny\n")
    markdown.replace(document, "t", markdown.table(["a", "b"], [["c", 1], ["d", 2]]))
    assert markdown.rows(document, "t") == [["a", "b"], ["c", "1"], ["d", "2"]]
    assert document.read_text().startswith("x\n")
    assert document.read_text().endswith("y\n")
    with pytest.raises(ValueError, match="has no marks <!-- u -->"):
        markdown.rows(document, "u")
