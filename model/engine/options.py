"""How an engine is set up. No JAX: a submitting machine builds these too."""

import dataclasses

from model.config import Grok1Config
from schemas.error import SetupError

NUMERICS = ("release", "bf16", "float32")
"""Numerics modes. ``release`` rounds to bfloat16 where the release does; ``bf16`` keeps bfloat16
activations, quantised weights with scales after the product, and float32 sums; ``float32`` is for
tests and truth."""

NUMERICS_VERSION = 3
"""Bumped by hand when a change of the code changes the bits of a result."""

KERNELS = ("auto", "plain")
"""Whether a backend's own kernels are used where they can be, or XLA's products everywhere."""

COLLECTIVES = ("ordered", "psum")
"""How partial sums of devices meet: in rank order (bitwise the same for every row), or psum."""

KV_CACHE_DTYPES = ("auto", "int8")
"""What keys and values are kept as: the mode's activations, or int8 with a scale for each vector,
half the bytes for a little error."""


ACCELERATOR_SLOTS = 256
"""Sequences that a TPU or GPU host decodes at once, unless told otherwise."""

CPU_SLOTS = 128
"""The same of a CPU: there a step's tiles follow the load, so that a small job pays for no more."""

DRAFTS = 4
"""Most tokens of a sequence that are drafted for a step, unless told otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of one engine; a None is chosen from the machine and recorded in ``provenance``.

    Attributes:
      numerics: one of ``NUMERICS``.
      slots: sequences decoded at once, by each replica.
      max_context: longest prompt plus completion kept in the cache, in tokens; at most the model's.
      block_size: C, tokens of a cache page; prompts are cut and prefixes shared at its multiples.
      cache_tokens: capacity of the cache over all sequences of a replica.
      devices: that share one copy of the model, 1, 2, 4 or 8.
      replicas: copies of the model, each with devices, slots and cache of its own.
      collectives: one of ``COLLECTIVES``.
      kv_cache_dtype: one of ``KV_CACHE_DTYPES``.
      kernels: one of ``KERNELS``.
      prefill_rows: prompt tokens of one prefill step.
      steps_per_round: decode steps on the device between two looks of the host.
      draft_tokens: most tokens of a sequence that are looked up in what it holds and run beside its
        last, in rows that would idle; 0 for none. Results are the same with any.
      row_deadline: seconds from a sample's admission after which its row is an error; None for
        never.
      compile_cache: folder where compiled steps are kept for the next start, or ``none``; None is
        one of the account's own.
      tuning: folder where a GPU's choices of kernels are kept for the next start; None keeps none.
    """

    numerics: str = "bf16"
    slots: int | None = None
    max_context: int | None = None
    block_size: int | None = None
    cache_tokens: int | None = None
    devices: int | None = None
    replicas: int | None = None
    collectives: str = "ordered"
    kv_cache_dtype: str = "auto"
    kernels: str = "auto"
    prefill_rows: int | None = None
    steps_per_round: int | None = None
    draft_tokens: int | None = None
    row_deadline: float | None = None
    tuning: str | None = dataclasses.field(default=None, compare=False)
    compile_cache: str | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("numerics", NUMERICS),
            ("collectives", COLLECTIVES),
            ("kv_cache_dtype", KV_CACHE_DTYPES),
            ("kernels", KERNELS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                flag = name.replace("_", "-")
                raise SetupError(f"--{flag} must be one of {', '.join(allowed)}, got {value!r}")
        for name in (
            "slots",
            "max_context",
            "block_size",
            "cache_tokens",
            "prefill_rows",
            "steps_per_round",
            "replicas",
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                flag = name.replace("_", "-")
                raise SetupError(f"--{flag} must be a positive integer, got {value!r}")
        drafts = self.draft_tokens
        if drafts is not None and (type(drafts) is not int or drafts < 0):
            raise SetupError(f"--draft-tokens must be 0 or more, got {drafts!r}")
        if self.row_deadline is not None and not self.row_deadline > 0:
            raise SetupError(f"--row-deadline must be above 0 seconds, got {self.row_deadline!r}")
        if self.devices not in (None, 1, 2, 4, 8):
            raise SetupError(f"--devices must be 1, 2, 4 or 8, got {self.devices!r}")

    def context_of(self, config: Grok1Config) -> int:
        """Longest prompt plus completion, in tokens, of a model.

        Raises:
          SetupError: more is asked for than the model was made for.
        """
        if (self.max_context or 0) > config.sequence_len:
            raise SetupError(
                f"--max-context {self.max_context} exceeds the {config.sequence_len} tokens of "
                "the model's context; give that or less"
            )
        return self.max_context or config.sequence_len


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Counters of an engine since it was made.

    Attributes:
      load_seconds: reading and placing the weights.
      compile_seconds: compiling the steps.
      busy_seconds: time with at least one request in the engine.
      requests: requests answered.
      prompt_tokens: prompt tokens of answered requests.
      prefilled_tokens: prompt tokens computed, less than the former where prefixes were shared.
      scored_tokens: continuation tokens scored, prompts' own aside.
      completion_tokens: tokens drawn and kept.
      decode_rows: rows of all decode steps, used or not.
      decode_rows_used: those that drew a token.
      decode_rows_waiting: rows left empty while a request waited for a slot.
      decode_rows_wanted: rows of the steps during which one did.
      drafted_tokens: tokens that were run before they were known to come.
      accepted_tokens: those of them that came.
    """

    load_seconds: float = 0.0
    compile_seconds: float = 0.0
    busy_seconds: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    scored_tokens: int = 0
    completion_tokens: int = 0
    decode_rows: int = 0
    decode_rows_used: int = 0
    decode_rows_waiting: int = 0
    decode_rows_wanted: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def slot_occupancy(self) -> float:
        """Share of decode rows that drew a token; 0 before the first step."""
        return self.decode_rows_used / self.decode_rows if self.decode_rows else 0.0

    @property
    def occupancy_while_waiting(self) -> float:
        """The same of the steps during which a request waited for a slot; 1 if none ever did."""
        return 1 - self.decode_rows_waiting / max(1, self.decode_rows_wanted)
