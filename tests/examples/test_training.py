import ast
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.training import network, ngrams, text
from examples.training.quantize import quantize, read_checkpoint, write_checkpoint
from examples.training.train import Phase, Recipe, batches, held_out_losses, train
from model.checkpoint.source import open_checkpoint
from model.config import PRESETS
from model.params import declare
from tests.model import reference

CONFIG = dataclasses.replace(
    PRESETS["tiny"],
    num_layers=1,
    num_q_heads=4,
    num_kv_heads=2,
    num_experts=4,
    ffn_size=64,
    sequence_len=32,
)
logits = jax.jit(network.logits, static_argnums=(2, 3))


@pytest.fixture(scope="module")
def params():
    return network.initial_params(CONFIG, seed=0)


@pytest.fixture(scope="module")
def corpus():
    random = np.random.default_rng(0)
    walk = np.cumsum(random.integers(1, 4, 4000)) % 900 + 4  # what follows a token is one of three
    return text.Corpus(walk.astype(np.uint16), np.arange(0, 4000, 50), 4000)


def some_tokens(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(4, CONFIG.vocab_size, shape))


# The network.


@pytest.mark.slow
def test_the_forward_is_the_models():
    config = dataclasses.replace(CONFIG, num_layers=2, sequence_len=80)
    params = network.initial_params(config, seed=1)
    weights = {(None, name): np.asarray(params[name]) for name in ("embedding", "final_norm")}
    for name, stack in params["layers"].items():
        weights |= {(i, name): np.asarray(weight) for i, weight in enumerate(stack)}
    tokens = some_tokens((2, 70))  # more than one block of queries
    scores, _ = logits(params, tokens, config)
    for row, found in zip(tokens.tolist(), np.asarray(scores), strict=True):
        np.testing.assert_allclose(found, reference.logits(config, weights, row), atol=1e-4)


@pytest.mark.slow
def test_room_for_all_drops_nothing(params):
    tokens = some_tokens((2, 16))
    whole, balance = logits(params, tokens, CONFIG)
    roomy, _ = logits(params, tokens, CONFIG, CONFIG.num_experts)
    tight, _ = logits(params, tokens, CONFIG, 0.5)
    np.testing.assert_allclose(roomy, whole, atol=1e-5)
    assert np.abs(tight - whole).max() > 0.01
    assert balance >= 1 - 1e-5


@pytest.mark.slow
def test_the_gradient_is_that_of_the_plain_form(params, monkeypatch):
    tokens = some_tokens((2, 16))

    def loss(params, move):
        monkeypatch.setattr(network, "_move", move)
        scores, balance = network.logits(params, tokens[:, :-1], CONFIG, 0.5)
        return network.token_losses(scores, tokens[:, 1:]).mean() + balance

    def plainly(x, source, targets):
        return network._rows(x, source)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ours, plain = gradient(params, network._move), gradient(params, plainly)
    for (name, found), expected in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=str(name))
        assert np.abs(found).max() > 0


# Training.


@pytest.fixture(scope="module")
def run(corpus):
    """A short training: its recipe, weights and reports."""
    told = []
    recipe = Recipe(CONFIG, phases=(Phase(40, 8, 32),))
    return recipe, train(recipe, corpus, told.append, every=20), told


@pytest.mark.slow
def test_training_learns(run, corpus):
    recipe, params, told = run
    assert [done.step for done in told] == [20, 40]
    assert told[-1].tokens == recipe.tokens == 40 * 8 * 32
    assert told[-1].loss < told[0].loss - 0.5
    assert held_out_losses(params, corpus, CONFIG).mean() < told[-1].loss


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bits(run, corpus):
    recipe, params, _ = run
    again = train(recipe, corpus, lambda done: None)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_held_out_losses_are_those_of_each_token_with_its_context(params, corpus):
    short = dataclasses.replace(corpus, tokens=corpus.tokens[:41])
    found = held_out_losses(params, short, CONFIG)
    assert len(found) == 40
    for start, stop in [(0, 32), (16, 40)]:  # the second window's first half is context only
        window = jnp.asarray(short.tokens[start : stop + 1].astype(np.int32))[None]
        scores, _ = logits(params, window[:, :-1], CONFIG)
        expected = network.token_losses(scores, window[:, 1:])[0]
        kept = slice(0 if start == 0 else 16, None)
        np.testing.assert_allclose(found[start:stop][kept], expected[kept], atol=1e-4)


def test_batches_go_through_the_text(corpus):
    recipe = Recipe(CONFIG, phases=(Phase(200, 2, 16),))
    shown = {tuple(row) for batch in batches(recipe, corpus) for row in batch.tolist()}
    windows = text.windows(corpus, 17)
    assert {tuple(corpus.tokens[at : at + 17].tolist()) for at in windows} == shown


