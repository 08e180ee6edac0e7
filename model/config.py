"""The shape of a Grok-1-architecture model: one frozen config, and its presets.

Axis letters, the same everywhere: B sequences (slots), T query positions, S cache positions,
D model width, H query heads, K key/value heads, N head size, E experts, F expert width,
V vocabulary, L layers, G scale groups.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from schemas.error import SetupError

_MAX_SIZE = 1 << 24
"""No size of a real model is larger; a config file is untrusted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grok1Config:
    """Sizes and constants of the network, by the keys of a checkpoint's ``config.json``.

    Attributes:
      vocab_size: V.
      emb_size: D.
      num_layers: L.
      num_q_heads: H.
      num_kv_heads: K; query head h reads KV head h // (H / K).
      key_size: N.
      ffn_size: F.
      num_experts: E.
      num_selected_experts: experts that see a token.
      sequence_len: longest context in tokens.
      attn_output_multiplier: factor on attention logits before the cap.
      embedding_multiplier_scale: factor on input embeddings.
      output_multiplier_scale: factor on logits.
      pad_token: id that pads; never special to attention here, which goes by lengths.
      eos_token: id that ends a text.
      rope_base: base of the rotary frequencies.
      rms_norm_eps: added to the mean square.
      model_shards: G of the row-parallel weights (attention output, expert down projection).
      attn_logit_cap: attention logits are cap * tanh(logits / cap).
    """

    vocab_size: int
    emb_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    key_size: int
    ffn_size: int
    num_experts: int = 8
    num_selected_experts: int = 2
    sequence_len: int
    attn_output_multiplier: float
    embedding_multiplier_scale: float
    output_multiplier_scale: float = 0.5773502691896257
    pad_token: int = 0
    eos_token: int = 2
    rope_base: float = 10000.0
    rms_norm_eps: float = 1e-5
    model_shards: int = 8
    attn_logit_cap: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                low = 0 if field.name.endswith("_token") else 1
                ok = type(value) is int and low <= value <= _MAX_SIZE
                want = f"an integer between {low} and {_MAX_SIZE}"
            else:
                ok = isinstance(value, int | float) and not isinstance(value, bool)
                ok = ok and math.isfinite(value) and value > 0
                want = "a positive number"
            if not ok:
                raise SetupError(f"config: {field.name} must be {want}, got {value!r:.40}")
        self._divides("num_kv_heads", self.num_kv_heads, "num_q_heads", self.num_q_heads)
        self._divides("2", 2, "key_size", self.key_size)
        shards = ("model_shards", self.model_shards)
        self._divides(*shards, "ffn_size", self.ffn_size)
        self._divides(*shards, "num_q_heads * key_size", self.num_q_heads * self.key_size)
        if self.num_selected_experts > self.num_experts:
            raise SetupError(
                f"config: num_selected_experts ({self.num_selected_experts}) exceeds "
                f"num_experts ({self.num_experts})"
            )
        for name in ("pad_token", "eos_token"):
            if getattr(self, name) >= self.vocab_size:
                raise SetupError(f"config: {name} is outside the vocabulary of {self.vocab_size}")

    @staticmethod
    def _divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
        if value % divisor:
            raise SetupError(f"config: {divisor_name} ({divisor}) must divide {name} ({value})")

    @property
    def num_params(self) -> int:
        """Parameters of the whole model, the tied embedding counted once."""
        d, f = self.emb_size, self.ffn_size
        attention = 2 * d * self.key_size * (self.num_q_heads + self.num_kv_heads)
        layer = attention + 3 * self.num_experts * d * f + d * self.num_experts + 4 * d
        return self.vocab_size * d + d + self.num_layers * layer

    @property
    def active_params(self) -> int:
        """Parameters that one token's forward pass multiplies with, the output head included."""
        idle = 3 * (self.num_experts - self.num_selected_experts) * self.emb_size * self.ffn_size
        return self.num_params - self.num_layers * idle

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Grok1Config":
        """A config from ``config.json``'s keys; ``ffn_size`` follows from ``widening_factor``.

        Raises:
          SetupError: a key is unknown, missing or out of bounds.
        """
        values = dict(values)
        widening = values.pop("widening_factor", None)
        if "ffn_size" not in values and widening is not None and "emb_size" in values:
            values["ffn_size"] = ffn_size(values["emb_size"], widening)
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise SetupError(f"config: unknown key {unknown[0]!r:.60}")
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise SetupError(f"config: missing {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Grok1Config":
        """A config from the text of ``config.json``.

        Raises:
          SetupError: the text is no JSON object, or its values are wrong.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SetupError(f"config: not readable as JSON: {error}") from None
        if not isinstance(values, dict):
            raise SetupError("config: must be a JSON object")
        return cls.from_mapping(values)

    def to_json(self) -> str:
        """The text of a ``config.json`` that reads back as this config."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def ffn_size(emb_size: int, widening_factor: float) -> int:
    """The release's rule for F: two thirds of the widened size, rounded up to a multiple of 8."""
    size = int(widening_factor * emb_size) * 2 // 3
    return size + (8 - size) % 8


GROK_1 = Grok1Config(
    vocab_size=131072,
    emb_size=6144,
    num_layers=64,
    num_q_heads=48,
    num_kv_heads=8,
    key_size=128,
    ffn_size=32768,
    sequence_len=8192,
    attn_output_multiplier=0.08838834764831845,
    embedding_multiplier_scale=78.38367176906169,
)
"""The released model: 314 B parameters."""

PRESETS: dict[str, Grok1Config] = {
    "grok-1": GROK_1,
    "bench": Grok1Config(
        vocab_size=8192,
        emb_size=512,
        num_layers=8,
        num_q_heads=8,
        num_kv_heads=4,
        key_size=64,
        ffn_size=2736,
        sequence_len=1024,
        attn_output_multiplier=0.125,
        embedding_multiplier_scale=22.627416997969522,
    ),
    "tiny": Grok1Config(
        vocab_size=1024,
        emb_size=32,
        num_layers=12,
        num_q_heads=16,
        num_kv_heads=8,
        key_size=8,
        ffn_size=176,
        sequence_len=256,
        attn_output_multiplier=0.35355339059327373,
        embedding_multiplier_scale=2.0,
    ),
}
"""Named configs for ``grok1 synth --preset``."""
