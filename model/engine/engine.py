"""The engine: prompts in, completions out, on the devices of one process."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from model.checkpoint.source import Checkpoint, open_checkpoint
from model.config import Grok1Config
from model.engine.cache import shared_prefix_tokens
from model.engine.loop import Loop
from model.engine.machine import describe_machine, versions
from model.engine.options import EngineOptions, EngineStats
from model.engine.output import Finisher, Sample, Ticket, open_ticket
from model.engine.programs import CompiledSteps, Plan, abstract_cache
from model.engine.request import Request, RequestOutput
from model.engine.shapes import choose_shapes
from model.engine.state import empty_slots
from model.layout import Layout, abstract_params, choose_layout, load_params
from model.numerics import MODES
from model.sharding import make_mesh
from model.tokenizer import Tokenizer
from model.transformer import Params
from schemas.error import ErrorCode, RowError, SetupError
from schemas.sampling import SamplingParams

Progress = Callable[[str, float, float], None]
"""Told of a phase (``loading``, ``compiling``), how much of it is done, and of how much."""


class EngineClosed(RuntimeError):
    """The engine was closed, or its devices failed; requests under way are lost."""


class Engine:
    """Completes prompts with a Grok-1 model. Thread-safe.

    One thread of its own drives the devices; many callers may wait on it, and the more they ask at
    once, the fuller its slots. Close it, or use it as a context manager.

    Attributes:
      config: the model.
      tokenizer: None if the checkpoint has none and none was given.
      max_context: most tokens of a prompt and its completion.
    """

    def __init__(
        self,
        params: Params,
        plan: Plan,
        compiled: CompiledSteps,
        tokenizer: Tokenizer | None,
        load_seconds: float,
    ) -> None:
        """Use ``from_checkpoint``."""
        self.config: Grok1Config = plan.config
        self.tokenizer = tokenizer
        self.max_context = plan.shapes.max_context
        self._plan = plan
        self._load_seconds = load_seconds
        self._compiled = compiled
        cache = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), abstract_cache(plan)
        )
        state = jax.device_put(
            empty_slots(plan.shapes.slots, plan.shapes.sequence_pages),
            jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec()),
        )
        self._loop = Loop(
            compiled, params, cache, state, plan.shapes, plan.config.eos_token, plan.mesh.size
        )
        self._inbox: queue.SimpleQueue[Ticket | Sample | None] = queue.SimpleQueue()
        self._finisher = self._loop.finisher = Finisher(tokenizer, self._inbox.put)
        self._open: set[Ticket] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._abandoned = False
        self._busy_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="grok1-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_checkpoint(
        cls,
        url: str,
        *,
        tokenizer: str | None = None,
        options: EngineOptions | None = None,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
        progress: Progress = lambda phase, done, total: None,
    ) -> "Engine":
        """Loads a checkpoint onto the devices, and compiles the steps meanwhile.

        Args:
          url: folder of a checkpoint, local or any fsspec URL.
          tokenizer: a SentencePiece model; by default the checkpoint's ``tokenizer.model``.
          options: settings.
          layout: how weights lie in memory; by default the backend's.
          devices: to choose from; by default all that are present.
          progress: told of loading (bytes) and compiling (steps).

        Raises:
          SetupError: checkpoint, tokenizer, options and devices do not go together.
        """
        options = options or EngineOptions()
        checkpoint = open_checkpoint(url)
        checkpoint.verify()
        vocabulary = _load_tokenizer(tokenizer or checkpoint.tokenizer_url, checkpoint.config)
        mesh = make_mesh(options.devices, checkpoint.config, list(devices or jax.devices()))
        numerics = MODES[options.numerics]
        layout = layout or choose_layout(mesh.devices.flat[0].platform, numerics)
        weights = abstract_params(checkpoint.config, mesh, numerics, layout)
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights)]
        shapes = choose_shapes(checkpoint.config, options, describe_machine(mesh, sum(sizes)))
        plan = Plan(
            checkpoint.config, numerics, layout, shapes, mesh, options.collectives == "ordered"
        )
        compiled = CompiledSteps(plan)
        with ThreadPoolExecutor(1, thread_name_prefix="grok1-prepare") as pool:
            compiling = pool.submit(
                compiled.prepare, lambda done, total: progress("compiling", done, total)
            )
            started = time.perf_counter()
            params = _load(checkpoint, plan, mesh, progress)
            load_seconds = time.perf_counter() - started
            compiling.result()
        return cls(params, plan, compiled, vocabulary, load_seconds)

    def submit(self, request: Request) -> Future[RequestOutput]:
        """Queues a request; a fault of the request is its answer's ``error``.

        Raises:
          EngineClosed: it takes no more.
        """
        return self._submit(open_ticket(request))

    def submit_all(self, requests: Sequence[Request]) -> list[Future[RequestOutput]]:
        """Queues requests that belong together; their ``cached_tokens`` say what they share."""
        shareable = [r for r in requests if r.params.prompt_logprobs is None]
        shared = shared_prefix_tokens(
            [r.prompt_token_ids for r in shareable], self._plan.shapes.block_size
        )
        cached = dict(zip(map(id, shareable), shared, strict=True))
        return [self._submit(open_ticket(r, cached.get(id(r), 0))) for r in requests]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        run_seed: int = 0,
    ) -> list[RequestOutput]:
        """Completes prompts, given as text or as token ids, and waits.

        Args:
          prompts: what to complete.
          params: for all, or one for each; by default vLLM's defaults.
          run_seed: with a prompt's index, what its randomness derives from.

        Returns:
          One answer a prompt, in order.

        Raises:
          SetupError: text without a tokenizer.
          EngineClosed: the devices failed.
        """
        params = params or SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = [
            Request(
                prompt_token_ids=tuple(self._encode(prompt)), params=p, address=f"{run_seed}/{i}"
            )
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        ]
        return [future.result() for future in self.submit_all(requests)]

    def stats(self) -> EngineStats:
        """Counters since the engine was made."""
        finisher = self._finisher
        return EngineStats(
            load_seconds=self._load_seconds,
            compile_seconds=self._compiled.seconds,
            busy_seconds=self._busy_seconds,
            requests=finisher.requests,
            prompt_tokens=finisher.prompt_tokens,
            completion_tokens=finisher.completion_tokens,
            **dataclasses.asdict(self._loop.counters),
        )

    def provenance(self) -> dict[str, str]:
        """What the bits of a result depend on beside checkpoint and request."""
        plan, shapes = self._plan, self._plan.shapes
        return {
            "numerics": plan.numerics.name,
            "collectives": "ordered" if plan.ordered else "psum",
            "slots": str(shapes.rows),
            "block_size": str(shapes.block_size),
            "max_context": str(shapes.max_context),
            **versions(plan.mesh),
        }

    def close(self, *, abandon: bool = False) -> None:
        """Answers what is under way, then ends the threads. Calling it again does nothing.

        Args:
          abandon: answer nothing more: what is under way raises ``EngineClosed``.
        """
        self._abandoned |= abandon
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _encode(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise SetupError("text prompts need a tokenizer: give one, or token ids")
        return self.tokenizer.encode(prompt)

    def _submit(self, ticket: Ticket) -> Future[RequestOutput]:
        if error := self._fault(ticket.request):
            output = RequestOutput(prompt_token_ids=ticket.request.prompt_token_ids, error=error)
            ticket.future.set_result(output)
            return ticket.future
        with self._lock:
            if self._failure is not None:
                raise EngineClosed("the engine takes no more requests") from self._failure
            self._open.add(ticket)
        ticket.future.add_done_callback(lambda _: self._open.discard(ticket))
        self._inbox.put(ticket)
        return ticket.future

    def _fault(self, request: Request) -> RowError | None:
        """Why a request cannot be run, or None."""
        ids, params = request.prompt_token_ids, request.params
        if not ids:
            return RowError(ErrorCode.PROMPT_EMPTY, "the prompt has no tokens", "prompt")
        size = self.config.vocab_size
        for name, given in (("prompt_token_ids", ids), ("stop_token_ids", params.stop_token_ids)):
            wrong = next((i for i in given if not 0 <= i < size), None)
            if wrong is not None:
                message = f"token id {wrong} is outside the vocabulary of {size}"
                return RowError(ErrorCode.TOKEN_ID_OUT_OF_RANGE, message, name)
        if len(ids) + params.max_tokens > self.max_context:
            message = (
                f"prompt of {len(ids)} tokens and max_tokens={params.max_tokens} exceed the "
                f"context of {self.max_context}"
            )
            return RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, "max_tokens")
        if params.stop and self.tokenizer is None:
            return RowError(ErrorCode.INVALID_PARAMETER, "stop strings need a tokenizer", "stop")
        return None

    def _run(self) -> None:
        try:
            self._serve()
            failure: BaseException = EngineClosed("the engine was closed")
        except BaseException as error:
            failure = error
        with self._lock:
            self._failure = failure
        self._finisher.close()
        for ticket in list(self._open):
            if not ticket.future.done():
                ticket.future.set_exception(failure)

    def _serve(self) -> None:
        closing = False
        while not self._abandoned and not (closing and self._loop.idle and self._inbox.empty()):
            waiting = self._loop.idle and not closing
            try:
                message = self._inbox.get(block=waiting)
                while True:
                    if message is None:
                        closing = True
                    elif isinstance(message, Sample):
                        self._loop.stop(message)
                    else:
                        self._loop.scheduler.add(message.request, message)
                    message = self._inbox.get_nowait()
            except queue.Empty:
                pass
            started = time.perf_counter()
            self._loop.turn()
            self._busy_seconds += time.perf_counter() - started


def _load_tokenizer(url: str | None, config: Grok1Config) -> Tokenizer | None:
    if url is None:
        return None
    tokenizer = Tokenizer.load(url)
    tokenizer.check_against(config)
    return tokenizer


def _load(checkpoint: Checkpoint, plan: Plan, mesh: Mesh, progress: Progress) -> Params:
    done = 0

    def placed(size: int) -> None:
        nonlocal done
        done += size
        progress("loading", done, checkpoint.nbytes)

    params = load_params(checkpoint.read, plan.config, mesh, plan.numerics, plan.layout, placed)
    return jax.block_until_ready(params)
