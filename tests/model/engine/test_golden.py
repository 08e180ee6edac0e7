"""The numbers of the reference, through the checkpoint reader and the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import layout
from model.checkpoint.source import open_checkpoint
from model.engine import batch, sampler
from model.engine.cache import PagePool
from model.engine.options import EngineOptions
from model.engine.programs import Plan, abstract_cache
from model.engine.request import Request
from model.engine.scheduler import Scheduler
from model.engine.shapes import Machine, choose_shapes
from model.numerics import MODES
from model.placement import load_params
from model.sharding import make_mesh
from model.transformer import final_hidden, forward, head, tiled
from schemas.sampling import MAX_LOGPROBS, SamplingParams
from tests.model import reference
from tests.model.engine.conftest import GOLDEN, greedy, truth

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def scored(engine):
    """Log-probability and likeliest token at each position of the golden sequences."""
    outputs = engine.generate(
        truth("exact").sequences, SamplingParams(max_tokens=1, prompt_logprobs=1)
    )
    logprob = [[0.0] + [t.logprob for t in o.prompt_logprobs[1:]] for o in outputs]
    top1 = [[t.top_token_ids[0] for t in o.prompt_logprobs[1:]] for o in outputs]
    return np.concatenate(logprob), top1


def test_float32_is_exact(engines):
    exact = truth("exact")
    logprob, top1 = scored(engines(numerics="float32"))
    np.testing.assert_allclose(logprob, exact.flat("logprob"), rtol=1e-4, atol=1e-4)
    for found, want, gap in zip(top1, exact.top1, exact.gap, strict=True):
        clear = gap[:-1] > 1e-3
        assert (np.array(found)[clear] == want[:-1][clear]).all()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def assert_likeliest(details, want):
    """The likeliest tokens at each position are those of the logits, as likely as they say."""
    for token, row in zip(details, log_softmax(want), strict=True):
        np.testing.assert_allclose(
            token.top_logprobs, row[list(token.top_token_ids)], rtol=1e-4, atol=1e-4
        )
        left_out = np.delete(row, token.top_token_ids).max()
        assert min(token.top_logprobs) > left_out - 1e-4


def test_the_likeliest_tokens_of_each_position(engines):
    """The logits of whole sequences, through the engine's prefill and its score step."""
    exact = truth("exact")
    params = SamplingParams(max_tokens=1, prompt_logprobs=MAX_LOGPROBS)
    outputs = engines(numerics="float32").generate(exact.sequences[:2], params)
    for output, want in zip(outputs, exact.full, strict=True):
        assert_likeliest(output.prompt_logprobs[1:], want[:-1])


def test_the_likeliest_next_tokens(engines):
    """The logits after each sequence, through prefill, cache and a decode step."""
    exact = truth("exact")
    params = SamplingParams(max_tokens=1, logprobs=MAX_LOGPROBS, ignore_eos=True)
    outputs = engines(numerics="float32").generate(exact.sequences, params)
    assert_likeliest([output.outputs[0].logprobs[0] for output in outputs], exact.last)


def test_every_token_that_may_follow(engines):
    """All V log-probabilities after a sequence, as scores of one token each."""
    exact, engine = truth("exact"), engines(numerics="float32")
    sequence, vocabulary = exact.sequences[1], engine.config.vocab_size
    outputs = engine.score([(sequence, [token]) for token in range(vocabulary)])
    found = [output.scores[0].logprob for output in outputs]
    np.testing.assert_allclose(found, log_softmax(exact.last[1]), rtol=1e-4, atol=1e-4)


def test_bf16_is_no_farther_from_exact_than_the_reference(engines):
    exact, reference = truth("exact"), truth("reference_bf16")
    logprob, top1 = scored(engines(numerics="bf16"))
    ours = abs(logprob - exact.flat("logprob")).mean()
    theirs = abs(reference.flat("logprob") - exact.flat("logprob")).mean()
    assert ours <= theirs
    clear = np.concatenate([g[:-1] for g in exact.gap]) > 0.25
    want = np.concatenate([t[:-1] for t in exact.top1])[clear]
    theirs = np.concatenate([t[:-1] for t in reference.top1])[clear]
    ours = np.concatenate(top1)[clear]
    assert (ours == want).mean() >= (theirs == want).mean()


@pytest.mark.slow
def test_release_rounds_where_the_reference_does(engines):
    reference = truth("reference_bf16")
    logprob, _ = scored(engines(numerics="release"))
    assert abs(logprob - reference.flat("logprob")).mean() < 0.08


