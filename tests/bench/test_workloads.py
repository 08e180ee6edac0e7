import hashlib
import statistics

import pytest

from bench import workloads


def digest(jobs) -> str:
    return hashlib.sha256(repr([(j.prompt, j.max_tokens, j.n) for j in jobs]).encode()).hexdigest()


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_a_workload_is_the_same_each_time_and_fits_the_model(name):
    work = workloads.make(name)
    assert digest(work.jobs) == digest(workloads.make(name).jobs)
    for job in work.jobs:
        assert 0 < len(job.prompt) + job.max_tokens <= workloads.CONTEXT
        assert all(0 <= i < workloads.VOCAB_SIZE for i in job.prompt)
    assert len({job.prompt for job in work.jobs}) == len(work.jobs)


def test_results_stay_comparable():
    """A change of a workload makes recorded numbers worthless: it needs another name."""
    assert digest(workloads.make("uniform-128").jobs)[:16] == "edf1ffdb07f0c0c3"
    assert digest(workloads.make("mixed").jobs)[:16] == "0b9f5745a34c93b5"


def test_uniform():
    for count in (128, 256):
        work = workloads.make(f"uniform-{count}")
        assert len(work.jobs) == count
        assert {(len(j.prompt), j.max_tokens, j.n) for j in work.jobs} == {(128, 64, 1)}


def test_mixed_has_the_lengths_it_says():
    jobs = workloads.make("mixed").jobs
    lengths = [len(job.prompt) for job in jobs]
    outputs = [job.max_tokens for job in jobs]
    assert len(jobs) == 1000
    assert (min(lengths), max(lengths)) == (10, 600)
    assert statistics.median(lengths) == pytest.approx(100, rel=0.1)
    assert min(outputs) >= 1
    assert max(outputs) == 256
    assert statistics.mean(outputs) == pytest.approx(60, rel=0.1)


def test_few_shot_prompts_share_a_prefix_and_nothing_more():
    jobs = workloads.make("few-shot").jobs
    assert len(jobs) == 500
    assert len({job.prompt[:400] for job in jobs}) == 1
    assert len({job.prompt[400:416] for job in jobs}) == 500


def test_best_of_asks_for_samples():
    work = workloads.make("best-of")
    assert {(len(j.prompt), j.max_tokens, j.n) for j in work.jobs} == {(128, 64, 8)}
    assert work.output_tokens == 64 * 8 * 64
    assert work.prompt_tokens == 64 * 128
    assert work.first(3).jobs == work.jobs[:3]


def test_scoring_generates_nothing():
    work = workloads.make("scoring")
    assert len(work.jobs) == 1000
    assert work.output_tokens == 0
