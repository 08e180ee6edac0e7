"""The engine: prompts in, completions out, on the devices of one process."""

import dataclasses
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
from model.engine.desk import LONGEST_LEAD, Desk
from model.engine.intake import Intake
from model.engine.leaving import close_at_exit
from model.engine.load import Loaded, Progress, load
from model.engine.machine import memory_in_use
from model.engine.memory import OutOfMemory, is_out_of_memory, out_of_memory, telling
from model.engine.options import EngineOptions, EngineStats
from model.engine.output import Finisher
from model.engine.plan import provenance
from model.engine.replica import Replica
from model.engine.request import Request, RequestOutput
from model.engine.scoring import ScoreOutput, ScoreRequest, ScoreTicket, fault, open_score_ticket
from model.engine.ticket import Ticket
from model.layout import Layout
from schemas.error import RowError


class EngineClosed(RuntimeError):
    """The engine was closed, or its devices failed; requests under way are lost."""


class Engine(Asking):
    """Completes prompts with a Grok-1 model. Thread-safe.

    A thread of its own drives the devices, one for each copy of the model; many callers may wait on
    it, and the more they ask at once, the fuller its slots. Close it, or use it as a context
    manager.

    Attributes:
      config: the model.
      max_context: most tokens of a prompt and its completion.
      max_continuations: most continuations of one request to score.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Use ``from_checkpoint``."""
        plan = loaded.copies[0].plan
        self.config: Grok1Config = plan.config
        self.tokenizer = loaded.tokenizer
        self.max_context = plan.shapes.max_context
        self.max_continuations = plan.shapes.prefill_rows
        self._plan = plan
        self._load_seconds = loaded.seconds
        self._options = loaded.options
        lead = LONGEST_LEAD * plan.shapes.rows / self.max_context
        self._desk = Desk(len(loaded.copies), lead)
        self._finisher = Finisher(loaded.tokenizer, self._desk.stop)
        self._replicas = [
            Replica(index, copy, self._desk, self._finisher, loaded.options.row_deadline)
            for index, copy in enumerate(loaded.copies)
        ]
        self._intake = Intake(
            self.config, plan.shapes, loaded.tokenizer, self._enqueue, self._foresee_steering
        )
        self._open: set[Ticket | ScoreTicket] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._serving = len(self._replicas)
        self._threads = [
            threading.Thread(target=self._run, args=[replica], name="grok1-engine", daemon=True)
            for replica in self._replicas
        ]
        for replica in self._replicas:
            replica.compiled.keep()
        for thread in self._threads:
            thread.start()
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
        with telling(loaded.copies[0].plan, loaded.options):
            return cls(loaded)

    @property
    def capacity(self) -> int:
        """Sequences that are decoded at once, over all replicas."""
        return self._plan.shapes.rows * len(self._replicas)

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
        finisher, replicas = self._finisher, self._replicas
        counters = [dataclasses.asdict(replica.loop.counters) for replica in replicas]
        return EngineStats(
            load_seconds=self._load_seconds,
            compile_seconds=max(replica.compiled.seconds for replica in replicas),
            busy_seconds=max(replica.busy_seconds for replica in replicas),
            requests=finisher.requests,
            prompt_tokens=finisher.prompt_tokens,
            completion_tokens=finisher.completion_tokens,
            **{name: sum(each[name] for each in counters) for name in counters[0]},
        )

    def device_memory(self) -> int:
        """Bytes in use on the fullest device; 0 where devices do not tell."""
        return max(memory_in_use(replica.plan.mesh) for replica in self._replicas)

    def provenance(self) -> dict[str, str]:
        """What the bits of a result depend on beside checkpoint and request."""
        tuning = self._replicas[0].compiled.tuning
        chosen = {} if tuning is None else {"tuning": tuning.identity()}
        return {**provenance(self._plan), "replicas": str(len(self._replicas)), **chosen}

    @property
    def is_open(self) -> bool:
        """Whether it takes requests: it was not closed, nor have its devices failed."""
        return self._failure is None

    @property
    def silent_seconds(self) -> float:
        """How long the devices have given nothing while something was asked; 0 if nothing is.

        While a step is being compiled they have nothing to give.
        """
        asked = [r for r in self._replicas if not r.loop.idle] if self._open else []
        beats = [
            max(r.loop.beat, r.compiled.beat) for r in asked if not r.compiled.compiling_seconds
        ]
        return max((time.monotonic() - beat for beat in beats), default=0.0)

    @property
    def compiling_seconds(self) -> float:
        """How long a step that some request needs has been compiling; 0 if none is."""
        return max(replica.compiled.compiling_seconds for replica in self._replicas)

    def close(self, *, abandon: bool = False) -> None:
        """Answers what is under way, then ends the threads. Calling it again does nothing.

        Args:
          abandon: answer nothing more: what is under way raises ``EngineClosed``.
        """
        if abandon:
            self._desk.close(abandon=True)
        self._intake.close()
        self._desk.close()
        for thread in self._threads:
            thread.join()

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
                raise EngineClosed(
                    "the engine was closed, or its devices failed: make another"
                ) from self._failure
            self._open.add(ticket)
        ticket.future.add_done_callback(lambda _: self._open.discard(ticket))
        tokens = ticket.request.params.max_tokens if isinstance(ticket, Ticket) else 0
        self._desk.put(ticket, tokens)

    def _foresee_steering(self) -> None:
        for replica in self._replicas:
            replica.compiled.foresee_steering()

    def _run(self, replica: Replica) -> None:
        failure: BaseException | None = None
        try:
            replica.serve()
        except BaseException as error:
            failure = error
            if is_out_of_memory(error):
                failure = out_of_memory(error, self._plan, self._options)
        with self._lock:
            self._failure = self._failure or failure or EngineClosed("the engine was closed")
        if failure is not None:
            self._desk.close(abandon=True)
        replica.loop.release()
        with self._lock:
            self._serving -= 1
            if self._serving:
                return
        self._finisher.close()
        for ticket in list(self._open):
            if not ticket.future.done():
                ticket.future.set_exception(self._failure)
