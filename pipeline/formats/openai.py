"""OpenAI's batch files for ``/v1/completions``: requests as rows, rows as responses."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.formats.records import Fault, Record
from schemas.completion import ERRORED
from schemas.sampling import PARAM_NAMES
from schemas.structured import SHORTHANDS

_URL = "/v1/completions"

_INDEX = "prompt_index"
"""The column that numbers the prompts of one request."""

_IGNORED = ("model", "user", "stream", "stream_options", "metadata", "service_tier")
"""What says nothing about the completion itself."""

_NEUTRAL = {"best_of": (None, 1), "suffix": (None, ""), "echo": (None, False)}
"""What cannot be obeyed, with the values that ask for nothing."""

_INSTEAD = {"echo": "leave it out, and give grok1 generate --echo, which is for all rows"}
"""Remedies other than to leave it out."""


def rows_of(record: Record, file: str) -> Iterator[dict[str, Any] | Fault]:
    """The prompts of one request: one row, or one a prompt if it holds several.

    Rows of one request share its ``custom_id``; ``prompt_index`` tells them apart.
    """
    values = record.values
    body = values.get("body")
    if values.get("url", _URL) != _URL:
        yield record.fault(file, f"asks for {values['url']!r}, but only {_URL} is completed here")
        return
    if not isinstance(body, dict):
        yield record.fault(file, "has no object `body`")
        return
    custom_id = values.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        yield record.fault(file, "has a custom_id that is no string")
        return
    params: dict[str, Any] = {}
    for name, value in body.items():
        if name in PARAM_NAMES or name in SHORTHANDS:
            params[name] = value
        elif name in _NEUTRAL and value not in _NEUTRAL[name]:
            remedy = _INSTEAD.get(name, "leave it out")
            yield record.fault(file, f"asks for {name}, which cannot be obeyed; {remedy}")
            return
        elif name not in (*_IGNORED, *_NEUTRAL, "prompt"):
            yield record.fault(file, f"has the unknown parameter {name!r}; leave it out")
            return
    prompts = _prompts(body.get("prompt"))
    if prompts is None:
        yield record.fault(file, "has no prompt: a string, token ids, or a list of either")
        return
    for index, prompt in enumerate(prompts):
        column = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
        yield {"custom_id": custom_id, _INDEX: index, column: prompt, **params}


def _prompts(prompt: Any) -> Sequence[str | list[int]] | None:
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        return None
    if all(isinstance(item, str) for item in prompt):
        return prompt
    if all(type(item) is int for item in prompt):
        return [prompt]
    ids = all(
        isinstance(item, list) and item and all(type(i) is int for i in item) for item in prompt
    )
    return prompt if ids else None


def requests(rows: Iterable[dict[str, Any]], prefix: str) -> Iterator[tuple[dict[str, Any], ...]]:
    """A run's rows request by request: the samples of a prompt, or of all prompts of a request.

    Args:
      rows: in input order.
      prefix: of the added columns.
    """
    group: list[dict[str, Any]] = []
    for row in rows:
        if group and not _goes_on(group[-1], row, prefix):
            yield tuple(group)
            group = []
        group.append(row)
    if group:
        yield tuple(group)


def _goes_on(row: Mapping[str, Any], following: Mapping[str, Any], prefix: str) -> bool:
    """Whether the next row is of the same request."""
    if row[prefix + "row_uid"] == following[prefix + "row_uid"]:
        return True
    if row.get(_INDEX) is None or following.get(_INDEX) is None:
        return False
    same = row.get("custom_id") == following.get("custom_id")
    return same and row[_INDEX] < following[_INDEX]


def response(rows: Sequence[Mapping[str, Any]], prefix: str, model: str, created: int) -> str:
    """One line of a response file: the samples of one request, or the error of one of its prompts.

    Samples are numbered through, prompt after prompt.
    """
    first = next((row for row in rows if row[prefix + "status"] == ERRORED), rows[0])

    def added(row: Mapping[str, Any], name: str) -> Any:
        return row[prefix + name]

    uid = added(first, "row_uid")
    line: dict[str, Any] = {
        "id": f"batch_req_{uid}",
        "custom_id": first.get("custom_id") or uid,
        "response": None,
        "error": None,
    }
    if added(first, "status") == ERRORED:
        line["error"] = {
            "code": added(first, "error_code"),
            "message": added(first, "error_message"),
            "param": added(first, "error_param"),
        }
        return json.dumps(line, ensure_ascii=False)
    drawn = sum(added(row, "completion_tokens") for row in rows)
    prompts = list({added(row, "row_uid"): row for row in rows}.values())
    asked, cached = (
        sum(added(row, name) for row in prompts) for name in ("prompt_tokens", "cached_tokens")
    )
    line["response"] = {
        "status_code": 200,
        "request_id": uid,
        "body": {
            "id": f"cmpl-{uid}",
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [_choice(i, row, prefix) for i, row in enumerate(rows)],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": drawn,
                "total_tokens": asked + drawn,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        },
    }
    return json.dumps(line, ensure_ascii=False)


def _choice(index: int, row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    details = row[prefix + "logprobs"]
    logprobs = None
    if details is not None:
        # The tokens' own text is not in a part: ids stand for it, as vLLM writes them on request.
        logprobs = {
            "tokens": [f"token_id:{entry['token_id']}" for entry in details],
            "token_logprobs": [entry["logprob"] for entry in details],
            "top_logprobs": [
                {
                    f"token_id:{token}": logprob
                    for token, logprob in zip(
                        entry["top_token_ids"], entry["top_logprobs"], strict=True
                    )
                }
                for entry in details
            ],
        }
    return {
        "index": index,
        "text": row[prefix + "text"],
        "finish_reason": row[prefix + "finish_reason"],
        "stop_reason": row[prefix + "stop_reason"],
        "logprobs": logprobs,
    }
