"""Asking the engine for a chunk's rows, when one of them may kill it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from model.engine.memory import OutOfMemory
from pipeline import registry
from pipeline.questions import Answers, Ask, Questions
from pipeline.registry import Held
from pipeline.saved import without
from pipeline.strikes import QUARANTINE, Attempt, Ledger
from schemas.error import ErrorCode, RowError


def answer(batch: Questions, held: Held, ledger: Ledger | None) -> Answers:
    """The chunk with the engine's answers.

    At the first attempt all rows are asked, some at a time. When an attempt has died, the rows that
    were in the engine then are suspects: all others go first and are saved, and then each suspect
    goes alone. One that died alone often enough is refused; so are the suspects that are left when
    the runner will not try again.
    """
    asks, outputs = batch.open(held.engine)
    if ledger is None:
        found = held.gate.ask_all([ask.start for ask in asks], lambda places: None)
        return batch.answered(outputs(found), **_facts(held))
    attempt = ledger.begin(batch.chunk.part_name, batch.row_uids)
    try:
        if attempt.history or batch.known:
            return _warily(batch, held, ledger, attempt)
        found = held.gate.ask_all([ask.start for ask in asks], partial(_admit, attempt, asks))
        attempt.end()
    except BaseException as error:
        # Given up, not failed: nobody is to blame for a process that is told to go, nor for memory.
        innocent = registry.is_ending() or isinstance(error, OutOfMemory)
        attempt.end() if innocent else attempt.fail()
        raise
    return batch.answered(outputs(found), **_facts(held))


def _warily(batch: Questions, held: Held, ledger: Ledger, attempt: Attempt) -> Answers:
    asks, outputs = batch.open(held.engine)
    suspects = {**dict.fromkeys(batch.suspects, 0), **attempt.history.suspects}
    saved = without([*batch.known, *attempt.saved()])
    done = {row for piece in saved for row in piece.rows}
    open_ = [i for i, ask in enumerate(asks) if not done.issuperset(ask.rows)]
    found: list[Any] = [None] * len(asks)
    refused: dict[int, RowError] = {}

    def strikes(i: int) -> int:
        return max(suspects.get(row, -1) for row in asks[i].rows)

    def answers(found: Sequence[Any]) -> list[Any]:
        # A question may be for a row that is done, too.
        given = zip(batch.sources, outputs(found), strict=True)
        return [None if row in done else output for row, output in given]

    def save(places: Sequence[int]) -> None:
        some = [found[i] if i in places else None for i in range(len(asks))]
        answered = batch.answered(answers(some), **_facts(held))
        attempt.save(answered.save(ledger.schema, ledger.run_seed))

    def acquit(i: int, answer: Any) -> None:
        found[i] = answer
        save([i])
        attempt.acquit()

    others = [i for i in open_ if strikes(i) < 0]
    if others:
        some = [asks[i] for i in others]
        told = held.gate.ask_all([ask.start for ask in some], partial(_admit, attempt, some))
        for i, output in zip(others, told, strict=True):
            found[i] = output
        save(others)
        attempt.end()
    for i in sorted((i for i in open_ if strikes(i) >= 0), key=strikes):
        if strikes(i) >= QUARANTINE or attempt.last:
            error = _poison(strikes(i))
            refused.update({row: error for row in asks[i].rows if row not in done})
            continue
        accuse = partial(attempt.accuse, asks[i].rows)
        held.gate.ask_alone(asks[i].start, accuse, partial(acquit, i))
    return batch.answered(answers(found), saved=tuple(saved), refused=refused, **_facts(held))


def _facts(held: Held) -> dict[str, Any]:
    engine = held.engine
    return {"has_text": engine.tokenizer is not None, "engine": engine.provenance()}


def _admit(attempt: Attempt, asks: Sequence[Ask], places: Sequence[int]) -> None:
    attempt.admit(sorted({row for i in places for row in asks[i].rows}))


def _poison(strikes: int) -> RowError:
    if strikes >= QUARANTINE:
        return RowError(
            ErrorCode.POISON, f"the process died {strikes} times while it ran this row alone"
        )
    return RowError(
        ErrorCode.SUSPECTED_POISON,
        "the process died while it ran this row beside others, and is not started again",
    )
