"""What this machine could do at best: products of bfloat16 a second, bytes read a second.

The rate of products is the best of all that can be had here: XLA's best form, this project's
kernels, and oneDNN's packed product, from PyPI, where a compiler is (``bench/onednn.cc``); of the
latter also with float32 operands, which is faster where a CPU has no product of bfloat16.

All is counted by CPU seconds of all cores together: other programs on the machine take time from
a measurement and from what it is compared with, but not from either's CPU seconds.
"""

import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench.machine import cores
from bench.workloads import Workload
from model.config import Grok1Config
from model.kernels.cpu import build, products

ONEDNN = "onednn-devel-cpu-gomp==2023.2.0"
"""The last oneDNN on PyPI that needs no SYCL runtime, which is 2 GB and finds no device here."""

_ROWS, _WIDTH, _COLUMNS, _EXPERTS = 512, 512, 5472, 8
_READ_BYTES = 1 << 29
_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates of a machine.

    Attributes:
      products: floating-point operations a second of each library.
      read_rate: bytes of memory a second, by all cores.
      instruction_rate: operations a second of the multiplying instruction by itself, which no
        library reaches; 0 where it was not measured.
    """

    products: dict[str, float]
    read_rate: float
    instruction_rate: float = 0.0

    @property
    def product_rate(self) -> float:
        """The best."""
        return max(self.products.values())

    def seconds(self, work: "Work") -> float:
        """The least time for some work: all products at the best rate, or all bytes read."""
        return max(work.operations / self.product_rate, work.bytes_read / self.read_rate)


@dataclasses.dataclass(frozen=True)
class Work:
    """What cannot be done without.

    Attributes:
      operations: floating-point operations of products with weights.
      bytes_read: of weights, once a step, and of cached keys and values.
    """

    operations: float
    bytes_read: float


def work_of(config: Grok1Config, workload: Workload, computed: int, rows: int) -> Work:
    """The work of a workload.

    A prompt token goes through all layers but needs no more of the last than its keys and values,
    and no head; neither does a prefix that others share count again.

    Args:
      config: the model.
      workload: what is asked.
      computed: prompt tokens that were run.
      rows: tokens that a step may hold, for the steps that read the weights.
    """
    c = config
    head = c.vocab_size * c.emb_size
    layer = (c.active_params - head) / c.num_layers
    kept = 2 * c.emb_size * c.num_kv_heads * c.key_size
    outputs = workload.output_tokens
    if outputs == 0:  # scoring: the head judges every token but the first
        operations = computed * (c.num_layers * layer + head)
        steps = computed / rows
    else:
        operations = computed * ((c.num_layers - 1) * layer + kept)
        operations += outputs * (c.num_layers * layer + head)
        longest = max(job.max_tokens for job in workload.jobs)
        steps = computed / rows + max(longest, outputs / rows)
    weights = 2 * (c.num_params - head)
    token = 2 * 2 * c.num_layers * c.num_kv_heads * c.key_size
    # What rows share is near after the first of a step has read it.
    own = computed / sum(job.n for job in workload.jobs)
    seen = sum(job.n * job.max_tokens * (own + job.max_tokens / 2) for job in workload.jobs)
    return Work(2 * operations, steps * weights + seen * token)


def measure() -> Limits:
    """Measures this machine, in some seconds."""
    rates = {"XLA": _xla()}
    if build.load():
        rates["grok1"] = _ours()
    rates |= _onednn()
    return Limits(rates, _read_rate(), _instruction())


def _best_seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    run()
    best = float("inf")
    for _ in range(_TRIALS):
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def _xla() -> float:
    rows = _ROWS // _EXPERTS
    x = jnp.ones((_EXPERTS, rows, _WIDTH), jnp.bfloat16)
    w = jnp.ones((_EXPERTS, _COLUMNS, _WIDTH), jnp.bfloat16)
    product = jax.jit(
        lambda x, w: jnp.einsum("ecd,efd->ecf", x, w, preferred_element_type=jnp.float32)
    )
    seconds = _best_seconds(lambda: product(x, w).block_until_ready(), time.process_time)
    return 2 * _ROWS * _WIDTH * _COLUMNS / seconds * cores()


def _ours() -> float:
    x = jnp.ones((_ROWS, _WIDTH), jnp.bfloat16)
    w = products.pack(jnp.ones((_WIDTH, _COLUMNS), jnp.bfloat16))
    product = jax.jit(products.matmul)
    seconds = _best_seconds(lambda: product(x, w).block_until_ready(), time.process_time)
    return 2 * _ROWS * _WIDTH * _COLUMNS / seconds * cores()


def _onednn() -> dict[str, float]:
    """oneDNN's rates; none if it cannot be had."""
    from bench.environments import Environment

    environment = Environment("onednn", (ONEDNN,))
    rates = {}
    try:
        environment.make()
        folder = environment.python.parent.parent
        flags = ["-O2", "-fopenmp", f"-I{folder}/include", f"-L{folder}/lib"]
        flags += ["-ldnnl", f"-Wl,-rpath,{folder}/lib"]
        with tempfile.TemporaryDirectory() as scratch:
            program = _compiled("onednn.cc", scratch, *flags)
            sizes = [str(n) for n in (_ROWS // _EXPERTS, _WIDTH, _COLUMNS, _EXPERTS)]
            for operands, name in (("bf16", "oneDNN"), ("f32", "oneDNN in float32")):
                rates[name] = _told(program, *sizes, operands)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"oneDNN cannot be measured here: {error}")
    return rates


def _instruction() -> float:
    """The rate of the instruction that this project's kernels multiply with; 0 without them."""
    if not build.load():
        return 0.0
    with tempfile.TemporaryDirectory() as scratch:
        return _told(_compiled("instruction.cc", scratch, "-O2", *build.features()))


def _compiled(source: str, folder: str, *flags: str) -> str:
    """The program of a file beside this one."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("there is no g++")
    program = str(Path(folder) / "program")
    path = str(Path(__file__).parent / source)
    command = [compiler, "-std=c++17", path, *flags, "-o", program]
    subprocess.run(command, check=True, capture_output=True)
    return program


def _told(program: str, *arguments: str) -> float:
    """What a program prints, a rate of one core, for all of them."""
    passive = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [program, *arguments]
    run = subprocess.run(command, env=passive, check=True, capture_output=True, text=True)
    return float(run.stdout) * cores()


def _read_rate() -> float:
    parts = np.array_split(np.ones(_READ_BYTES // 8), cores())
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        seconds = _best_seconds(lambda: list(pool.map(np.max, parts)), time.process_time)
    return _READ_BYTES / seconds * cores()
