"""Requests on their way to the engine's thread: checked, resolved, constraints compiled."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from model.config import Grok1Config
from model.constraint import Constrainer
from model.engine.beams import check_room
from model.engine.request import Request, RequestOutput
from model.engine.rules import Unanswerable, resolve
from model.engine.shapes import Shapes
from model.engine.ticket import Ticket, open_ticket
from model.tokenizer import Tokenizer

_THREADS = 4


class Intake:
    """Takes requests from any thread. Those with a constraint wait until it is compiled."""

    def __init__(
        self,
        config: Grok1Config,
        shapes: Shapes,
        tokenizer: Tokenizer | None,
        enqueue: Callable[[Ticket], None],
        foresee: Callable[[], None],
    ) -> None:
        """``enqueue`` takes what can be run, or raises; steered, once ``foresee`` is done."""
        self._config, self._shapes, self._tokenizer = config, shapes, tokenizer
        self._enqueue, self._foresee = enqueue, foresee
        self._compiling = ThreadPoolExecutor(_THREADS, thread_name_prefix="grok1-constraints")

    def submit(self, request: Request, cached_tokens: int = 0) -> Future[RequestOutput]:
        """Hands a request on; a fault of its own is its answer's ``error``."""
        future: Future[RequestOutput] = Future()
        if not request.params.steered:
            self._resolve(request, cached_tokens, future)
        else:
            self._compiling.submit(self._resolve_later, request, cached_tokens, future)
        return future

    def close(self) -> None:
        """Hands on what still waits, then ends the threads."""
        self._compiling.shutdown()

    def _resolve(self, request: Request, cached_tokens: int, future: Future[RequestOutput]) -> None:
        try:
            max_context = self._shapes.max_context
            rules = resolve(request, self._config, max_context, self._tokenizer, self._constrainer)
            request = request.within(max_context)
            check_room(request, self._shapes)
        except Unanswerable as found:
            prompt = request.prompt_token_ids
            future.set_result(RequestOutput(prompt_token_ids=prompt, error=found.error))
        else:
            if request.params.steered:
                self._foresee()
            self._enqueue(open_ticket(request, rules, future, cached_tokens))

    def _resolve_later(
        self, request: Request, cached_tokens: int, future: Future[RequestOutput]
    ) -> None:
        try:
            self._resolve(request, cached_tokens, future)
        except BaseException as error:  # nobody but the future's holder waits for this thread
            future.set_exception(error)

    @functools.cached_property
    def _compiler(self) -> Constrainer:
        assert self._tokenizer is not None
        return Constrainer(self._tokenizer)

    def _constrainer(self) -> Constrainer:
        return self._compiler
