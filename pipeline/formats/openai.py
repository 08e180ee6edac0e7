"""OpenAI's batch files for ``/v1/completions``: requests as rows, rows as responses."""

import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from model.checkpoint import files
from pipeline.formats.records import Fault, Record
from pipeline.input_row import InputRow
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

_REFUSED = "invalid_request"
"""Code of a line that the import refused."""

_INSTEAD = {"echo": "leave it out, and give grok1 generate --echo, which is for all rows"}
"""Remedies other than to leave it out."""


def rows_of(record: Record, file: str) -> list[dict[str, Any]] | Fault:
    """The prompts of one request: one row, or one a prompt if it holds several.

    Rows of one request share its ``custom_id``; ``prompt_index`` tells them apart.
    """
    values = record.values
    body = values.get("body")
    if values.get("url", _URL) != _URL:
        return record.fault(
            file,
            f"asks for {values['url']!r:.60}, but only {_URL} is completed here; write the request "
            "as one prompt for that",
        )
    if not isinstance(body, dict):
        return record.fault(file, "has no object `body`; put prompt and parameters into one")
    custom_id = values.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        return record.fault(file, "has a custom_id that is no string; put it in quotes")
    params: dict[str, Any] = {}
    for name, value in body.items():
        if name in PARAM_NAMES or name in SHORTHANDS:
            params[name] = value
        elif name in _NEUTRAL and value not in _NEUTRAL[name]:
            remedy = _INSTEAD.get(name, "leave it out")
            return record.fault(file, f"asks for {name}, which cannot be obeyed; {remedy}")
        elif name not in (*_IGNORED, *_NEUTRAL, "prompt"):
            return record.fault(file, f"has the unknown parameter {name!r:.60}; leave it out")
    prompts = _prompts(body.get("prompt"))
    if prompts is None:
        return record.fault(file, "has no prompt; give a string, token ids, or a list of either")
    return [
        {
            "custom_id": custom_id,
            _INDEX: index,
            "prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt,
            **params,
        }
        for index, prompt in enumerate(prompts)
    ]


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


class Responses:
    """A run's rows as the lines of a response file."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        """``job`` is what ``_job.json`` holds."""
        self._settings: Mapping[str, Any] = job.get("settings", {})
        self._prefix: str = self._settings.get("output_prefix", "")
        created = job.get("created_at", "1970-01-01T00:00:00+00:00")
        self._created = int(datetime.datetime.fromisoformat(created).timestamp())
        self._model = files.basename(job.get("checkpoint") or "grok-1")

    def requests(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], ...]]:
        """Rows, in input order, request by request: the samples of all its prompts."""
        group: list[dict[str, Any]] = []
        for row in rows:
            if group and not self._goes_on(group[-1], row):
                yield tuple(group)
                group = []
            group.append(row)
        if group:
            yield tuple(group)

    def _goes_on(self, row: Mapping[str, Any], following: Mapping[str, Any]) -> bool:
        """Whether the next row is of the same request."""
        if row[self._prefix + "row_uid"] == following[self._prefix + "row_uid"]:
            return True
        mine, other = InputRow(row, self._settings), InputRow(following, self._settings)
        if mine.value(_INDEX) is None or other.value(_INDEX) is None:
            return False
        return mine.custom_id == other.custom_id and mine.value(_INDEX) < other.value(_INDEX)

    def line(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The samples of one request, or the error of one of its prompts.

        Samples are numbered through, prompt after prompt.
        """
        prefix = self._prefix
        first = next((row for row in rows if row[prefix + "status"] == ERRORED), rows[0])
        uid = first[prefix + "row_uid"]
        custom_id = InputRow(first, self._settings).custom_id or uid
        if first[prefix + "status"] == ERRORED:
            return _error_line(
                uid,
                custom_id,
                code=first[prefix + "error_code"],
                message=first[prefix + "error_message"],
                param=first[prefix + "error_param"],
            )
        drawn = sum(row[prefix + "completion_tokens"] for row in rows)
        prompts = list({row[prefix + "row_uid"]: row for row in rows}.values())
        asked, cached = (
            sum(row[prefix + name] for row in prompts)
            for name in ("prompt_tokens", "cached_tokens")
        )
        body = {
            "id": f"cmpl-{uid}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [_choice(i, row, prefix) for i, row in enumerate(rows)],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": drawn,
                "total_tokens": asked + drawn,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
        answer = {"status_code": 200, "request_id": uid, "body": body}
        return _line(uid, custom_id, answer, None)


def refused_line(fault: Mapping[str, Any]) -> str:
    """The line of a request that the import refused, by what its list says of it."""
    uid = hashlib.blake2b(f"{fault['file']}:{fault['line']}".encode(), digest_size=16).hexdigest()
    return _error_line(
        uid,
        fault.get("custom_id"),
        code=_REFUSED,
        message=f"line {fault['line']} of {fault['file']}: {fault['message']}",
        param=None,
        line=fault["line"],
    )


def _error_line(uid: str, custom_id: str | None, **error: Any) -> str:
    return _line(uid, custom_id, None, error)


def _line(
    uid: str,
    custom_id: str | None,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> str:
    line = {
        "id": f"batch_req_{uid}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
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
