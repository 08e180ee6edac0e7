"""What tasks of lm-evaluation-harness say of a completion, as sampling parameters."""

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from schemas.checks import InvalidParameter, boolean, items
from schemas.sampling import SamplingParams


def sampling_values(options: Mapping[str, Any], max_gen_toks: int) -> dict[str, Any]:
    """Sampling parameters by name, of a task's ``generation_kwargs``.

    Args:
      options: the harness's names and vLLM's; what is null is as if it were not there.
      max_gen_toks: most tokens of a completion where the task does not say.

    Raises:
      InvalidParameter: a value cannot be read, or asks for what the harness has no use for.
    """
    given = {name: value for name, value in options.items() if value is not None}
    ends = [text for name in ("until", "stop") for text in _strings(name, given.pop(name, ()))]
    for name in ("n", "best_of"):
        if (count := given.get(name, 1)) != 1:
            raise InvalidParameter(
                name, f"must be 1, got {count!r:.40}: the harness takes one completion of a "
                "request; say how many in the task's `repeats`"
            )  # fmt: skip
    given.pop("best_of", None)
    _check_numbers(given)
    if "do_sample" in given:  # the harness takes any text for true
        given["do_sample"] = boolean("do_sample", given["do_sample"])
    asked = dict(normalize_gen_kwargs(given, max_gen_toks))
    sampled = asked.pop("do_sample", False)
    asked.setdefault("temperature", 1.0 if sampled else 0.0)
    asked["max_tokens"] = asked.pop("max_gen_toks")
    del asked["until"]
    values = {**asked, "stop": list(dict.fromkeys(text for text in ends if text))}
    SamplingParams().override(values)
    return values


def _strings(name: str, value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(items(name, value))


def _check_numbers(given: Mapping[str, Any]) -> None:
    """What the harness makes numbers of without a look."""
    lengths = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    for name in ("temperature", *lengths):
        try:
            number = float(given.get(name, 0))
        except (TypeError, ValueError, OverflowError):
            raise InvalidParameter(name, f"must be a number, got {given[name]!r:.40}") from None
        if name in lengths and not number.is_integer():  # false for nan and infinity, too
            raise InvalidParameter(name, f"must be an integer, got {given[name]!r:.40}")
