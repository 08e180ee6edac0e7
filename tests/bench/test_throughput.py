"""The measuring itself, at a size that says nothing of speed."""

import dataclasses
import json

import pytest

from bench import limits, machine, throughput, throughput_report, workloads
from bench.limits import Limits, Work
from model.checkpoint.synth import synthesize
from model.config import PRESETS

WORKLOADS = ["uniform-128", "best-of", "scoring"]


@pytest.fixture
def document(tmp_path, monkeypatch):
    path = tmp_path / "performance.md"
    mark = f"throughput {machine.kind()}"
    path.write_text(f"before\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nafter\n")
    monkeypatch.setattr(throughput_report, "DOCUMENT", path)
    monkeypatch.setattr(throughput_report, "RESULTS", tmp_path / "results")
    return path


@pytest.mark.slow
def test_all_of_it(tmp_path, monkeypatch, document, capsys):
    """Two starts in processes of their own, workloads, grok1 generate, growth, and the record."""
    monkeypatch.setattr(limits, "_onednn", dict)  # which would be installed from PyPI
    model = str(tmp_path / "model")
    config = PRESETS["tiny"]
    config = dataclasses.replace(config, vocab_size=workloads.VOCAB_SIZE, sequence_len=1024)
    synthesize(model, config)
    sizes = ["--slots", "8", "--rows", "4", "--end-to-end-rows", "8", "--growth-rows", "4"]
    throughput.main(
        ["--checkpoint", model, "--workloads", *WORKLOADS, *sizes, "--rounds", "2", "--record"]
    )
    (result,) = throughput_report.newest()
    assert [run["workload"] for run in result["runs"]] == 2 * WORKLOADS
    for run in result["runs"]:
        assert (
            run["output_tokens"]
            == {"uniform-128": 256, "best-of": 2048, "scoring": 0}[run["workload"]]
        )
        assert 0 < run["first_result_seconds"] <= run["seconds"]
        assert 0 < run["limit_share"] < 1
        # Of a prompt only the last token is not run ahead; of a document, all but none are.
        assert 0 < run["computed_tokens"] <= run["prompt_tokens"]
    cold, warm = result["start"]["cold"], result["start"]["warm"]
    assert cold["compiled"] > 0
    assert (warm["compiled"], warm["found"]) == (0, cold["compiled"])
    assert result["end_to_end"]["rows"] == 8
    assert result["end_to_end"]["ratio"] > 0
    assert (result["growth"]["rows"], result["growth"]["more_rows"]) == (4, 40)
    assert result["growth"]["more_rss_bytes"] > 0
    assert "0 programs compiled" in document.read_text()
    assert "written: " in capsys.readouterr().out


def run(workload: str, seconds: float) -> dict[str, object]:
    return {
        "workload": workload,
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "first_result_seconds": 0.5,
        "output_tokens": 1000,
        "prompt_tokens": 3000,
        "computed_tokens": 3000,
        "occupancy": 0.99,
        "limit_seconds": seconds / 2,
        "limit_share": 0.5,
    }


@pytest.fixture
def result():
    start = {"first_token_seconds": 3.0, "cpu_seconds": 2.0, "compiled": 0, "found": 3}
    return {
        "date": "2030-01-02T03:04+00:00",
        "machine": "2 cores of a machine",
        "rows": None,
        "limits": {"products": {"XLA": 3e11}, "read_rate": 3e10},
        "start": {"warm": {**start, "compile_seconds": 1.0, "load_seconds": 0.5}},
        "engine": {"jax": "1", "numerics": "bf16", "slots": "8", "kernels": machine.kind()},
        "runs": [run("mixed", 1.0), run("uniform-128", 1.0), run("mixed", 2.0)],
        "peak_rss_bytes": 2e9,
    }


def test_medians_with_their_spread(result):
    text = throughput_report.markdown_of(result)
    assert "| mixed | 750 (500–1,000) | 2,250 (1,500–3,000) | 0.50 (0.50–0.50) |" in text
    assert "| uniform-128 | 1,000 | 3,000 | 0.50 | 99.0% | 2.00 | 50% |" in text
    assert "XLA 300 GFLOP/s of bfloat16 products, 30 GB/s" in text
    assert "2 cores of a machine; 2030-01-02; jax 1, bf16, 8 slots." in text


def test_the_newest_results_are_the_document_s(result, document):
    throughput_report.record({**result, "date": "2029-12-31T23:59+00:00"})
    path, _ = throughput_report.record(result)
    assert path.name == "throughput-2030-01-02T0304.json"
    assert json.loads(path.read_text()) == result
    assert throughput_report.newest() == [result]
    section = f"before\n<!-- throughput {machine.kind()} -->\n| engine alone |"
    assert document.read_text().startswith(section)


def test_without_results_it_says_what_makes_them(document):
    with pytest.raises(FileNotFoundError, match="make bench writes one"):
        throughput_report.newest()


def test_the_limit_is_the_slower_of_products_and_reading():
    machine = Limits({"one": 1e9, "better": 2e9}, read_rate=1e9)
    assert machine.seconds(Work(4e9, 1e9)) == 2
    assert machine.seconds(Work(4e9, 5e9)) == 5


def test_the_least_work_of_a_workload():
    """Counted by hand: all products of the layers, the head for what is drawn or scored."""
    config = PRESETS["bench"]
    c = config
    attention = 2 * c.emb_size * c.key_size * (c.num_q_heads + c.num_kv_heads)
    experts = 2 * 3 * c.emb_size * c.ffn_size
    layer = attention + experts + c.emb_size * c.num_experts
    head = c.vocab_size * c.emb_size
    jobs = (workloads.Job(tuple(range(400, 410)), 0),)
    scored = limits.work_of(config, workloads.Workload("scoring", jobs), 10, 8)
    norms = 4 * c.emb_size
    assert scored.operations == pytest.approx(
        2 * 10 * (c.num_layers * layer + head), rel=2 * norms / layer
    )
    jobs = (workloads.Job(tuple(range(400, 410)), 6),)
    drawn = limits.work_of(config, workloads.Workload("uniform", jobs), 9, 8)
    assert drawn.operations < 2 * (15 * c.num_layers * layer + 6 * head) * 1.001
    assert drawn.operations > 2 * (6 * (c.num_layers * layer + head))


def test_turns_differ_and_none_is_shared():
    work = workloads.make("mixed")
    assert work.varied(0) == work
    turned = work.varied(1)
    assert [len(j.prompt) for j in turned.jobs] == [len(j.prompt) for j in work.jobs]
    assert not {j.prompt for j in turned.jobs} & {j.prompt for j in work.jobs}
