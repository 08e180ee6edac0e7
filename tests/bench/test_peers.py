import argparse
import dataclasses
import json
import subprocess
import xml.etree.ElementTree
import zipfile

import pytest

from bench import environments, machine, markdown, models, peers, peers_report
from bench.environments import Environment
from bench.peers import Peer
from bench.workloads import Job, Workload
from model.checkpoint.safetensors_header import read_header
from model.config import PRESETS

RUNS = {  # seconds for 1000 tokens, round by round
    "grok1": [1.0, 2.0, 1.5],
    "other": [2.0, 3.0, 3.0],
}


@pytest.fixture
def report():
    rounds = [
        {
            name: {
                "versions": {f"package-of-{name}": "1.0"},
                "load_seconds": 1.0,
                "runs": [{"workload": "mixed", "seconds": seconds[i], "output_tokens": 1000}],
            }
            for name, seconds in RUNS.items()
        }
        for i in range(3)
    ]
    return peers_report.Report({"grok1": "this engine", "other": "the other"}, rounds, {"mixed": 5})


def test_a_peer_is_compared_within_each_round(report):
    assert report.rates("grok1", "mixed") == pytest.approx([1000, 500, 667], abs=1)
    assert report.ratio("other", "mixed") == pytest.approx(2.0)  # of 2.0, 1.5 and 2.0
    text = report.markdown()
    assert "| this engine | 667 (500–1,000) |" in text
    assert "| the other | 2.00× |" in text
    assert "package-of-grok1 1.0, package-of-other 1.0" in text


def test_what_a_peer_did_not_run_is_left_open(report):
    more = dataclasses.replace(report, rows={"mixed": 5, "best-of": 2})
    assert more.ratio("other", "best-of") is None
    assert "| the other | 2.00× | – |" in more.markdown()


def test_peers_and_work_are_chosen_by_name():
    assert peers._peer("vllm-zen:mixed,best-of").work == ("mixed", "best-of")
    assert len(peers._work("mixed:7").jobs) == 7
    with pytest.raises(argparse.ArgumentTypeError, match="no peer 'x'"):
        peers._peer("x")
    with pytest.raises(argparse.ArgumentTypeError, match="no work 'x'"):
        peers._work("x:3")


def test_the_plot_shows_every_peer(report):
    pytest.importorskip("vl_convert")
    text = "".join(xml.etree.ElementTree.fromstring(report.plot()).itertext())
    assert "this engine" in text
    assert "the other" in text
    assert "mixed" in text


def test_results_are_recorded(report, tmp_path, monkeypatch):
    pytest.importorskip("vl_convert")
    document = tmp_path / "performance.md"
    monkeypatch.setattr(machine, "kind", lambda: "abacus")
    document.write_text("# Before\n<!-- peers abacus -->\nold\n<!-- /peers abacus -->\nafter\n")
    monkeypatch.setattr(peers_report, "_RESULTS", tmp_path / "results")
    monkeypatch.setattr(peers_report, "_DOCUMENT", document)
    results, _, plot = report.record()
    text = document.read_text()
    assert text.startswith("# Before\n<!-- peers abacus -->\n| output tokens/s")
    assert text.endswith("![the same as bars](peers-abacus.svg)\n<!-- /peers abacus -->\nafter\n")
    assert json.loads(results.read_text())["rounds"] == report.rounds
    assert plot.read_text().startswith("<svg")


def test_a_document_without_marks_is_left_alone(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(ValueError, match="has no marks <!-- peers -->"):
        markdown.replace(tmp_path / "a.md", "peers", "new")
    assert (tmp_path / "a.md").read_text() == "text"


@pytest.fixture
def ours(tiny):
    return Peer("grok1", "ours", None, "run_grok1.py", lambda folder: tiny, {"slots": 8})


@pytest.fixture
def work():
    jobs = (Job((400, 401, 402), 5), Job((400, 403), 3, n=2))
    return [Workload("one", jobs), Workload("two", jobs[:1])]


@pytest.mark.slow
def test_a_runner_does_the_work(ours, work, tmp_path):
    """The whole way: a process, the engine in it, and what it says."""
    result = peers.measure(ours, tmp_path, work)
    assert result["load_seconds"] > 0
    assert set(result["versions"]) == {"jax", "jaxlib"}
    assert [(r["workload"], r["output_tokens"]) for r in result["runs"]] == [
        ("one", 11),
        ("two", 5),
    ]
    assert all(run["seconds"] > 0 for run in result["runs"])


def test_a_peer_that_fails_says_why(ours, work, tmp_path):
    broken = dataclasses.replace(ours, settings={"slots": 0})
    with pytest.raises(RuntimeError, match=r"(?s)^grok1 failed:.*slots"):
        peers.measure(broken, tmp_path, work)


def test_libraries_are_preloaded_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "_SYSTEM_LIBRARIES", ())
    (tmp_path / "peer" / "lib").mkdir(parents=True)
    library = tmp_path / "peer" / "lib" / "libfast.so.4"
    library.touch()
    found = Environment("peer", (), preload=("libfast", "liblost")).variables()
    assert found["LD_PRELOAD"] == str(library)
    assert "no liblost to preload" in capsys.readouterr().err


def wheel(folder, version) -> str:
    """A package ``pearl`` that says its version, as a file."""
    path = folder / f"pearl-{version}-py3-none-any.whl"
    info = f"pearl-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pearl.py", f"version = {version!r}\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: pearl\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return str(path)


def test_an_environment_is_made_once(tmp_path, monkeypatch, capsys):
    pytest.importorskip("uv")
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "envs")
    for version in ("1.0", "2.0"):
        peer = Environment("peer", (wheel(tmp_path, version),))
        peer.make()
        asked = [peer.python, "-c", "import pearl; print(pearl.version)"]
        assert subprocess.run(asked, capture_output=True, text=True).stdout == f"{version}\n"
        assert "installing" in capsys.readouterr().out
        peer.make()
        assert capsys.readouterr().out == ""


def test_the_mixtral_has_the_bench_models_shape(tmp_path, monkeypatch):
    shape = dataclasses.replace(PRESETS["tiny"], num_layers=2, ffn_size=32)
    monkeypatch.setattr(models, "BENCH", shape)
    path = models.mixtral(tmp_path)
    data = (path / "model.safetensors").read_bytes()
    arrays = read_header(lambda a, b: data[a:b], len(data), "the file")
    assert arrays["model.layers.1.block_sparse_moe.experts.7.w2.weight"].shape == (32, 32)
    assert arrays["model.layers.0.self_attn.k_proj.weight"].shape == (64, 32)
    numbers = sum(array.length // 2 for array in arrays.values())
    # Ours has two more norms in each layer.
    assert numbers == shape.num_params - 2 * shape.num_layers * shape.emb_size
    assert json.loads((path / "config.json").read_text())["num_key_value_heads"] == 8
