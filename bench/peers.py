"""Runs the same work on this engine and on what users would pick instead, side by side.

    python -m bench.peers                       # three rounds of everything: an hour or more
    python -m bench.peers --rounds 1 --workloads uniform-128 mixed:300 --peers grok1 vllm-zen:mixed

Each peer runs in an environment of its own made from PyPI, a process for each round, so that none
disturbs another; rounds go through the peers in turn, since a machine's speed changes with time.
vLLM and transformers have no Grok-1 (vLLM dropped it after 0.24), so they run a Mixtral of the same
shape with random weights: the same products and the same cache. llama.cpp runs the real model.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from bench import environments, models, peers_report, workloads
from bench.environments import Environment

_RUNNERS = pathlib.Path(__file__).parent / "runners"
_WORKLOADS = ("uniform-128", "uniform-256", "mixed", "few-shot", "best-of")
_TIMEOUT = 3600
_LOG_LINES = 15


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to do the work.

    Attributes:
      name: on the command line.
      title: in tables.
      environment: where it runs; None: this project's own.
      runner: the script in ``runners/``.
      model: makes the model in a folder, unless it is there.
      settings: the runner's.
      work: the names of what it runs; empty: everything.
    """

    name: str
    title: str
    environment: Environment | None
    runner: str
    model: Callable[[pathlib.Path], pathlib.Path]
    settings: dict[str, Any]
    work: tuple[str, ...] = ()


def _vllm(dtype: str, **settings: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "max_model_len": workloads.CONTEXT,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 4096,
        "enable_prefix_caching": True,
        **settings,
    }


PEERS = (
    Peer("grok1", "this engine, bf16", None, "run_grok1.py", models.checkpoint, {"slots": 128}),
    Peer(
        "vllm-zen",
        "vLLM 0.32 with zentorch 2.13, bf16",
        environments.ZEN,
        "run_vllm.py",
        models.mixtral,
        _vllm("bfloat16"),
    ),
    Peer(
        "vllm-zen-no-prefixes",
        "the same, without its prefix cache",
        environments.ZEN,
        "run_vllm.py",
        models.mixtral,
        _vllm("bfloat16", enable_prefix_caching=False),
        ("few-shot", "best-of"),
    ),
    Peer(
        "vllm-bf16",
        "vLLM 0.32, bf16",
        environments.VLLM,
        "run_vllm.py",
        models.mixtral,
        _vllm("bfloat16"),
    ),
    Peer(
        "vllm-float32",
        "vLLM 0.32, float32",
        environments.VLLM,
        "run_vllm.py",
        models.mixtral,
        _vllm("float32"),
    ),
    Peer(
        "vllm-no-prefixes",
        "vLLM 0.32, float32, without its prefix cache",
        environments.VLLM,
        "run_vllm.py",
        models.mixtral,
        _vllm("float32", enable_prefix_caching=False),
        ("few-shot", "best-of"),
    ),
    Peer(
        "transformers",
        "transformers, bf16",
        environments.VLLM,
        "run_transformers.py",
        models.mixtral,
        {"dtype": "bfloat16", "batch": 128},
    ),
    Peer(
        "llama.cpp",
        "llama.cpp, bf16",
        environments.LLAMA,
        "run_llama.py",
        models.gguf,
        {
            "sequences": 128,
            "context": workloads.CONTEXT,
            "batch": 2048,
            "micro_batch": 512,
            "threads": os.cpu_count(),
        },
    ),
)


def main() -> None:
    """Measures, prints the tables, and on request records them."""
    names = ", ".join(peer.name for peer in PEERS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, metavar="N", help="times that each peer runs (3)")
    add(
        "--peers",
        nargs="+",
        type=_peer,
        default=PEERS,
        metavar="PEER[:WORK,…]",
        help=f"{names}; with what it is to run, if not everything",
    )
    add(
        "--workloads",
        nargs="+",
        type=_work,
        default=[workloads.make(name) for name in _WORKLOADS],
        metavar="WORK[:ROWS]",
        help=f"{', '.join(_WORKLOADS)}; with a number, only so many of its rows",
    )
    add("--models", type=pathlib.Path, default=environments.FOLDER / "models", metavar="DIR")
    add("--record", action="store_true", help="write results, table and plot into the project")
    given = parser.parse_args()

    peers: list[Peer] = list(given.peers)
    for peer in peers:
        if peer.environment:
            peer.environment.make()
        peer.model(given.models)
    rounds: list[peers_report.Round] = []
    for number in range(given.rounds):
        turn = number % len(peers)
        rounds.append({})
        for peer in peers[turn:] + peers[:turn]:
            work = [w for w in given.workloads if not peer.work or w.name in peer.work]
            result = measure(peer, given.models, work)
            rounds[-1][peer.name] = result
            rates = (
                f"{r['workload']} {r['output_tokens'] / r['seconds']:,.0f}" for r in result["runs"]
            )
            print(f"round {number + 1}, {peer.title}: {', '.join(rates)} output tok/s", flush=True)
    rows = {work.name: len(work.jobs) for work in given.workloads}
    report = peers_report.Report({peer.name: peer.title for peer in peers}, rounds, rows)
    print(f"\n{report.markdown()}")
    if given.record:
        print("\nwritten: " + ", ".join(map(str, report.record())))


def _peer(text: str) -> Peer:
    name, _, work = text.partition(":")
    found = {peer.name: peer for peer in PEERS}
    if name not in found:
        raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(found)}")
    if not work:
        return found[name]
    return dataclasses.replace(found[name], work=tuple(work.split(",")))


def _work(text: str) -> workloads.Workload:
    name, _, rows = text.partition(":")
    if name not in _WORKLOADS:
        raise argparse.ArgumentTypeError(f"no work {name!r}; there is {', '.join(_WORKLOADS)}")
    work = workloads.make(name)
    return work.first(int(rows)) if rows else work


def measure(peer: Peer, folder: pathlib.Path, work: Sequence[workloads.Workload]) -> dict[str, Any]:
    """Runs a peer once, in a process of its own; what it says, see ``runners``.

    Raises:
      RuntimeError: it failed; the message has the end of what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="grok1-bench-") as scratch:
        request, result = (
            pathlib.Path(scratch, "request.json"),
            pathlib.Path(scratch, "result.json"),
        )
        request.write_text(
            json.dumps(
                {
                    "model": str(peer.model(folder)),
                    "settings": peer.settings,
                    "workloads": [dataclasses.asdict(each) for each in work],
                }
            )
        )
        python = peer.environment.python if peer.environment else sys.executable
        done = subprocess.run(
            [python, _RUNNERS / peer.runner, request, result],
            env=peer.environment.variables() if peer.environment else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
        )
        if done.returncode:
            end = "\n".join(done.stdout.splitlines()[-_LOG_LINES:])
            raise RuntimeError(f"{peer.name} failed:\n{end}")
        return json.loads(result.read_text())


if __name__ == "__main__":
    main()
