"""llama.cpp through llama-cpp-python: the real architecture, sequences batched continuously.

The package's own high-level class completes one prompt at a time; this fills a batch of sequences
as llama.cpp's server does: free ones take the next prompts, all others go on by a token.
"""

import collections
import ctypes
import dataclasses
from typing import Any

import llama_cpp
import numpy as np
from protocol import Jobs, serve


@dataclasses.dataclass
class Sequence:
    """A completion under way: where it stands, its last token, and how many are still due."""

    position: int
    token: int
    due: int
    sampled: bool


def load(model: str, settings: dict[str, Any]):
    size, context, batch_tokens = settings["sequences"], settings["context"], settings["batch"]
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(
        model.encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = size * context, size
    params.n_batch, params.n_ubatch = batch_tokens, settings["micro_batch"]
    params.n_threads = params.n_threads_batch = settings["threads"]
    params.kv_unified, params.no_perf = False, True
    state = llama_cpp.llama_init_from_model(loaded, params)
    if not state:
        raise RuntimeError(f"llama.cpp cannot open {model}")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    memory = llama_cpp.llama_get_memory(state)
    batch = llama_cpp.llama_batch_init(batch_tokens, 0, 1)
    random = np.random.default_rng(0)

    def put(token: int, position: int, sequence: int, wanted: bool) -> None:
        at = batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.n_tokens = at + 1

    def run(rows: int) -> np.ndarray:
        """[rows, V] logits of what was asked for, in the batch's order."""
        if llama_cpp.llama_decode(state, batch):
            raise RuntimeError("llama.cpp could not run a batch")
        logits = llama_cpp.llama_get_logits(state)
        return np.ctypeslib.as_array(logits, shape=(rows, vocab))

    def draw(logits: np.ndarray, sampled: bool) -> int:
        return int(np.argmax(logits + random.gumbel(size=vocab) if sampled else logits))

    def complete(jobs: Jobs) -> int:
        waiting = collections.deque(jobs)
        free, active, generated = list(range(size)), {}, 0
        while waiting or active:
            batch.n_tokens = 0
            for sequence, row in active.items():
                put(row.token, row.position, sequence, True)
            decoding = list(active)
            admitted = []
            while waiting:
                job = waiting[0]
                room = batch_tokens - batch.n_tokens
                if len(free) < job["n"] or len(job["prompt"]) > room:
                    break
                waiting.popleft()
                sequences = [free.pop() for _ in range(job["n"])]
                last = len(job["prompt"]) - 1
                for position, token in enumerate(job["prompt"]):
                    put(token, position, sequences[0], position == last)
                admitted.append((job, sequences))
            logits = run(len(decoding) + len(admitted))
            for sequence, scores in zip(decoding, logits, strict=False):
                row = active[sequence]
                row.position, row.token = row.position + 1, draw(scores, row.sampled)
                row.due -= 1
            for (job, sequences), scores in zip(admitted, logits[len(decoding) :], strict=True):
                for sequence in sequences:
                    if sequence != sequences[0]:
                        llama_cpp.llama_memory_seq_cp(memory, sequences[0], sequence, -1, -1)
                    sampled = job["n"] > 1
                    active[sequence] = Sequence(
                        len(job["prompt"]), draw(scores, sampled), job["max_tokens"] - 1, sampled
                    )
                generated += job["n"]
            generated += len(decoding)
            for sequence in [s for s, row in active.items() if not row.due]:
                del active[sequence]
                llama_cpp.llama_memory_seq_rm(memory, sequence, -1, -1)
                free.append(sequence)
        return generated

    complete.keep = silent  # a callback lives as long as Python holds it
    return complete


if __name__ == "__main__":
    serve(load, ["llama-cpp-python"])
