"""From texts to what the engine scores, and from its scores to figures. No JAX.

The conventions are lm-evaluation-harness's, so that figures compare: spaces at the end of a context
belong to the continuation, context and continuation are tokenized together, and an empty context
is the prefix token.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from model.engine.scoring import Score, ScoreOutput, ScoreRequest
from model.tokenizer import Tokenizer
from schemas.error import SetupError

if TYPE_CHECKING:
    from model.engine.engine import Engine

Ids = Sequence[int]


def prefix_token(tokenizer: Tokenizer | None, eos_token: int) -> int:
    """What stands before the first token of a text: BOS, or EOS where there is none."""
    if tokenizer is not None and tokenizer.bos_id >= 0:
        return tokenizer.bos_id
    return eos_token


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], prefix: int, bos: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each pair as token ids.

    Args:
      tokenizer: the model's.
      pairs: texts.
      prefix: see ``prefix_token``; the context where a text has none.
      bos: whether to begin contexts with the BOS token.
    """
    texts: list[str] = []
    for context, continuation in pairs:
        kept = context.rstrip()
        texts += [kept, kept + context[len(kept) :] + continuation]
    ids = tokenizer.encode_batch(texts)
    encoded = []
    for head, whole in zip(ids[::2], ids[1::2], strict=True):
        context_ids = [tokenizer.bos_id, *head] if bos else head
        encoded.append((context_ids or [prefix], whole[len(head) :]))
    return encoded


def fit(context: Ids, continuation: Ids, max_context: int, keep: bool = False) -> Ids:
    """The end of a context that leaves room for its continuation, whose last token is not run.

    Args:
      context: at least one token.
      continuation: what follows it.
      max_context: most tokens that are run.
      keep: whether the first token, a BOS, stays in any case.

    Returns:
      The whole context where no end of it would do.
    """
    return keep_end(context, max_context + 1 - len(continuation), keep)


def keep_end(tokens: Ids, room: int, keep: bool = False) -> Ids:
    """The last ``room`` tokens, among them the first one if ``keep``; all if there is no room."""
    if len(tokens) <= room or room < 1:
        return tokens
    return [*tokens[:1], *tokens[len(tokens) - room + 1 :]] if keep else tokens[-room:]


def group(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], most: int, logprobs: int | None = None
) -> Iterator[tuple[ScoreRequest, list[int]]]:
    """Pairs of a context and a continuation as requests, in which each context occurs once.

    Args:
      pairs: token ids.
      most: continuations of a request; a context with more of them is run again for the rest.
      logprobs: for all.

    Yields:
      A request, and for each of its continuations the place of its pair.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        places.setdefault(tuple(context), []).append(place)
    for context, all_of_it in places.items():
        for start in range(0, len(all_of_it), most):
            some = all_of_it[start : start + most]
            continuations = tuple(tuple(pairs[place][1]) for place in some)
            yield (
                ScoreRequest(
                    context_token_ids=context, continuations=continuations, logprobs=logprobs
                ),
                some,
            )


def windows(
    tokens: Sequence[int], prefix: int, max_context: int, stride: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """A document as pairs of context and continuation that score each of its tokens once.

    The first window scores what fits; each further one the next ``stride`` tokens, after as much
    context as fits. With ``stride`` equal to ``max_context`` these are lm-evaluation-harness's
    windows: only the last one, which scores fewer, then has more than a token of context.

    Args:
      tokens: of the document.
      prefix: the token that the first one is scored after.
      max_context: most tokens that the model sees at once.
      stride: tokens scored by each window after the first, at most ``max_context``.
    """
    end = min(len(tokens), max_context)
    yield [prefix], tokens[:end]
    while end < len(tokens):
        start, end = end, min(end + stride, len(tokens))
        yield tokens[end - max_context - 1 : start], tokens[start:end]


def perplexity(logprob: float, count: int) -> float:
    """exp of the mean negative log-probability over ``count`` tokens or bytes.

    It is 1 for nothing, and infinity where it is too large.
    """
    try:
        return math.exp(-logprob / count) if count else 1.0
    except OverflowError:
        return math.inf


def join(scores: Sequence[Score]) -> Score:
    """The scores of a document's windows, in order, as its own."""
    logprobs = tuple(value for score in scores for value in score.token_logprobs)
    facts = [fact for score in scores for fact in score.logprobs or ()]
    return Score(
        token_ids=tuple(token for score in scores for token in score.token_ids),
        logprob=math.fsum(logprobs),
        is_greedy=all(score.is_greedy for score in scores),
        token_logprobs=logprobs,
        logprobs=tuple(facts) if facts else None,
    )


Pair = tuple[str, str] | tuple[Ids, Ids]
"""A context and its continuation."""


def score_pairs(engine: "Engine", pairs: Sequence[Pair]) -> list[ScoreOutput]:
    """Scores pairs of context and continuation, texts or token ids; one answer a pair, in order.

    Raises:
      SetupError: text without a tokenizer.
    """
    encoded = _encoded(engine, pairs)
    answers: dict[int, ScoreOutput] = {}
    for place, (context, continuation) in enumerate(encoded):
        request = ScoreRequest(
            context_token_ids=tuple(context), continuations=(tuple(continuation),)
        )
        answers[place] = ScoreOutput(request=request, error=engine.score_fault(request))
    good = [place for place, answer in answers.items() if answer.error is None]
    groups = list(group([encoded[place] for place in good], engine.max_continuations))
    futures = engine.submit_scores([request for request, _ in groups])
    for (_, members), future in zip(groups, futures, strict=True):
        for member, score in zip(members, future.result().scores, strict=True):
            place = good[member]
            answers[place] = dataclasses.replace(answers[place], scores=(score,))
    return [answers[place] for place in range(len(pairs))]


def _encoded(engine: "Engine", pairs: Sequence[Pair]) -> list[tuple[Ids, Ids]]:
    texts = [(c, k) for c, k in pairs if isinstance(c, str) and isinstance(k, str)]
    encoded: Iterator[tuple[Ids, Ids]] = iter(())
    if texts:
        if engine.tokenizer is None:
            raise SetupError("text needs a tokenizer: give one, or token ids")
        prefix = prefix_token(engine.tokenizer, engine.config.eos_token)
        encoded = iter(encode_pairs(engine.tokenizer, texts, prefix))
    return [next(encoded) if isinstance(pair[1], str) else pair for pair in pairs]


def score_documents(
    engine: "Engine", documents: Sequence[str | Ids], stride: int | None = None
) -> list[Score]:
    """Scores each token of whole texts, given as text or as token ids.

    Args:
      engine: scores.
      documents: of any length.
      stride: tokens scored by each window after a document's first; by default the whole context,
        as lm-evaluation-harness does. Less costs more, and gives each token more context.

    Raises:
      SetupError: text without a tokenizer.
      ValueError: a document holds what is no token.
    """
    tokenizer, most = engine.tokenizer, engine.max_context
    prefix = prefix_token(tokenizer, engine.config.eos_token)
    pieces: list[tuple[Ids, Ids]] = []
    counts = []
    for document in documents:
        ids = engine.encode(document)
        cut = list(windows(ids, prefix, most, min(stride or most, most))) if ids else []
        pieces += cut
        counts.append(len(cut))
    outputs = iter(score_pairs(engine, pieces))
    results = []
    for place, count in enumerate(counts):
        scores: list[Score] = []
        for output in itertools.islice(outputs, count):
            if output.error is not None:
                raise ValueError(f"document {place}: {output.error.sentence(called=True)}")
            scores += output.scores
        results.append(join(scores))
    return results
