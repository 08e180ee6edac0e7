"""Sampling as vLLM defines it, in float64 NumPy with sorts, one row at a time: an oracle."""

import numpy as np

from schemas.sampling import SamplingParams


def changed(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: tuple[int, ...] = (),
    drawn: tuple[int, ...] = (),
    bad_words: tuple[tuple[int, ...], ...] = (),
    banned: tuple[int, ...] = (),
) -> np.ndarray:
    """Logits [V] after biases, penalties and masks."""
    x = logits.astype(np.float64)
    for token_id, bias in params.logit_bias:
        x[token_id] += bias
    counts = np.bincount(drawn, minlength=len(x)) if drawn else np.zeros(len(x), int)
    seen = counts > 0
    seen[list(prompt)] = True
    r = params.repetition_penalty
    x = np.where(seen, np.where(x > 0, x / r, x * r), x)
    x -= params.frequency_penalty * counts
    x -= params.presence_penalty * (counts > 0)
    if params.allowed_token_ids is not None:
        kept = np.isin(np.arange(len(x)), params.allowed_token_ids)
        x = np.where(kept, x, -np.inf)
    barred = x.copy()
    for *before, last in bad_words:
        if not before or tuple(drawn[-len(before) :]) == tuple(before):
            barred[last] = -np.inf
    barred[list(banned)] = -np.inf
    return barred if (barred > -np.inf).any() else x


def filtered(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Logits [V] after temperature, min-p, top-k and top-p; ties of the last stay."""
    x = logits / params.temperature
    if params.min_p > 0:
        p = softmax(x)
        x = np.where(p >= params.min_p * p.max(), x, -np.inf)
    if params.top_k > 0:
        x = np.where(x >= np.sort(x)[-min(params.top_k, len(x))], x, -np.inf)
    if params.top_p < 1:
        p = softmax(x)
        falling = -np.sort(-p)
        x = np.where(p >= falling[np.searchsorted(np.cumsum(falling), params.top_p)], x, -np.inf)
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def beam_search(
    logprobs,
    prompt: tuple[int, ...],
    params: SamplingParams,
    stop_ids: tuple[int, ...],
) -> list[tuple[tuple[int, ...], float]]:
    """The n best completions and their log-probabilities, by vLLM's beam search, to the very end.

    ``logprobs`` gives those of all tokens [V] after a sequence.
    """
    width = params.beam_width

    def worth(hypothesis):
        tokens, total = hypothesis
        length = len(prompt) + len(tokens) - (tokens[-1] in stop_ids)
        return total / length**params.length_penalty

    beams, completed = [((), 0.0)], []
    for _ in range(params.max_tokens):
        going = []
        for tokens, total in beams:
            after = logprobs((*prompt, *tokens))
            for token in np.argsort(-after, kind="stable")[: 2 * width]:
                one = (*tokens, int(token)), total + float(after[token])
                (completed if token in stop_ids else going).append(one)
        beams = sorted(going, key=worth, reverse=True)[:width]
    return sorted(completed + beams, key=worth, reverse=True)[: params.n]
