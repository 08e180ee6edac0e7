"""Whether the full model fits a machine that is not here, found by compiling for it. No JAX here.

Each check is a process of its own: the compilers for TPUs and GPUs want to be set up before JAX is
imported, and hold memory afterwards.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from model.machines import MachineProfile, decode_floor, prefill_floor
from model.room import MOST_SLOTS, Question, room_for
from schemas.error import SetupError

_TRIES = 4
"""Compiles that the search for the most slots may take."""

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # libtpu: no metadata server, no lock on devices, no logs.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""Of the process that compiles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The compiler's answer; bytes are those of one device.

    Attributes:
      question: with the slots that were tried.
      weights_bytes: the weights.
      cache_bytes: keys and values of all slots.
      slots_bytes: what else is kept of the slots: their state, and tables for sampling.
      steps: what each step took, as ``topology.compile_step`` gives it.
      max_slots: most sequences that fit; None if that was not asked.
    """

    question: Question
    weights_bytes: int
    cache_bytes: int
    slots_bytes: int
    steps: dict[str, dict[str, Any]]
    max_slots: int | None = None

    @property
    def limit_bytes(self) -> int:
        """What programs may use."""
        return self.question.profile.usable_bytes

    @property
    def refused(self) -> bool:
        """Whether the compiler itself found that memory does not suffice."""
        return any(step["refused"] for step in self.steps.values())

    @property
    def code_bytes(self) -> int:
        """The programs themselves, all of which stay on the device."""
        return sum(step.get("code_bytes", 0) for step in self.steps.values())

    @property
    def temporaries_bytes(self) -> int:
        """Of the step that needs most."""
        return max(step.get("temporaries_bytes", 0) for step in self.steps.values())

    @property
    def peak_bytes(self) -> int:
        """Of the step that needs most, and the programs."""
        step = max(step["peak_bytes"] for step in self.steps.values())
        # A compiler that refuses may count only a part.
        kept = self.weights_bytes + self.cache_bytes + self.slots_bytes
        return max(step, kept) + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether all is within the limit."""
        return not self.refused and self.peak_bytes <= self.limit_bytes

    @property
    def layer_collectives(self) -> dict[str, int]:
        """Exchanges of one layer in a decode step."""
        return self.steps["decode"].get("layer_collectives", {})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: GiB of one device, and tokens a second over all."""
        question, machine = self.question, self.question.profile
        gib = {
            name: round(getattr(self, f"{name}_bytes") / 2**30, 3)
            for name in ("peak", "limit", "weights", "cache", "slots", "temporaries", "code")
        }
        cache = 2.0 if question.kv_cache_dtype == "auto" else 1 + 4 / question.config.key_size
        return {
            "machine": question.machine,
            "devices": machine.devices,
            "weights": question.weights,
            "numerics": question.numerics,
            "kv_cache_dtype": question.kv_cache_dtype,
            "context": question.context,
            "slots": question.slots,
            "fits": self.fits,
            "refused_by_compiler": self.refused,
            **{f"{name}_gib": value for name, value in gib.items()},
            "max_slots": self.max_slots,
            "collectives_per_layer": self.layer_collectives,
            "decode_floor_tokens_per_second": round(
                decode_floor(
                    machine,
                    question.config,
                    slots=question.slots or 0,
                    context=question.context,
                    weights=question.weights,
                    cache_bytes=cache,
                )
            ),
            "prefill_floor_tokens_per_second": round(prefill_floor(machine, question.config)),
            "steps": self.steps,
        }


def compile_for(question: Question, steps: tuple[str, ...] | None = None) -> Fit:
    """Compiles steps for the machine, by default all, with nothing attached.

    Raises:
      SetupError: a package that compiles for it is not installed.
    """
    _require_compiler(question.profile)
    asked = {
        "machine": question.machine,
        "config": dataclasses.asdict(question.config),
        "options": dataclasses.asdict(question.options()),
        "weights": question.weights,
        "steps": steps,
    }
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-m", "model.topology"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        raise RuntimeError(f"compiling for {question.machine} failed: {last[0]}")
    return Fit(question=question, **json.loads(ran.stdout))


def find_fit(question: Question) -> Fit:
    """Compiles all steps for the slots that are asked, or for the most that fit, which it finds.

    The most come from arithmetic, and are then compiled, since temporaries grow with them; what
    that takes corrects the arithmetic.
    """
    devices = question.profile.devices
    start = question.slots or max(room_for(question).max_slots, devices)
    sized = dataclasses.replace(question, slots=start)
    asked = compile_for(sized, None if question.slots else _LARGE)
    tried, found = asked, start if asked.fits else 0
    for _ in range(_TRIES):
        most = min(_slots_that_fit(tried), MOST_SLOTS)
        if not tried.fits:
            most = min(most, (tried.question.slots or 0) - devices)
        if most <= found:
            break
        tried = compile_for(dataclasses.replace(question, slots=most), _LARGE)
        if tried.fits:
            found = most
            break
    if question.slots is None:
        asked = compile_for(dataclasses.replace(question, slots=found or start))
        # The programs of the other steps stay on the device too.
        while found and not asked.fits:
            found = max(min(_slots_that_fit(asked), found - devices), 0)
            asked = compile_for(dataclasses.replace(question, slots=found or devices))
    return dataclasses.replace(asked, max_slots=found)


_LARGE = ("prefill", "score", "decode")
"""Steps whose temporaries count."""


def _slots_that_fit(fit: Fit) -> int:
    """By arithmetic: what weights, temporaries and programs leave, in whole contexts of cache."""
    question = fit.question
    assert question.slots is not None
    free = fit.limit_bytes - fit.weights_bytes - fit.temporaries_bytes - fit.code_bytes
    each = (fit.cache_bytes + fit.slots_bytes) / question.slots
    devices = question.profile.devices
    return max(int(free / each) // devices * devices, 0)


def _require_compiler(machine: MachineProfile) -> None:
    """Raises SetupError unless the packages that compile for a machine are installed."""
    if machine.platform == "tpu":
        missing = [name for name in ("libtpu",) if importlib.util.find_spec(name) is None]
    else:
        missing = [] if importlib.util.find_spec("jax_cuda13_plugin") else ["jax-cuda13-plugin"]
        if shutil.which("ptxas") is None and not _shipped_ptxas():
            missing.append("nvidia-cuda-nvcc")
    if missing:
        raise SetupError(
            f"--machine {machine.name}: compiling for it needs {' and '.join(missing)}; "
            "install grok1-batch[aot], best in an environment of its own (make aot)"
        )


def _shipped_ptxas() -> bool:
    """Whether the assembler came with NVIDIA's package for Python."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return any(list(Path(place).glob("cu13/bin/ptxas")) for place in places or ())
