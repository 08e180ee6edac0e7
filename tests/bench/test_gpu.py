import json

import pytest

from bench import gpu
from bench.device_slice import slice_of
from model.config import GROK_1
from model.machines import weight_bytes


def test_a_slice_is_an_eighth_of_what_is_split_and_the_rest_whole():
    part = slice_of(GROK_1, 8)
    assert (part.num_q_heads, part.num_kv_heads, part.ffn_size) == (6, 1, 4096)
    assert (part.emb_size, part.num_layers, part.vocab_size) == (6144, 64, 16384)
    # 39.4 GB of int8 matrices, and norms and router, which every device has.
    assert weight_bytes(part, "int8") == pytest.approx(39.6e9, rel=5e-3)


def test_exchanges_on_paper():
    # Each device sends 7/8 of 256 rows of 6144 bfloat16 numbers, four times a layer.
    sent = 64 * 4 * 256 * 6144 * 2 * 7 / 8
    assert gpu.exchange_seconds(GROK_1, 256, 450e9) == pytest.approx(sent / 450e9)


@pytest.mark.slow
def test_it_runs_where_there_is_no_gpu(tmp_path, capsys):
    """The same steps at a small size: what is measured here says nothing of a GPU."""
    file = tmp_path / "gpu.json"
    sizes = {"layers": 2, "scale": 32, "batch": 8, "context": 64, "rounds": 1, "json": file}
    assert gpu.main([f"--{name}={value}" for name, value in sizes.items()]) == 0
    text = capsys.readouterr().out
    assert "Exchanges are computed, not measured." in text
    found = json.loads(file.read_text())
    kinds = [(r["what"], r["weights"]) for r in found["results"]]
    assert kinds == [(w, k) for k in ("int8", "int4") for w in ("prefill", "decode")]
    for result in found["results"]:
        assert 0 < result["with_exchanges"] < result["tokens_per_second"]
        assert result["share"] > 0
