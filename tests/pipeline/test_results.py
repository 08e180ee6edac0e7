import pyarrow as pa
import pytest

from model.engine.request import CompletionOutput, RequestOutput, TokenLogprob
from model.engine.scoring import Score, ScoreOutput, ScoreRequest
from pipeline import completions_table, scores_table
from schemas import completion, score
from schemas.error import ErrorCode, RowError, SetupError

FAULT = RowError(ErrorCode.PROMPT_EMPTY, "prompt has no tokens", "prompt")


def sample(index: int) -> CompletionOutput:
    return CompletionOutput(
        index=index,
        text=f"text {index}",
        token_ids=(5, index),
        cumulative_logprob=-1.5,
        logprobs=(TokenLogprob(5, -0.5, 1, (5, 6), (-0.5, -2.0)), TokenLogprob(index, -1.0, 2)),
        finish_reason="stop",
        stop_reason=7,
    )


OUTPUTS = [
    RequestOutput(prompt_token_ids=(1, 2, 3), outputs=(sample(0), sample(1)), cached_tokens=2),
    RequestOutput(prompt_token_ids=(), error=FAULT),
]


def test_completions_have_the_columns_of_a_run():
    table = completions_table(OUTPUTS)
    assert table.schema.equals(pa.schema(completion.COLUMNS.items()))
    rows = table.to_pylist()
    assert [row["row_uid"] for row in rows] == ["0", "0", "1"]
    assert [row["text"] for row in rows] == ["text 0", "text 1", None]
    assert [row["stop_reason"] for row in rows] == ["7", "7", None]
    assert [row["prompt_tokens"] for row in rows] == [3, 3, 0]
    assert rows[0]["logprobs"][0]["top_token_ids"] == [5, 6]
    assert rows[2]["error_message"] == "prompt has no tokens (give at least one token)"
    assert completions_table([]).schema == table.schema
    assert table.to_pandas()["status"].tolist() == ["succeeded"] * 2 + ["errored"]


def test_inputs_stand_beside_their_answers():
    inputs = pa.table({"id": [10, 11], "text": ["a", "b"]})
    table = completions_table(OUTPUTS, inputs, prefix="grok_")
    assert table.column_names[:3] == ["id", "text", "grok_row_uid"]
    assert table.column("id").to_pylist() == [10, 10, 11]
    with pytest.raises(SetupError, match="'text'"):
        completions_table(OUTPUTS, inputs)
    with pytest.raises(SetupError, match="3 rows for 2 answers"):
        completions_table(OUTPUTS, pa.table({"id": [1, 2, 3]}))


def test_scores_have_the_columns_of_a_run():
    request = ScoreRequest(context_token_ids=(1, 2), continuations=((3,), (4, 5)))
    scores = (
        Score(token_ids=(3,), logprob=-2.0, is_greedy=True, token_logprobs=(-2.0,)),
        Score(token_ids=(4, 5), logprob=-3.0, is_greedy=False, token_logprobs=(-1.0, -2.0)),
    )
    outputs = [
        ScoreOutput(request=request, error=FAULT),
        ScoreOutput(request=request, scores=scores, cached_tokens=1),
    ]
    table = scores_table(outputs, pa.table({"id": ["x", "y"]}))
    assert table.schema.equals(pa.schema([("id", pa.string()), *score.COLUMNS.items()]))
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["x", "y", "y"]
    assert [row["continuation_index"] for row in rows] == [0, 0, 1]
    assert [row["logprob"] for row in rows] == [None, -2.0, -3.0]
    assert rows[2]["perplexity"] == pytest.approx(2.71828**1.5, rel=1e-4)
    assert [row["context_tokens"] for row in rows] == [None, 2, 2]
