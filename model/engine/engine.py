"""The engine: prompts in, completions out, on the devices of one process."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import jax

from model import evaluation
from model.config import Grok1Config
from model.engine.asking import Asking
from model.engine.cache import shared_prefix_tokens
from model.engine.compiled import CompiledSteps
from model.engine.intake import Intake
from model.engine.leaving import close_at_exit
from model.engine.load import Progress, allocate, load
from model.engine.loop import Loop
from model.engine.machine import memory_in_use
from model.engine.memory import OutOfMemory, is_out_of_memory, out_of_memory, telling
from model.engine.options import EngineOptions, EngineStats
from model.engine.output import Finisher
from model.engine.plan import provenance
from model.engine.programs import Plan
from model.engine.request import Request, RequestOutput
from model.engine.runner import Runner
from model.engine.scoring import ScoreOutput, ScoreRequest, ScoreTicket, fault, open_score_ticket
from model.engine.ticket import Sample, Ticket
from model.layout import Layout
from model.tokenizer import Tokenizer
from model.transformer import Params
from schemas.error import RowError


class EngineClosed(RuntimeError):
    """The engine was closed, or its devices failed; requests under way are lost."""


class Engine(Asking):
    """Completes prompts with a Grok-1 model. Thread-safe.

    One thread of its own drives the devices; many callers may wait on it, and the more they ask at
    once, the fuller its slots. Close it, or use it as a context manager.

    Attributes:
      config: the model.
      max_context: most tokens of a prompt and its completion.
      max_continuations: most continuations of one request to score.
    """

    def __init__(
        self,
        params: Params,
        plan: Plan,
        compiled: CompiledSteps,
        tokenizer: Tokenizer | None,
        load_seconds: float,
        options: EngineOptions,
    ) -> None:
        """Use ``from_checkpoint``."""
        self.config: Grok1Config = plan.config
        self.tokenizer = tokenizer
        self.max_context = plan.shapes.max_context
        self.max_continuations = plan.shapes.prefill_rows
        self._plan = plan
        self._load_seconds = load_seconds
        self._compiled = compiled
        self._options = options
        self._inbox: queue.SimpleQueue[Ticket | ScoreTicket | Sample | None] = queue.SimpleQueue()
        self._finisher = Finisher(tokenizer, self._inbox.put)
        runner = Runner(compiled, plan, params, *allocate(plan))
        self._loop = Loop(runner, plan, self._finisher, options.row_deadline)
        self._intake = Intake(
            self.config, plan.shapes, tokenizer, self._enqueue, compiled.foresee_steering
        )
        self._open: set[Ticket | ScoreTicket] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._abandoned = False
        self._busy_seconds = 0.0
        compiled.keep()
        self._thread = threading.Thread(target=self._run, name="grok1-engine", daemon=True)
        self._thread.start()
        close_at_exit(self)

    @classmethod
    def from_checkpoint(
        cls,
        url: str,
        *,
        tokenizer: str | None = None,
        options: EngineOptions | None = None,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
        progress: Progress = lambda phase, done, total, names: None,
        scores_only: bool = False,
    ) -> "Engine":
        """Loads a checkpoint onto the devices, and compiles the steps meanwhile.

        Args:
          url: folder of a checkpoint, local or any fsspec URL.
          tokenizer: a SentencePiece model; by default the checkpoint's ``tokenizer.model``.
          options: settings.
          layout: how weights lie in memory; by default the backend's.
          devices: to choose from; by default all that are present.
          progress: told of loading (bytes) and compiling (steps, and the names of those under way).
          scores_only: compile what scoring needs, and the rest only if it is asked for after all.

        Raises:
          SetupError: checkpoint, tokenizer, options and devices do not go together.
          OutOfMemory: the devices' memory does not hold it.
        """
        options = options or EngineOptions()
        loaded = load(url, tokenizer, options, layout, devices, progress, scores_only)
        with telling(loaded[1], options):
            return cls(*loaded, options)

    @property
    def capacity(self) -> int:
        """Sequences that are decoded at once."""
        return self._plan.shapes.rows

    def submit(self, request: Request, cached_tokens: int = 0) -> Future[RequestOutput]:
        """Queues a request; a fault of the request is its answer's ``error``.

        Args:
          request: what to complete.
          cached_tokens: for the answer, of a request that belongs with others; see ``shared``.

        Raises:
          EngineClosed: it takes no more.
        """
        return self._intake.submit(request, cached_tokens)

    def submit_all(self, requests: Sequence[Request]) -> list[Future[RequestOutput]]:
        """Queues requests that belong together, those with like beginnings one after another.

        Their ``cached_tokens`` say what they share. Answers are in the order of the requests.
        """
        shared = self.shared(requests)
        order = sorted(range(len(requests)), key=lambda at: requests[at].prompt_token_ids)
        futures = {at: self.submit(requests[at], shared[at]) for at in order}
        return [futures[at] for at in range(len(requests))]

    def shared(self, requests: Sequence[Request | ScoreRequest]) -> list[int]:
        """For each of requests that belong together, tokens that one before it computes.

        They are those of whole blocks of its prompt, or of its context if it is to be scored.
        """
        prompts = {at: ids for at, request in enumerate(requests) if (ids := request.shareable_ids)}
        counts = shared_prefix_tokens(list(prompts.values()), self._plan.shapes.block_size)
        shared = dict(zip(prompts, counts, strict=True))
        return [shared.get(at, 0) for at in range(len(requests))]

    def score_starts(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[int, Callable[[], Future[ScoreOutput]]]]:
        """See ``Asking``."""
        shared = self.shared(requests)
        order = sorted(range(len(requests)), key=lambda at: requests[at].context_token_ids)
        return [(at, partial(self._submit_score, requests[at], shared[at])) for at in order]

    def score_fault(self, request: ScoreRequest) -> RowError | None:
        """Why a request cannot be scored, or None."""
        return fault(request, self.config.vocab_size, self._plan.shapes)

    def score(
        self, pairs: Sequence[tuple[str, str] | tuple[Sequence[int], Sequence[int]]]
    ) -> list[ScoreOutput]:
        """Log-likelihoods of continuations after their contexts, by lm-evaluation-harness's rules.

        For whole documents see ``evaluation.score_documents``.

        Args:
          pairs: context and continuation, both as text or both as token ids; an empty text as
            context stands for the prefix token.

        Returns:
          One answer a pair, in order, whose ``scores`` has one entry unless it is an ``error``.

        Raises:
          SetupError: text without a tokenizer.
          EngineClosed: the devices failed.
        """
        return evaluation.score_pairs(self, pairs)

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

    def device_memory(self) -> int:
        """Bytes in use on the fullest device; 0 where devices do not tell."""
        return memory_in_use(self._plan.mesh)

    def provenance(self) -> dict[str, str]:
        """What the bits of a result depend on beside checkpoint and request."""
        tuning = self._compiled.tuning
        chosen = {} if tuning is None else {"tuning": tuning.identity()}
        return {**provenance(self._plan), **chosen}

    @property
    def is_open(self) -> bool:
        """Whether it takes requests: it was not closed, nor have its devices failed."""
        return self._failure is None

    @property
    def silent_seconds(self) -> float:
        """How long the devices have given nothing while something was asked; 0 if nothing is."""
        return time.monotonic() - self._loop.beat if self._open else 0.0

    def close(self, *, abandon: bool = False) -> None:
        """Answers what is under way, then ends the threads. Calling it again does nothing.

        Args:
          abandon: answer nothing more: what is under way raises ``EngineClosed``.
        """
        self._abandoned |= abandon
        self._intake.close()
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit_score(self, request: ScoreRequest, cached_tokens: int) -> Future[ScoreOutput]:
        ticket = open_score_ticket(request, cached_tokens)
        if error := self.score_fault(request):
            ticket.future.set_result(ScoreOutput(request=request, error=error))
        else:
            self._enqueue(ticket)
        return ticket.future

    def _enqueue(self, ticket: Ticket | ScoreTicket) -> None:
        with self._lock:
            if isinstance(self._failure, OutOfMemory):
                raise self._failure
            if self._failure is not None:
                raise EngineClosed("the engine takes no more requests") from self._failure
            self._open.add(ticket)
        ticket.future.add_done_callback(lambda _: self._open.discard(ticket))
        self._inbox.put(ticket)

    def _run(self) -> None:
        try:
            self._serve()
            failure: BaseException = EngineClosed("the engine was closed")
        except BaseException as error:
            failure = error
            if is_out_of_memory(error):
                failure = out_of_memory(error, self._plan, self._options)
        self._loop.release()
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
                if waiting:
                    self._loop.beat = time.monotonic()
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
