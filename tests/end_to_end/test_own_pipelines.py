"""The steps inside one's own Beam pipeline, and the Python functions around them."""

import threading

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to

import pipeline
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from schemas.error import SetupError
from schemas.sampling import SamplingParams

TABLE = {"prompt": ["import os", "def f(x):", None], "topic": ["a", "b", "c"]}


def test_the_built_pipeline_runs(options):
    job = options(TABLE, sampling=SamplingParams(max_tokens=3))
    with pipeline.build_pipeline(job, PipelineOptions(runner="FnApiRunner")):
        pass
    table = pipeline.read_completions(job.output)
    assert table.column("status").to_pylist() == ["succeeded", "succeeded", "errored"]


def test_the_steps_go_into_a_pipeline_of_ones_own(options):
    job = pipeline.prepare_job(options(TABLE, sampling=SamplingParams(max_tokens=3, n=2)))
    with test_pipeline.TestPipeline(runner="FnApiRunner") as p:
        chunks = p | pipeline.ReadPrompts(job) | RunInference(pipeline.model_handler(job))
        manifests = chunks | pipeline.WriteCompletions(job)
        texts = chunks | "Samples" >> beam.FlatMap(
            lambda chunk: [len(output.outputs) for output in chunk.outputs]
        )
        assert_that(texts, equal_to([2, 2]), "two samples each")
        counted = manifests | beam.Map(lambda m: (m["rows_in"], m["rows_out"], m["errored"]))
        assert_that(counted, equal_to([(3, 5, 1)]), "one manifest")
    assert pipeline.read_completions(job.options.output).num_rows == 5


def test_a_wrong_set_up_is_told_when_the_pipeline_is_built(options):
    with pytest.raises(SetupError, match="has no column 'prompt'"):
        pipeline.build_pipeline(options({"text": ["a"]}))


def test_the_engine_alone_says_the_same(options, talking):
    prompts = ["import os", "class Queue:", "def f(x):"]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
    job = options({"prompt": prompts}, sampling=params)
    with pipeline.build_pipeline(job):
        pass
    rows = pipeline.read_completions(job.output).to_pylist()
    engine_options = EngineOptions(numerics="float32", slots=8)
    threads = threading.active_count()
    with Engine.from_checkpoint(talking, options=engine_options) as engine:
        outputs = engine.generate(prompts, params)
    assert threading.active_count() == threads
    for row, output in zip(rows, outputs, strict=True):
        [completion] = output.outputs
        assert list(completion.token_ids) == row["token_ids"]
        assert completion.text == row["text"]
        assert completion.cumulative_logprob == row["cumulative_logprob"]


def test_names_are_found_where_they_are_documented():
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing
