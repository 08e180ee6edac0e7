"""Grok-1 as a model of lm-evaluation-harness (the extra ``lm-eval``), under the name ``grok1``.

Importing this module registers it; as a command it is the harness with it registered:

  python -m model.lm_eval run --model grok1 --model_args checkpoint=ckpt --tasks hellaswag
"""

import collections
import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from model import evaluation
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.engine.request import Request
from model.generation import sampling_values
from schemas.error import SetupError
from schemas.sampling import SamplingParams

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@register_model("grok1")
class Grok1LM(LM):
    """Answers the harness's requests by an engine, all that it asks at once.

    The engine itself keeps the slots full and computes shared contexts once, so that neither batch
    size nor order matter, nor change any number.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        tokenizer: str | None = None,
        numerics: str = "bf16",
        slots: int | None = None,
        max_context: int | None = None,
        devices: int | None = None,
        bos: bool = False,
        stride: int | None = None,
        max_gen_toks: int = 256,
        run_seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        """The harness gives these by name in ``--model_args``.

        Args:
          checkpoint: folder of the checkpoint, or its URL.
          tokenizer: SentencePiece model; by default the checkpoint's.
          numerics: see ``EngineOptions``, as for the next three.
          slots: sequences decoded at once.
          max_context: longest context in tokens.
          devices: of the mesh.
          bos: whether contexts and prompts begin with the BOS token.
          stride: of windows in longer documents; see ``evaluation.score_documents``.
          max_gen_toks: most tokens of a completion where a task does not say; never more than
            half of the context.
          run_seed: what the randomness of sampled completions derives from.
          batch_size: has no effect, as have the next two; the harness hands them to all models.
          max_batch_size: the same.
          device: the same.

        Raises:
          SetupError: the checkpoint cannot be loaded, or has no tokenizer.
        """
        super().__init__()
        with _by_argument():
            options = EngineOptions(
                numerics=numerics, slots=slots, max_context=max_context, devices=devices
            )
            self.engine = Engine.from_checkpoint(checkpoint, tokenizer=tokenizer, options=options)
        if self.engine.tokenizer is None:
            self.engine.close()
            raise SetupError(f"{checkpoint} has no tokenizer.model; name one: tokenizer=FILE")
        self._tokenizer = self.engine.tokenizer
        self._prefix = evaluation.prefix_token(self._tokenizer, self.engine.config.eos_token)
        self._bos = bos
        self._stride = stride
        self._max_gen_toks = min(max_gen_toks, self.engine.max_context // 2)
        self._run_seed = run_seed

    def loglikelihood(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each (context, continuation).

        What exceeds the context is left out at its beginning.

        Raises:
          ValueError: a continuation has no tokens, or more than the context.
        """
        pairs = [instance.args for instance in requests]
        encoded = evaluation.encode_pairs(self._tokenizer, pairs, self._prefix, self._bos)
        cut = [(evaluation.fit(c, k, self.engine.max_context, self._bos), k) for c, k in encoded]
        answers = []
        for pair, output in zip(pairs, self.engine.score(cut), strict=True):
            if output.error is not None:
                raise ValueError(
                    f"continuation {pair[1]!r:.60}: {output.error.sentence(called=True)}"
                )
            [score] = output.scores
            answers.append((score.logprob, score.is_greedy))
            self.cache_hook.add_partial("loglikelihood", pair, answers[-1])
        return answers

    def loglikelihood_rolling(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, however long."""
        texts = [instance.args[0] for instance in requests]
        documents = evaluation.score_documents(self.engine, texts, self._stride)
        answers = [document.logprob for document in documents]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """The completion of each context, without the string that ended it.

        An empty context is the prefix token; what exceeds the context is left out at its beginning,
        but for a BOS. What is drawn depends on the run's seed and what is asked, not on the order.

        Raises:
          InvalidParameter: a task asks for what is no sampling parameter.
          ValueError: a prompt cannot be run.
        """
        asked = [instance.args for instance in requests]
        prompts = self._tokenizer.encode_batch([context for context, _ in asked], bos=self._bos)
        futures = self.engine.submit_all(
            [
                self._request(prompt or [self._prefix], options, address)
                for prompt, (_, options), address in zip(
                    prompts, asked, self._addresses(requests), strict=True
                )
            ]
        )
        answers = []
        for arguments, future in zip(asked, futures, strict=True):
            output = future.result()
            if output.error is not None:
                raise ValueError(
                    f"prompt {arguments[0]!r:.60}: {output.error.sentence(called=True)}"
                )
            answers.append(output.outputs[0].text)
            self.cache_hook.add_partial("generate_until", arguments, answers[-1])
        return answers

    def _addresses(self, requests: list["Instance"]) -> Iterator[str]:
        """What each one's randomness derives from; one that is repeated draws anew each time."""
        seen: collections.Counter[tuple] = collections.Counter()
        for asked in requests:
            own = asked.task_name, asked.doc_id, asked.idx, asked.args[0]
            yield f"{self._run_seed}/{own}/{seen[own]}"
            seen[own] += 1

    def _request(self, prompt: list[int], options: dict[str, Any], address: str) -> Request:
        params = SamplingParams().override(sampling_values(options, self._max_gen_toks))
        room = self.engine.max_context - params.least_room
        kept = evaluation.keep_end(prompt, room, self._bos)
        return Request(prompt_token_ids=tuple(kept), params=params, address=address)


@contextlib.contextmanager
def _by_argument() -> Iterator[None]:
    """Calls what is wrong with a set-up by the names of ``--model_args``, which has no flags."""
    try:
        yield
    except SetupError as fault:
        named = re.sub("--([a-z-]*[a-z])", lambda flag: flag[1].replace("-", "_"), str(fault))
        raise SetupError(named) from None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
