import json
import logging

import pytest

from model.engine.options import EngineStats
from pipeline.health import event, report

GAIN = EngineStats(
    requests=3,
    prompt_tokens=50,
    completion_tokens=90,
    busy_seconds=2.0,
    decode_rows=100,
    decode_rows_used=90,
    load_seconds=1.5,
)


def test_a_chunk_is_logged_by_the_names_of_opentelemetry(caplog):
    with caplog.at_level(logging.INFO, logger="grok1.worker"):
        report("grok1", "grok-1", 2.5, GAIN, memory=0)
    (line,) = (json.loads(record.getMessage()) for record in caplog.records)
    assert line["gen_ai.usage.input_tokens"] == 50
    assert line["gen_ai.usage.output_tokens"] == 90
    assert line["gen_ai.request.model"] == "grok-1"
    assert line["grok1.tokens_per_second"] == 45.0
    assert line["grok1.slot_occupancy"] == 0.9
    assert line["grok1.device_memory_bytes"] is None


def test_the_names_are_those_that_opentelemetry_gives():
    pytest.importorskip("opentelemetry.semconv")
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as theirs

    line = event("m", 1.0, GAIN, 0)
    known = {value for name, value in vars(theirs).items() if name.startswith("GEN_AI_")}
    assert {name for name in line if name.startswith("gen_ai.")} <= known
    assert line[theirs.GEN_AI_PROVIDER_NAME] == theirs.GenAiProviderNameValues.X_AI.value
    operation = theirs.GenAiOperationNameValues.TEXT_COMPLETION.value
    assert line[theirs.GEN_AI_OPERATION_NAME] == operation
    assert line[theirs.GEN_AI_USAGE_INPUT_TOKENS] == GAIN.prompt_tokens
    assert line[theirs.GEN_AI_USAGE_OUTPUT_TOKENS] == GAIN.completion_tokens


def test_an_idle_engine_divides_by_nothing():
    assert event("m", 0.0, EngineStats(), 1 << 30)["grok1.tokens_per_second"] is None
    assert event("m", 0.0, EngineStats(), 1 << 30)["grok1.device_memory_bytes"] == 1 << 30
