"""Writes checkpoints as the ports to Hugging Face have them, for tests."""

import json
import pathlib

import ml_dtypes
import numpy as np
import safetensors.numpy

from model.checkpoint.ports import HEAD, PORTS, Port
from model.checkpoint.source import open_checkpoint

HPCAI, KEYFAN = PORTS


def port_arrays(source: str, port: Port, dtype=ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    """A checkpoint's tensors under a port's names: numbers, matrices as [out, in]."""
    arrays = {}
    for tensor, host in open_checkpoint(source).stream():
        if host.scales is not None:
            groups = host.scales.shape[-2]
            *lead, rows, out = host.values.shape
            wide = host.values.astype(np.float32).reshape(*lead, groups, rows // groups, out)
            wide = wide * host.scales.astype(np.float32)[..., None, :]
            numbers = np.swapaxes(wide.reshape(*lead, rows, out), -1, -2)
        else:
            numbers = host.values.T if tensor.param.name == "router" else host.values
        names = port.names_of(tensor)
        each = numbers if len(names) > 1 else [numbers]
        for name, array in zip(names, each, strict=True):
            arrays[name] = np.ascontiguousarray(array.astype(dtype))
    if port is HPCAI:
        arrays[HEAD] = arrays[port.names["embedding"]].copy()
    return arrays


def port_values(source: str) -> dict:
    """The ``config.json`` of a port."""
    c = open_checkpoint(source).config
    return {
        "model_type": "grok-1",
        "vocab_size": c.vocab_size,
        "hidden_size": c.emb_size,
        "intermediate_size": c.ffn_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_q_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.key_size,
        "max_position_embeddings": c.sequence_len,
        "attn_output_multiplier": c.attn_output_multiplier,
        "max_attn_value": c.attn_logit_cap,
        "embedding_multiplier_scale": c.embedding_multiplier_scale,
        "output_multiplier_scale": c.output_multiplier_scale,
        "num_experts": c.num_experts,
        "num_experts_per_tok": c.num_selected_experts,
        "bos_token_id": 1,
        "eos_token_id": c.eos_token,
        "pad_token_id": c.pad_token,
        "tie_word_embeddings": True,
    }


def write_port(folder: pathlib.Path, arrays: dict, values: dict, shards: int = 3) -> str:
    """Writes a port's folder with so many shards, by the format's own library."""
    folder.mkdir(exist_ok=True)
    names = sorted(arrays)
    shard_of = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard::shards]
        shard_of |= dict.fromkeys(own, file)
        safetensors.numpy.save_file({n: arrays[n] for n in own}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)
