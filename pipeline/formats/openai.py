"""OpenAI's batch files for ``/v1/completions``: requests as rows, rows as responses."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.formats.records import Fault, Record
from schemas.completion import ERRORED
from schemas.sampling import PARAM_NAMES
from schemas.structured import SHORTHANDS

_URL = "/v1/completions"

_IGNORED = ("model", "user", "stream", "stream_options", "metadata", "service_tier")
"""What says nothing about the completion itself."""

_NEUTRAL = {"best_of": (None, 1), "suffix": (None, ""), "echo": (None, False)}
"""What cannot be obeyed, with the values that ask for nothing."""


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
            yield record.fault(file, f"asks for {name}, which cannot be obeyed; leave it out")
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
        yield {"custom_id": custom_id, "prompt_index": index, column: prompt, **params}


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


def response(rows: Sequence[Mapping[str, Any]], prefix: str, model: str, created: int) -> str:
    """One line of a response file: the samples of one input row, or its error."""
    first = rows[0]

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
    asked, cached = added(first, "prompt_tokens"), added(first, "cached_tokens")
    line["response"] = {
        "status_code": 200,
        "request_id": uid,
        "body": {
            "id": f"cmpl-{uid}",
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [_choice(row, prefix) for row in rows],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": drawn,
                "total_tokens": asked + drawn,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        },
    }
    return json.dumps(line, ensure_ascii=False)


def _choice(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
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
        "index": row[prefix + "sample_index"],
        "text": row[prefix + "text"],
        "finish_reason": row[prefix + "finish_reason"],
        "stop_reason": row[prefix + "stop_reason"],
        "logprobs": logprobs,
    }
