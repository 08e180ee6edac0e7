"""The arrays on the devices, and the compiled steps that turn them into the next ones."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from model.attention import Queries
from model.engine.drafts import Histories
from model.engine.programs import HEAD, Plan
from model.engine.rows import Pending
from model.engine.score import Asks, Scores
from model.engine.state import SlotState
from model.engine.step import Rounds
from model.engine.tables import TableRows, Tables, empty_masks
from model.paged_cache import PagedCache
from model.transformer import Params, TokenRows


class Runner:
    """Cache, state, tables and masks of one engine. Each call dispatches; ``wait`` alone waits."""

    def __init__(
        self,
        steps: Mapping[str, Callable[..., Any]],
        plan: Plan,
        params: Params,
        cache: PagedCache,
        state: SlotState,
        tables: Tables,
        histories: Histories,
    ) -> None:
        """``steps`` are compiled of the plan; the device arrays are this one's from now on."""
        self._steps, self._params = steps, params
        self._cache, self._state, self._tables = cache, state, tables
        self._histories = histories
        self._head = {name: params[name] for name in HEAD}
        self._rows = plan.shapes.rows
        self._by_slot = jax.sharding.NamedSharding(plan.mesh, plan.tables_spec)
        self._host_masks = empty_masks(plan.shapes.slots, plan.config.vocab_size)
        self._masks: jax.Array | None = None

    def prefill(self, rows: TokenRows, queries: Queries) -> None:
        """Runs prompt tokens."""
        self._cache = self._steps["prefill"](self._params, self._cache, rows, queries)

    def score(self, rows: TokenRows, queries: Queries, asks: Asks) -> Scores:
        """Runs prompt tokens, and judges what follows them."""
        self._cache, scores = self._steps["score"](self._params, self._cache, rows, queries, asks)
        return scores

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copies pages of the cache, (source, target) each."""
        for start in range(0, len(copies), self._rows):
            pairs = np.zeros((2, self._rows), np.int32)
            some = copies[start : start + self._rows]
            pairs[:, : len(some)] = np.transpose(some)
            self._cache = self._steps["copy_pages"](self._cache, *pairs)

    def edit_slots(self, changed: np.ndarray, values: SlotState) -> None:
        """Replaces the state of slots. None of them may have been run and not drawn from."""
        self._state = self._steps["edit_slots"](self._state, changed, values)

    def fill_tables(self, rows: TableRows) -> None:
        """Replaces what the tables hold of slots."""
        self._tables = self._steps["fill_tables"](self._tables, rows)

    def fill_histories(self, slots: np.ndarray, prompts: np.ndarray) -> None:
        """Replaces what drafts of slots are looked up in; see ``drafts.fill_histories``."""
        self._histories = self._steps["fill_histories"](self._histories, slots, prompts)

    def set_mask(self, slot: int, mask: np.ndarray) -> None:
        """What a slot may draw from now on: [V / 32] uint32, a bit for each token."""
        self._host_masks[slot] = mask
        self._masks = None

    def decode(self) -> Rounds:
        """Draws several tokens of live slots, each run before the next."""
        kept = (self._cache, self._state, self._tables, self._histories)
        *kept, rounds = self._steps["decode"](self._params, *kept, self._sent_masks())
        self._cache, self._state, self._tables, self._histories = kept
        return rounds

    def run(self) -> Pending:
        """Runs the last tokens of live slots."""
        self._cache, pending = self._steps["run"](self._params, self._cache, self._state)
        return pending

    def draw(self, pending: Pending, ready: np.ndarray) -> Rounds:
        """Draws the next tokens of slots that have been run and are ``ready`` [S]."""
        self._state, self._tables, rounds = self._steps["draw"](
            self._head, self._state, self._tables, self._sent_masks(), ready, pending
        )
        return rounds

    def wait(self) -> None:
        """Waits until the devices have done all that was asked of them."""
        jax.block_until_ready((self._cache, self._state, self._tables, self._histories))

    def release(self) -> None:
        """Waits until the devices are done, well or badly, and lets all that they hold go."""
        with contextlib.suppress(Exception):
            self.wait()
        del self._params, self._head, self._cache, self._state, self._tables, self._masks
        del self._histories

    def _sent_masks(self) -> jax.Array:
        if self._masks is None:
            # A copy, since the host goes on writing while it travels.
            self._masks = jax.device_put(self._host_masks.copy(), self._by_slot)
        return self._masks
