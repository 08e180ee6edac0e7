"""The training loop: Muon for the products' weights, Adam for the rest, float32, one process."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
import optax

from examples.training import network
from examples.training.text import Corpus, windows
from model.config import Grok1Config
from model.params import declare

_CAPACITY = 1.25
_BALANCE = 0.01
"""Weight of uneven loads in the loss: enough that the capacity drops few rows."""

_SCORED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps of one shape.

    Attributes:
      steps: how many.
      sequences: B, windows of a step.
      length: T, tokens of a window.
    """

    steps: int
    sequences: int
    length: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that training depends on, beside the text.

    Attributes:
      config: the model's shape.
      phases: worked off in order; short windows are cheap, long ones teach the whole context.
      muon_rate: peak learning rate of products' weights.
      adam_rate: peak learning rate of embedding, router and norms.
      weight_decay: of products' weights, times the learning rate.
      seed: of weights and order.
    """

    config: Grok1Config
    phases: tuple[Phase, ...]
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Seen in all phases."""
        return sum(p.steps * p.sequences * p.length for p in self.phases)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far training is: step of steps, mean loss since the last report, tokens and seconds."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


def train(
    recipe: Recipe, corpus: Corpus, report: Callable[[Progress], None], every: int = 50
) -> network.Params:
    """The trained weights. The same bits for the same text, recipe, machine and versions."""
    config = recipe.config
    params = network.initial_params(config, recipe.seed)
    optimizer = _optimizer(recipe)
    state = optimizer.init(params)

    def loss(params: network.Params, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, balance = network.logits(params, batch[:, :-1], config, _CAPACITY)
        mean = network.token_losses(scores, batch[:, 1:]).mean()
        return mean + _BALANCE * balance, mean

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        gradient, mean = jax.grad(loss, has_aux=True)(params, batch)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, mean

    losses, tokens, started = [], 0, time.perf_counter()
    for index, batch in enumerate(batches(recipe, corpus), 1):
        params, state, mean = step(params, state, batch)
        losses.append(mean)
        tokens += batch[:, 1:].size
        if index % every == 0 or index == recipe.steps:
            mean = float(np.mean(losses))
            report(Progress(index, recipe.steps, mean, tokens, time.perf_counter() - started))
            losses.clear()
    return params


def batches(recipe: Recipe, corpus: Corpus) -> Iterator[np.ndarray]:
    """[B, T + 1] ids for step after step: each phase goes through the text in its own order."""
    random = np.random.default_rng(recipe.seed)
    for phase in recipe.phases:
        starts = windows(corpus, phase.length + 1)
        order = np.empty(0, np.int64)
        for _ in range(phase.steps):
            while len(order) < phase.sequences:
                order = np.concatenate([order, random.permutation(starts)])
            chosen, order = order[: phase.sequences], order[phase.sequences :]
            yield corpus.tokens[chosen[:, None] + np.arange(phase.length + 1)].astype(np.int32)


def held_out_losses(params: network.Params, corpus: Corpus, config: Grok1Config) -> np.ndarray:
    """[N - 1] natural-log losses of each token but the first, nothing dropped.

    Windows overlap by half, and the second half counts: each token has at least half a context
    before it, those at the beginning of the text apart.
    """
    length = config.sequence_len
    half = length // 2
    tokens = np.zeros(-(-len(corpus.tokens) // half) * half + half + 1, np.int32)
    tokens[: len(corpus.tokens)] = corpus.tokens
    starts = np.arange(0, len(corpus.tokens), half)

    @jax.jit
    def losses(params, batch):
        scores, _ = network.logits(params, batch[:, :-1], config)
        return network.token_losses(scores, batch[:, 1:])

    found = []
    for at in range(0, len(starts), _SCORED_ROWS):
        rows = starts[np.minimum(np.arange(at, at + _SCORED_ROWS), len(starts) - 1)]
        batch = tokens[rows[:, None] + np.arange(length + 1)]
        found.append(np.asarray(losses(params, batch))[: len(starts) - at])
    rows = np.concatenate(found)
    return np.concatenate([rows[0], *rows[1:, half:]])[: len(corpus.tokens) - 1]


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    layers = {p.name: p.quantized for p in declare(recipe.config).values() if p.per_layer}
    # Muon makes each product's weight, layer by layer and expert by expert, a matrix of its own.
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    dimensions = {
        "embedding": None,
        "final_norm": None,
        "layers": {name: matrix if product else None for name, product in layers.items()},
    }
    return optax.contrib.muon(
        _schedule(recipe.muon_rate, recipe.steps),
        adam_learning_rate=_schedule(recipe.adam_rate, recipe.steps),
        adam_b2=0.95,
        weight_decay=recipe.weight_decay,
        muon_weight_dimension_numbers=dimensions,
    )


def _schedule(peak: float, steps: int) -> optax.Schedule:
    """Up in a twentieth of the steps, down to nothing over the second half."""
    up, down = max(1, steps // 20), max(1, steps // 2)
    return optax.join_schedules(
        [
            optax.linear_schedule(0, peak, up),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0, down),
        ],
        [up, steps - down],
    )
