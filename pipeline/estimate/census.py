"""All rows read, validated and tokenized as a run would, on CPUs, without the model."""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import numpy as np

from model.engine.cache import shared_prefix_tokens
from model.engine.request import Request
from pipeline.elements import PromptChunk
from pipeline.plan import Chunk
from pipeline.prepare import Job
from pipeline.read import read_chunks
from pipeline.spans import Span, spans

BLOCK_SIZE = 128
"""C of an accelerator's cache: prefixes are shared in whole blocks."""

_EXAMPLES = 3
_IN_FLIGHT = 2
"""Spans that wait for a worker, a worker: enough to keep it busy, few enough to hold in memory."""


@dataclasses.dataclass(kw_only=True)
class Census:
    """What was counted; two of them add up.

    Attributes:
      rows: input rows.
      errors: rows that cannot be asked, by code.
      examples: code -> the first few of them, by path and row: path, row number, what is wrong.
      prompt_tokens: prompt length -> rows, as they will be run; good rows only.
      over_context: rows whose prompt and ``max_tokens`` exceed the context, cut or errored.
      tokens_in: prompt tokens of good rows.
      shared_tokens: those that another row of the same chunk computes already.
      samples: completions: the sum of ``n``.
      tokens_out_most: the sum of ``max_tokens`` over samples.
      tokens_out_least: the sum of what cannot be fewer.
      hashes: a 64-bit hash of each good row's prompt and parameters, arrays of them.
      pilot: (rank, request) of the rows with the smallest ids: a fair draw.
    """

    rows: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[tuple[str, int, str]]] = dataclasses.field(default_factory=dict)
    prompt_tokens: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    over_context: int = 0
    tokens_in: int = 0
    shared_tokens: int = 0
    samples: int = 0
    tokens_out_most: int = 0
    tokens_out_least: int = 0
    hashes: list[np.ndarray] = dataclasses.field(default_factory=list)
    pilot: list[tuple[str, Request]] = dataclasses.field(default_factory=list)

    def merge(self, other: "Census", pilot: int) -> None:
        """Adds another's counts to this one's; ``pilot`` is how many requests are kept."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors.update(other.errors)
        self.prompt_tokens.update(other.prompt_tokens)
        self.hashes += other.hashes
        for code, some in other.examples.items():
            # The first ones of the input, not of whichever process was the first to tell.
            self.examples[code] = heapq.nsmallest(_EXAMPLES, [*self.examples.get(code, ()), *some])
        self.pilot = heapq.nsmallest(pilot, [*self.pilot, *other.pilot], key=lambda p: p[0])

    @property
    def good(self) -> int:
        """Rows that will be asked."""
        return self.rows - self.errors.total()

    @property
    def duplicates(self) -> int:
        """Good rows whose prompt and parameters an earlier row has too."""
        if not self.hashes:
            return 0
        every = np.concatenate(self.hashes)
        return len(every) - len(np.unique(every))


_SUMS = (
    "rows",
    "over_context",
    "tokens_in",
    "shared_tokens",
    "samples",
    "tokens_out_most",
    "tokens_out_least",
)


def take_census(
    job: Job,
    chunks: Sequence[Chunk],
    *,
    pilot: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Census:
    """Reads every chunk in processes of their own.

    Args:
      job: what ``check_job`` returned.
      chunks: the same.
      pilot: requests to keep for a trial.
      workers: processes; by default one a core.
      progress: told of each span's rows once they are counted.
    """
    total = Census()
    count = workers or len(os.sched_getaffinity(0))
    with _processes(count) as pool:
        waiting = iter(spans(chunks))
        running: set[Future[Census]] = set()
        while True:
            while len(running) < _IN_FLIGHT * count and (span := next(waiting, None)) is not None:
                with _interrupts_held():
                    running.add(pool.submit(count_span, job, span, pilot))
            if not running:
                return total
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                found = future.result()
                total.merge(found, pilot)
                progress(found.rows)


@contextlib.contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, which end at once where the block fails or is interrupted."""
    # Fresh processes: a fork would copy locks that threads of this one may hold.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """While a process may be started: Ctrl-C reaches it too, and it would answer with a traceback.

    What is blocked here stays so in the new process; this one is told once the block is left.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_span(job: Job, span: Span, pilot: int) -> Census:
    """One span's counts."""
    total = Census()
    for chunk in read_chunks(job, span.chunks):
        assert isinstance(chunk, PromptChunk)  # nobody plans to score
        total.merge(count_chunk(job, chunk, pilot), pilot)
    return total


def count_chunk(job: Job, chunk: PromptChunk, pilot: int) -> Census:
    """One chunk's counts."""
    found = Census(rows=len(chunk))
    for row, error in sorted(chunk.errors.items()):
        found.errors[str(error.code)] += 1
        some = found.examples.setdefault(str(error.code), [])
        if len(some) < _EXAMPLES:
            where = (chunk.chunk.file.path, chunk.chunk.first_row + row)
            some.append((*where, error.sentence()))
    found.over_context = found.errors["context_length_exceeded"] + chunk.cut
    prompts = [request.prompt_token_ids for request in chunk.requests]
    found.prompt_tokens.update(map(len, prompts))
    found.tokens_in = sum(map(len, prompts))
    found.shared_tokens = sum(shared_prefix_tokens(prompts, BLOCK_SIZE))
    for request in chunk.requests:
        params = request.params
        found.samples += params.n
        found.tokens_out_most += params.n * params.max_tokens
        ends = not params.ignore_eos or params.stop or params.stop_token_ids
        found.tokens_out_least += params.n * (
            max(1, params.min_tokens) if ends else params.max_tokens
        )
    found.hashes = [np.fromiter(_hashes(chunk.requests), np.uint64, len(prompts))]
    if pilot:
        uids = [chunk.row_uids[row] for row in chunk.sources]
        pairs = zip(uids, chunk.requests, strict=True)
        found.pilot = heapq.nsmallest(pilot, pairs, key=lambda pair: pair[0])
    return found


def _hashes(requests: Sequence[Request]) -> Iterator[int]:
    told: dict[int, bytes] = {}
    for request in requests:
        # Rows without parameters of their own share the job's object.
        key = id(request.params)
        if key not in told:
            told[key] = json.dumps(request.params.result_settings(), sort_keys=True).encode()
        digest = hashlib.blake2b(told[key], digest_size=8)
        digest.update(np.array(request.prompt_token_ids, np.int32).tobytes())
        yield int.from_bytes(digest.digest(), "little")
