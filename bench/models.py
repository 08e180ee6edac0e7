"""The models that are measured: the bench checkpoint, its GGUF, and a Mixtral of the same shape."""

import json
import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from model.checkpoint.gguf_write import write_gguf
from model.checkpoint.safetensors_header import write_header
from model.checkpoint.source import open_checkpoint
from model.checkpoint.synth import synthesize
from model.config import PRESETS, Grok1Config

BENCH = PRESETS["bench"]
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """The bench model in the release's layout."""
    path = folder / "grok1"
    if not (path / "config.json").is_file():
        synthesize(str(path), BENCH)
    return path


def gguf(folder: pathlib.Path) -> pathlib.Path:
    """The same as GGUF, in bfloat16."""
    path = folder / "grok1-bf16.gguf"
    if not path.is_file():
        write_gguf(open_checkpoint(str(checkpoint(folder))), str(path))
    return path


def mixtral(folder: pathlib.Path) -> pathlib.Path:
    """A Mixtral of the same shape with random weights: the same products, the same cache."""
    path = folder / "mixtral"
    if not (path / "config.json").is_file():
        path.mkdir(parents=True, exist_ok=True)
        _write_mixtral(path, BENCH)
    return path


def _write_mixtral(path: pathlib.Path, config: Grok1Config) -> None:
    arrays = dict(_mixtral_arrays(config))
    random = np.random.default_rng(0)
    with open(path / "model.safetensors", "wb") as file:
        described = [(name, _BFLOAT16, shape) for name, shape in arrays.items()]
        file.write(write_header(described, made_for="pt"))
        for shape in arrays.values():
            values = np.ones(shape, np.float32)
            if len(shape) == 2:  # products keep the size of what they take
                values = random.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1]))
            file.write(values.astype(_BFLOAT16).tobytes())
    (path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["MixtralForCausalLM"],
                "model_type": "mixtral",
                "vocab_size": config.vocab_size,
                "hidden_size": config.emb_size,
                "intermediate_size": config.ffn_size,
                "num_hidden_layers": config.num_layers,
                "num_attention_heads": config.num_q_heads,
                "num_key_value_heads": config.num_kv_heads,
                "head_dim": config.key_size,
                "num_local_experts": config.num_experts,
                "num_experts_per_tok": config.num_selected_experts,
                "max_position_embeddings": config.sequence_len,
                "rms_norm_eps": config.rms_norm_eps,
                "rope_theta": config.rope_base,
                "tie_word_embeddings": True,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "dtype": "bfloat16",
            },
            indent=1,
        )
    )


def _mixtral_arrays(config: Grok1Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes [out, in], as its checkpoints have them."""
    d, f = config.emb_size, config.ffn_size
    q, kv = config.num_q_heads * config.key_size, config.num_kv_heads * config.key_size
    yield "model.embed_tokens.weight", (config.vocab_size, d)
    yield "model.norm.weight", (d,)
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (d,)
        yield f"{layer}.post_attention_layernorm.weight", (d,)
        for name, shape in (("q", (q, d)), ("k", (kv, d)), ("v", (kv, d)), ("o", (d, q))):
            yield f"{layer}.self_attn.{name}_proj.weight", shape
        yield f"{layer}.block_sparse_moe.gate.weight", (config.num_experts, d)
        for expert in range(config.num_experts):
            for name, shape in (("w1", (f, d)), ("w2", (d, f)), ("w3", (f, d))):
                yield f"{layer}.block_sparse_moe.experts.{expert}.{name}.weight", shape