def assert_greedy(outputs, rows, completions, margin):
    """Equal tokens up to each row's first step that is closer than the margin."""
    compared = 0
    for output, row, completion in zip(outputs, rows, completions, strict=True):
        close = [i for i, m in enumerate(row["margin"]) if m < margin]
        stop = close[0] if close else len(completion)
        assert list(output.outputs[0].token_ids[:stop]) == completion[:stop]
        compared += stop
    assert compared > 0.5 * sum(map(len, completions))


def test_float32_greedy(engines):
    rows = greedy("greedy_exact")
    outputs = engines(numerics="float32").generate([row["prompt"] for row in rows], GREEDY)
    assert_greedy(outputs, rows, [row["completion"] for row in rows], 1e-3)


def test_bf16_greedy(engines):
    margins = {tuple(row["prompt"]): row["margin"] for row in greedy("greedy_exact")}
    rows = [
        {**row, "margin": margins[tuple(row["prompt"])]}
        for row in greedy("greedy_reference_bf16")
        if tuple(row["prompt"]) in margins
    ]
    outputs = engines(numerics="bf16").generate([row["prompt"] for row in rows], GREEDY)
    assert_greedy(outputs, rows, [row["completion"] for row in rows], 0.1)


def test_decoding_agrees_with_scoring(engines):
    """The cache as decode steps fill it says what a prefill of the same tokens says."""
    engine = engines(numerics="float32")
    prompts = [row["prompt"] for row in greedy("greedy_exact")]
    params = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True, logprobs=0)
    outputs = engine.generate(prompts, params)
    whole = [p + list(o.outputs[0].token_ids) for p, o in zip(prompts, outputs, strict=True)]
    again = engine.generate(whole, SamplingParams(max_tokens=1, prompt_logprobs=0))
    for prompt, output, check in zip(prompts, outputs, again, strict=True):
        decoded = [t.logprob for t in output.outputs[0].logprobs]
        prefilled = [t.logprob for t in check.prompt_logprobs[len(prompt) :]]
        np.testing.assert_allclose(decoded, prefilled, rtol=1e-4, atol=1e-4)


def test_nucleus_keeps_what_the_reference_keeps():
    data = np.load(GOLDEN / "nucleus.npz")
    kept = sampler.keep_top_p(jnp.asarray(data["logits"]), jnp.asarray(data["p"])) > -jnp.inf
    assert (np.asarray(kept) == data["kept"]).all()


class Forward:
    """All logits of the golden sequences by the prefill step's own parts."""

    def __init__(self, config=None, change=lambda params: params, mode="float32"):
        checkpoint = open_checkpoint(str(GOLDEN))
        numerics = MODES[mode]
        config = config or checkpoint.config
        mesh = make_mesh(1, config, jax.devices())
        options = EngineOptions(numerics=mode, prefill_rows=128)
        machine = Machine(platform="cpu", devices=1, cache_bytes=1 << 26)
        shapes = choose_shapes(config, options, machine)
        weights = layout.choose_layout("cpu", numerics)
        self.plan = Plan(config, numerics, weights, shapes, mesh)
        params = load_params(checkpoint.read_parts, config, mesh, numerics, weights)
        self.params = change(params)
        self.step = jax.jit(self.logits)

    def logits(self, params, rows, queries):
        net = self.plan.prefilling
        cache = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_cache(self.plan))
        hidden, _ = forward(net, params, cache, rows, queries)
        return tiled(
            net,
            rows,
            lambda h: head(net, final_hidden(net, params, h), params["head"]),
            hidden,
        )

    def error(self, tokens, want):
        """Relative error over all logits of one sequence."""
        shapes = self.plan.shapes
        scheduler = Scheduler(PagePool(shapes.pages, shapes.block_size), shapes.slots)
        # One token more, since the last of a prompt is a decode step's.
        scheduler.add(Request(prompt_token_ids=(*tokens, 0), params=SamplingParams()), None)
        scheduler.admit()
        segments = scheduler.plan(shapes.prefill_rows, shapes.prefill_blocks).segments
        got = self.step(self.params, *batch.pack(segments, shapes))[: len(tokens)]
        return np.linalg.norm(got - want) / np.linalg.norm(want)

    def errors(self, name="exact"):
        """The error of each of the two sequences that the golden data has in full."""
        want = truth(name)
        return [self.error(*pair) for pair in zip(want.sequences, want.full, strict=False)]


def test_all_logits():
    assert max(Forward().errors()) < 1e-4


def test_all_logits_rounded_as_in_the_release():
    """The reference's own, which rounds, are up to 0.11 from exact ones."""
    assert max(Forward(mode="release").errors("reference_bf16")) < 0.15


def test_the_oracle_is_exact():
    checkpoint = open_checkpoint(str(GOLDEN))
    weights = reference.dequantized(checkpoint)
    for tokens, want in zip(truth("exact").sequences, truth("exact").full, strict=False):
        got = reference.logits(checkpoint.config, weights, tokens)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
