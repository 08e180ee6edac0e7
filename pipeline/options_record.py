"""A job's options as they stand in ``_job.json``, so that its output alone names the job."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.checkpoint import files
from model.engine.options import EngineOptions
from pipeline.options import GenerateOptions, JobOptions, PromptOptions, ScoreOptions
from schemas.error import SetupError
from schemas.sampling import SamplingParams

_PATHS = ("checkpoint", "tokenizer", "input_root")
_PASSING = ("output", "overwrite", "extend", "strict", "limits")
"""Of one start of the job, not of the job."""


def to_record(options: JobOptions) -> dict[str, Any]:
    """JSON-ready; without the secrets of URLs, whose fields are named in ``hidden`` then."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name in _PASSING:
        del values[name]
    plain = {name: values[name] and files.absolute(values[name]) for name in _PATHS}
    plain["input"] = [files.absolute(path) for path in options.input]
    prompting = dataclasses.asdict(options.prompting)
    few_shot = prompting.pop("few_shot")
    plain["few_shot"] = few_shot and files.absolute(few_shot)
    shown = {name: value and _shown(value) for name, value in plain.items()}
    values |= {**shown, "prompting": prompting}
    values["engine"] = dataclasses.asdict(options.engine)
    del values["engine"]["compile_cache"]  # of this machine, and its URL may hold secrets
    if isinstance(options, GenerateOptions):
        values["sampling"] = options.sampling.result_settings()
    hidden = [name for name in plain if plain[name] != shown[name]]
    return {"task": options.task, "hidden": hidden, **values}


def from_record(record: Mapping[str, Any], output: str, **given: Any) -> JobOptions:
    """The options again.

    Args:
      record: what ``to_record`` made.
      output: the output folder.
      given: options to put in place of recorded ones; None leaves those.

    Raises:
      SetupError: a URL's secrets are needed and were not given again.
    """
    values = {**record, **{name: value for name, value in given.items() if value is not None}}
    task, hidden = values.pop("task"), values.pop("hidden")
    for name in hidden:
        if given.get(name) is None:
            flag = "--" + name.replace("_", "-")
            raise SetupError(
                f"{files.redact(output)} does not keep the secrets of URLs; "
                f"give the run's {name} again: {flag} URL"
            )
    values["engine"] = EngineOptions(**values["engine"])
    values["input"] = tuple(values["input"])
    few_shot = values.pop("few_shot")
    values["prompting"] = PromptOptions(**values["prompting"], few_shot=few_shot)
    if task == "score":
        return ScoreOptions(output=output, **values)
    values["sampling"] = SamplingParams(**values["sampling"])
    return GenerateOptions(output=output, **values)


def _shown(value: str | list[str]) -> str | list[str]:
    return files.redact(value) if isinstance(value, str) else [files.redact(v) for v in value]
