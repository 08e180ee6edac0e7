"""What the two ports to Hugging Face call the tensors and the sizes of Grok-1."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from model.config import GROK_1, Grok1Config
from model.params import Tensor
from schemas.error import SetupError

HEAD = "lm_head.weight"
"""The output head, where a port stores it beside the embedding, which it equals."""

_SHARD = re.compile(r"[\w.-]+\.safetensors")


@dataclasses.dataclass(frozen=True)
class Port:
    """One port.

    Attributes:
      layer: what the name of a layer's tensor begins with.
      names: by parameter; ``{e}`` stands for the expert.
    """

    layer: str
    names: Mapping[str, str]

    def names_of(self, tensor: Tensor) -> list[str]:
        """The names of a tensor: one, or one for each expert."""
        start = "" if tensor.layer is None else f"{self.layer}.{tensor.layer}."
        name = start + self.names[tensor.param.name]
        if "experts" not in tensor.param.axes:
            return [name]
        return [name.format(e=expert) for expert in range(count_names(tensor))]


PORTS = (
    Port(  # hpcai-tech/grok-1
        "model.layers",
        {
            "embedding": "model.embed_tokens.weight",
            "final_norm": "model.norm.scale",
            "query": "attn.q_proj.weight",
            "key": "attn.k_proj.weight",
            "value": "attn.v_proj.weight",
            "attn_out": "attn.o_proj.weight",
            "attn_norm": "pre_attn_norm.scale",
            "attn_post_norm": "post_attn_norm.scale",
            "moe_norm": "pre_moe_norm.scale",
            "moe_post_norm": "post_moe_norm.scale",
            "router": "moe_block.gate.weight",
            "gate": "moe_block.experts.{e}.linear.weight",
            "up": "moe_block.experts.{e}.linear_v.weight",
            "down": "moe_block.experts.{e}.linear_1.weight",
        },
    ),
    Port(  # keyfan/grok-1-hf
        "transformer.decoder_layer",
        {
            "embedding": "transformer.in_out_embed.weight",
            "final_norm": "transformer.rms_norm.scale",
            "query": "multi_head_attention.query.weight",
            "key": "multi_head_attention.key.weight",
            "value": "multi_head_attention.value.weight",
            "attn_out": "multi_head_attention.linear.weight",
            "attn_norm": "rms_norm.scale",
            "attn_post_norm": "rms_norm_1.scale",
            "moe_norm": "rms_norm_2.scale",
            "moe_post_norm": "rms_norm_3.scale",
            "router": "router.weight",
            "gate": "moe.{e}.linear.weight",
            "up": "moe.{e}.linear_v.weight",
            "down": "moe.{e}.linear_1.weight",
        },
    ),
)


def count_names(tensor: Tensor) -> int:
    """How many names a port has for a tensor."""
    return tensor.param.shape[0] if "experts" in tensor.param.axes else 1


def find_port(names: Collection[str]) -> Port | None:
    """The port that calls its tensors so; None if it is another model's."""
    known = set(names)
    for port in PORTS:
        if {port.names["embedding"], f"{port.layer}.0.{port.names['router']}"} <= known:
            return port
    return None


_SIZES = {
    "vocab_size": "vocab_size",
    "emb_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_q_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
_OTHERS = {
    "num_experts": ("num_experts", "num_local_experts"),
    "num_selected_experts": ("num_experts_per_tok",),
    "sequence_len": ("max_position_embeddings",),
    "attn_output_multiplier": ("attn_output_multiplier",),
    "embedding_multiplier_scale": ("embedding_multiplier_scale",),
    "output_multiplier_scale": ("output_multiplier_scale",),
    "rms_norm_eps": ("rms_norm_eps",),
    "attn_logit_cap": ("max_attn_value",),
    "key_size": ("head_dim",),
    "eos_token": ("eos_token_id",),
    "pad_token": ("pad_token_id",),
}


def port_config(values: Mapping[str, Any]) -> Grok1Config:
    """The config of a port's ``config.json``.

    A port of the released size has the released model's constants, whatever it says itself: one
    says a rotary base of 100,000 and a context of 4096, of which the model has 10,000 and 8192.

    Raises:
      SetupError: a size is missing or makes no sense.
    """
    if missing := [name for name in _SIZES.values() if name not in values]:
        raise SetupError(f"config: missing {', '.join(missing)}")
    sizes = {ours: values[theirs] for ours, theirs in _SIZES.items()}
    if all(getattr(GROK_1, name) == size for name, size in sizes.items()):
        return GROK_1
    found: dict[str, Any] = dict(sizes)
    for ours, names in _OTHERS.items():
        for theirs in names:
            if values.get(theirs) is not None:
                found[ours] = values[theirs]
    heads, width = sizes["num_q_heads"], sizes["emb_size"]
    if "key_size" not in found and type(heads) is int and type(width) is int and heads > 0:
        found["key_size"] = width // heads
    return Grok1Config.from_mapping(found)


def to_port_config(config: Grok1Config) -> dict[str, Any]:
    """The ``config.json`` of the port hpcai-tech/grok-1, whose code transformers fetches."""
    values: dict[str, Any] = {
        "model_type": "grok-1",
        "architectures": ["Grok1ModelForCausalLM"],
        "auto_map": {
            "AutoConfig": "hpcai-tech/grok-1--configuration_grok1.Grok1Config",
            "AutoModelForCausalLM": "hpcai-tech/grok-1--modeling_grok1.Grok1ModelForCausalLM",
        },
    }
    values |= {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    values |= {theirs[0]: getattr(config, ours) for ours, theirs in _OTHERS.items()}
    return {**values, "bos_token_id": 1, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}


def weight_map(index: Mapping[str, Any], where: str) -> dict[str, str]:
    """Each tensor's shard, of an index that is believed in nothing.

    Raises:
      SetupError: it is none, or names a file that does not lie beside it.
    """
    found = index.get("weight_map")
    if not isinstance(found, dict):
        raise SetupError(f"{where} has no weight_map: complete the download")
    for name, shard in found.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise SetupError(
                f"{where} names {shard!r:.60} for {name!r:.60}, which is no safetensors file "
                "beside it; get the index anew, from a source that you trust"
            )
    return found
