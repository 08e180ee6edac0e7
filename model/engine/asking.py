"""Asking an engine for something and waiting, as one does in a program of one's own."""

import abc
from collections.abc import Sequence
from concurrent.futures import Future

from model.engine.request import Request, RequestOutput
from model.tokenizer import Tokenizer
from schemas.error import SetupError
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

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        run_seed: int = 0,
    ) -> list[RequestOutput]:
        """Completes prompts, given as text or as token ids, and waits.

        Args:
          prompts: what to complete; a lone text is one prompt.
          params: for all, or one for each; by default vLLM's defaults.
          run_seed: with a prompt's index, what its randomness derives from.

        Returns:
          One answer a prompt, in order.

        Raises:
          SetupError: text without a tokenizer.
          EngineClosed: the devices failed.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        params = params or SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = [
            Request(
                prompt_token_ids=tuple(self.encode(prompt)), params=p, address=f"{run_seed}/{i}"
            )
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        ]
        return [future.result() for future in self.submit_all(requests)]

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
