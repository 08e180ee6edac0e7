import dataclasses
import pickle
import threading
from concurrent.futures import Future

import pytest
from apache_beam.metrics import MetricsFilter

from model.engine.options import EngineOptions, EngineStats
from pipeline import registry
from pipeline.handler import Grok1ModelHandler
from pipeline.job import model_handler, wire
from tests.jobs import ENGINE, answers, prompts_of


class Engine:
    """Repeats prompts. Another implementation, as ``registry.factory`` lets a program bring."""

    tokenizer = None
    capacity = 8

    def __init__(self):
        self.closed = False
        self.spoil = lambda output: output

    def shared(self, requests):
        return [0] * len(requests)

    def submit(self, request, cached_tokens=0):
        future = Future()
        try:
            future.set_result(self.spoil(*answers([request])))
        except RuntimeError as error:
            future.set_exception(error)
        return future

    def stats(self):
        return EngineStats(completion_tokens=3, decode_rows=8, decode_rows_used=4)

    def provenance(self):
        return ENGINE

    def device_memory(self):
        return None

    @property
    def is_open(self):
        return not self.closed

    silent_seconds = compiling_seconds = 0.0

    def close(self, *, abandon=False):
        self.closed = True


@pytest.fixture
def made(monkeypatch):
    """The engines made in a test, by a registry of its own."""
    engines = []

    def make(settings):
        engines.append(Engine())
        return engines[-1]

    monkeypatch.setattr(registry, "factory", make)
    monkeypatch.setattr(registry, "_held", {})
    monkeypatch.setattr(registry, "_ended", threading.Event())
    return engines


@pytest.fixture
def chunk(prepare):
    [chunk] = prompts_of(prepare({"prompt": ["a", "b", None, "c"], "n": [1, 2, 1, 1]}))
    return chunk


def run(chunk, handler=None):
    handler = handler or Grok1ModelHandler("somewhere")
    return handler.run_inference(chunk, handler.load_model())


def test_a_chunk_comes_out_as_one_result_with_all_its_answers(made, chunk):
    [result] = run(chunk)
    assert result.prompts is chunk
    assert [len(output.outputs) for output in result.outputs] == [1, 2, 1]
    assert list(result.errors) == [2]
    assert result.engine == ENGINE
    assert (result.decode_rows, result.decode_rows_used) == (8, 4)
    assert result.seconds > 0


def test_an_engine_is_loaded_for_the_first_row_and_no_sooner(made, prepare):
    [chunk] = prompts_of(prepare({"prompt": [None, ""]}))
    [result] = run(chunk)
    assert made == []
    assert list(result.errors) == [0, 1]
    assert result.engine == {}


def test_a_run_s_metrics_have_the_memory_of_the_devices(made, prepare, monkeypatch):
    monkeypatch.setattr(Engine, "device_memory", lambda self: 3 << 30)
    result = wire(prepare({"prompt": ["a", "b"]})).run()
    result.wait_until_finish()
    named = MetricsFilter().with_name("device_memory_mib")
    (found,) = result.metrics().query(named)["distributions"]
    assert found.committed.max == 3 << 10


def another_prompt(output):
    return dataclasses.replace(output, prompt_token_ids=(9, 9, 9))


def a_sample_less(output):
    return dataclasses.replace(output, outputs=output.outputs[:-1])


def samples_swapped(output):
    return dataclasses.replace(output, outputs=tuple(reversed((*output.outputs, *output.outputs))))


@pytest.mark.parametrize("spoil", [another_prompt, a_sample_less, samples_swapped])
def test_answers_that_do_not_belong_to_their_requests_are_refused(made, chunk, spoil):
    handler = Grok1ModelHandler("somewhere")
    handler.load_model().acquire().engine.spoil = spoil
    with pytest.raises(AssertionError, match="does not belong to its request"):
        run(chunk, handler)


def lose_the_device(output):
    raise RuntimeError("the device is lost")


def test_an_engine_that_fails_is_replaced(made, chunk):
    handler = Grok1ModelHandler("somewhere")
    broken = handler.load_model().acquire().engine
    broken.spoil = lose_the_device
    with pytest.raises(RuntimeError, match="the device is lost"):
        run(chunk, handler)
    assert broken.closed
    [result] = run(chunk, handler)
    assert len(result.outputs) == 3
    assert len(made) == 2


def test_it_travels_to_workers_and_is_not_batched(prepare):
    job = prepare({"prompt": ["a"]})
    handler = pickle.loads(pickle.dumps(model_handler(job)))
    assert handler.should_skip_batching()
    [chunk] = prompts_of(job)
    assert handler.get_num_bytes(chunk) == chunk.rows.nbytes
    assert handler.get_metrics_namespace() == "grok1"


def test_a_gpu_s_choices_of_kernels_go_with_the_run(made, prepare, monkeypatch):
    job, asked = prepare({"prompt": ["a"]}), []
    make = registry.factory
    monkeypatch.setattr(registry, "factory", lambda wanted: asked.append(wanted) or make(wanted))
    model_handler(job).load_model().acquire()
    assert asked[0].options.tuning == f"{job.options.output}/_tuning"


def test_equal_handlers_share_an_engine(made, prepare):
    job = prepare({"prompt": ["a"]})
    one, other = model_handler(job), model_handler(job)
    assert one.load_model().acquire() is other.load_model().acquire()
    third = Grok1ModelHandler("elsewhere", options=EngineOptions(slots=4))
    assert third.load_model().acquire().engine is made[1]
