"""Asking an engine for something and waiting, as one does in a program of one's own."""

import abc
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from model.engine.request import Request, RequestOutput
from model.engine.scoring import ScoreOutput, ScoreRequest
from model.tokenizer import Tokenizer
from schemas.error import ErrorCode, RowError, SetupError
from schemas.sampling import SamplingParams


class Asking(abc.ABC):
    """What an engine offers beyond queues.

    Attributes:
      tokenizer: None if the checkpoint has none and none was given.
    """

    tokenizer: Tokenizer | None

    @abc.abstractmethod
    def submit_all(self, requests: Sequence[Request]) -> list[Future[RequestOutput]]:
        """Queues requests that belong together."""

    @abc.abstractmethod
    def score_starts(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[int, Callable[[], Future[ScoreOutput]]]]:
        """Requests to score that belong together, in the order that they had best be queued in.

        Returns:
          For each, its place among ``requests``, and what queues it.
        """

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> list[Future[ScoreOutput]]:
        """Queues requests to score, those with like contexts together; answers in their order.

        Raises:
          EngineClosed: it takes no more.
        """
        futures = {at: start() for at, start in self.score_starts(requests)}
        return [futures[at] for at in range(len(requests))]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        run_seed: int = 0,
    ) -> list[RequestOutput]:
        """Completes prompts, given as text or as token ids, and waits.

        Examples:
          >>> from model.engine.engine import Engine
          >>> params = SamplingParams(max_tokens=4, ignore_eos=True)
          >>> with Engine.from_checkpoint("grok-1") as engine:
          ...     [output] = engine.generate(["import "], params)
          >>> output.outputs[0].finish_reason, len(output.outputs[0].token_ids)
          ('length', 4)

        Args:
          prompts: what to complete; a lone text is one prompt.
          params: for all, or one for each; by default vLLM's defaults.
          run_seed: with a prompt's index, what its randomness derives from.

        Returns:
          One answer a prompt, in order; for what is no prompt, or none that can be run, its error.

        Raises:
          SetupError: text without a tokenizer, or not as many parameters as prompts.
          EngineClosed: the devices failed.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        params = params or SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        if not isinstance(each, Sequence) or not all(isinstance(p, SamplingParams) for p in each):
            raise SetupError(
                f"parameters must be SamplingParams, or a list of them, not {params!r:.60}"
            )
        if len(each) != len(prompts):
            raise SetupError(
                f"{len(prompts)} prompts came with {len(each)} SamplingParams; "
                "give one for each, or one for all"
            )
        requests: dict[int, Request] = {}
        answers: dict[int, RequestOutput] = {}
        for i, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            try:
                ids = _token_ids(self.encode(prompt))
            except TypeError as fault:
                error = RowError(ErrorCode.PROMPT_TYPE, str(fault), "prompt")
                answers[i] = RequestOutput(prompt_token_ids=(), error=error)
            else:
                requests[i] = Request(prompt_token_ids=ids, params=own, address=f"{run_seed}/{i}")
        futures = self.submit_all(list(requests.values()))
        answers |= {i: future.result() for i, future in zip(requests, futures, strict=True)}
        return [answers[i] for i in range(len(prompts))]

    def encode(self, text: str | Sequence[int]) -> Sequence[int]:
        """Token ids of a text; token ids are left alone.

        Raises:
          SetupError: text without a tokenizer.
        """
        if not isinstance(text, str):
            return text
        if self.tokenizer is None:
            raise SetupError("text needs a tokenizer: give one, or token ids")
        return self.tokenizer.encode(text)


def _token_ids(prompt: Sequence[int]) -> tuple[int, ...]:
    """A prompt's ids as Python's integers, which NumPy's may stand for.

    Raises:
      TypeError: it is none.
    """
    if isinstance(prompt, bytes) or not hasattr(prompt, "__iter__"):
        raise TypeError(f"the prompt is neither text nor token ids but {type(prompt).__name__}")
    ids = []
    for at, token in enumerate(prompt):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise TypeError(
                f"the prompt holds {token!r:.50} at position {at}, which is no token id"
            )
        ids.append(operator.index(token))
    return tuple(ids)