# Int8.


def test_quantised_weights_are_within_half_a_step(params):
    param = declare(CONFIG)["down"]
    weight = np.array(params["layers"]["down"][0])
    weight[0, :8, 3] = 0  # a group of zeros
    host = quantize(weight, param)
    assert host.values.dtype == np.int8
    assert host.scales.shape == param.scales_shape
    steps = np.repeat(host.scales.astype(np.float32), CONFIG.ffn_size // 8, -2)
    # A scale rounded down to bfloat16 clips the largest numbers by one part in 256.
    bound = steps * 0.5 + np.abs(weight) / 256
    assert (np.abs(host.values * steps - weight) <= bound).all()
    assert np.abs(host.values).max() == 127


def test_a_written_checkpoint_is_the_weights(tmp_path, params, trained):
    write_checkpoint(str(tmp_path), params, CONFIG, trained.model)
    open_checkpoint(str(tmp_path)).verify()
    read, config = read_checkpoint(str(tmp_path))
    assert config == CONFIG
    declared = declare(CONFIG)
    for name, weight in params["layers"].items():
        if declared[name].quantized:
            np.testing.assert_allclose(read["layers"][name], weight, atol=0.03)
        else:
            np.testing.assert_array_equal(read["layers"][name], weight)
    np.testing.assert_array_equal(read["embedding"], params["embedding"])


# The text.


@given(st.lists(st.sampled_from(["x = 1\n", "# note\n", "\n", "def f():\n    pass\n",
                                 "@g\nclass A:\n    y = 2\n", '"""Doc."""\n'])))  # fmt: skip
def test_documents_are_the_module_in_order(parts):
    source = "".join(parts)
    documents = list(text.cut(source))

    def solid(code):
        return [line for line in code.splitlines() if line]

    assert solid("".join(documents)) == solid(source)
    for document in documents:
        assert (
            sum(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.parse(document).body) < 2
        )


def test_a_comment_stays_with_its_definition():
    source = "import os\n\n# Why.\n# More.\n@cached\ndef f():\n    return os\n\nx = f()\n"
    assert list(text.cut(source)) == [
        "import os\n",
        "# Why.\n# More.\n@cached\ndef f():\n    return os\n",
        "x = f()\n",
    ]
    assert list(text.cut("def broken(:\n")) == []


@pytest.mark.slow
def test_modules_are_held_out():
    training, held_out = text.read_documents()
    assert len(training) > 20 * len(held_out) > 20
    shared = set(held_out) & set(training)
    assert all(len(document) < 200 for document in shared)  # if __name__ == "__main__": main()
    assert any("def nsmallest" in document for document in held_out)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(2, 20))
def test_windows_hold_every_token(lengths, length):
    starts = np.cumsum([0, *lengths])[:-1]
    size = sum(lengths)
    found = text.windows(text.Corpus(np.zeros(size, np.uint16), starts, size), min(length, size))
    seen = {at for start in found for at in range(start, start + min(length, size))}
    assert seen == set(range(size))


# The n-grams.


@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(2, 4))
def test_probabilities_sum_to_one_whatever_came_before(tokens, order):
    model = ngrams.NGrams(np.array(tokens), order, 4)
    for before in itertools.product(range(4), repeat=order - 1):
        chances = [np.exp(model.logprobs(np.array([*before, last]))) for last in range(4)]
        assert np.sum(chances) == pytest.approx(1)


def test_kneser_ney_by_hand():
    # a b a b c: bigrams ab 2, ba 1, bc 1; one discount: n1 = 2, n2 = 1, so 2 / 4.
    model = ngrams.NGrams(np.array([0, 1, 0, 1, 2]), 2, 3)
    # Tokens seen after different ones: a, b and c after one each. All once, so their discount is 1.
    lower = np.full(3, 1 / 3)
    expected = np.log([(2 - 0.5) / 2 + 0.5 * 1 / 2 * lower[1], 0.5 * 1 / 2 * lower[2]])
    np.testing.assert_allclose(model.logprobs(np.array([0, 1]))[0], expected[0])
    np.testing.assert_allclose(model.logprobs(np.array([0, 2]))[0], expected[1])


def test_what_is_always_so_is_learnt():
    tokens = np.tile(np.arange(7), 200)
    model = ngrams.NGrams(tokens, 5, 7)
    assert np.exp(model.logprobs(tokens)).min() > 0.99
    assert np.exp(ngrams.unigram_logprobs(tokens, tokens, 7)) == pytest.approx(1 / 7)


def test_grams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9-grams of 2048 tokens do not fit"):
        ngrams.NGrams(np.arange(20), 9, 2048)
