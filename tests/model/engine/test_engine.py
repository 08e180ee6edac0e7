import subprocess
import sys
import threading
import time

import pytest

from model.engine.engine import Engine, EngineClosed
from model.engine.options import EngineOptions
from model.engine.request import Request
from schemas.error import ErrorCode, SetupError
from schemas.sampling import SamplingParams
from tests.model.engine.conftest import GOLDEN, greedy, one

PROMPTS = [row["prompt"] for row in greedy("greedy_exact")]


def test_text_in_text_out(engine):
    output = one(engine, "import numpy as", temperature=0, max_tokens=12)
    ids = tuple(engine.tokenizer.encode("import numpy as"))
    assert output.prompt_token_ids == ids
    [completion] = output.outputs
    whole = engine.tokenizer.decode(ids + completion.token_ids)
    assert whole == engine.tokenizer.decode(ids) + completion.text
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 12


def test_each_prompt_has_its_own_parameters(engine):
    params = [SamplingParams(max_tokens=i + 1, ignore_eos=True) for i in range(20)]
    outputs = engine.generate([PROMPTS[i % 12] for i in range(20)], params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == list(range(1, 21))


def test_cumulative_logprob_is_the_sum(engine):
    [completion] = one(engine, PROMPTS[2], max_tokens=9, logprobs=0).outputs
    assert completion.cumulative_logprob == sum(t.logprob for t in completion.logprobs)
    assert [t.token_id for t in completion.logprobs] == list(completion.token_ids)


def test_stop_token_ids(engine):
    free = one(engine, PROMPTS[0], max_tokens=30, seed=1, ignore_eos=True).outputs[0].token_ids
    stop = free[12]
    first = free.index(stop)
    [completion] = one(
        engine, PROMPTS[0], max_tokens=30, seed=1, ignore_eos=True, stop_token_ids=[stop]
    ).outputs
    assert completion.token_ids == free[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_more_stop_token_ids_than_the_device_looks_for(engine):
    free = one(engine, PROMPTS[0], max_tokens=30, seed=1, ignore_eos=True).outputs[0].token_ids
    unused = [i for i in range(1000) if i not in free][:40]
    [completion] = one(
        engine,
        PROMPTS[0],
        max_tokens=30,
        seed=1,
        ignore_eos=True,
        stop_token_ids=[*unused, free[12]],
    ).outputs
    assert completion.token_ids == free[: free.index(free[12]) + 1]


def test_eos_ends_unless_ignored(engine):
    eos = engine.config.eos_token
    often = {eos: 5}
    params = [SamplingParams(logit_bias=often, max_tokens=150, seed=i) for i in range(60)]
    outputs = engine.generate([PROMPTS[7]] * 60, params)
    ended = [o.outputs[0] for o in outputs if o.outputs[0].finish_reason == "stop"]
    assert ended, "no sample drew EOS; the test needs other seeds"
    for completion in ended:
        assert completion.token_ids[-1] == eos
        assert completion.stop_reason is None
    for output in outputs:
        assert eos not in output.outputs[0].token_ids[:-1]
    seed = next(i for i, o in enumerate(outputs) if o.outputs[0] is ended[0])
    late = len(ended[0].token_ids) + 3
    [completion] = one(
        engine, PROMPTS[7], logit_bias=often, max_tokens=150, seed=seed, min_tokens=late
    ).outputs
    assert len(completion.token_ids) >= late
    for early in (0, late):  # ignored, it ends nothing, but may not come too early even so
        wish = {"ignore_eos": True, "min_tokens": early}
        [completion] = one(
            engine, PROMPTS[7], logit_bias=often, max_tokens=150, seed=seed, **wish
        ).outputs
        assert len(completion.token_ids) == 150
        assert completion.token_ids.index(eos) >= early


def test_stop_strings_across_tokens(engine):
    free = one(engine, "def f(", max_tokens=60, seed=5, ignore_eos=True).outputs[0]
    text = free.text
    stop = text[20:27]
    assert len(engine.tokenizer.encode(stop)) > 1
    at = text.find(stop)
    for include in (False, True):
        [completion] = one(
            engine,
            "def f(",
            max_tokens=60,
            seed=5,
            ignore_eos=True,
            stop=[stop, "never in there"],
            include_stop_str_in_output=include,
        ).outputs
        assert completion.text == text[: at + include * len(stop)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        kept = len(completion.token_ids)
        assert completion.token_ids == free.token_ids[:kept]
        assert stop in engine.tokenizer.decode_completion((), completion.token_ids)
        assert stop not in engine.tokenizer.decode_completion((), completion.token_ids[:-1])


def test_stop_strings_wait_for_min_tokens(engine):
    free = one(engine, "def f(", max_tokens=60, seed=5, ignore_eos=True).outputs[0]
    stop = free.text[3:5]
    [completion] = one(
        engine, "def f(", max_tokens=60, seed=5, ignore_eos=True, stop=stop, min_tokens=59
    ).outputs
    assert len(completion.token_ids) >= 59


def test_many_stopped_rows_leave_nothing_behind(engine):
    params = [
        SamplingParams(max_tokens=60, seed=i, stop=["a", "e", " "], temperature=2.0)
        for i in range(100)
    ]
    outputs = engine.generate([PROMPTS[i % 12] for i in range(100)], params)
    assert all(o.outputs[0].finish_reason in ("stop", "length") for o in outputs)
    deadline = time.monotonic() + 30
    while not engine._replicas[0].loop.idle and time.monotonic() < deadline:
        time.sleep(0.01)  # the engine hears of stop strings after the caller has its answer
    assert engine._replicas[0].loop.idle
    assert not engine._replicas[0].loop._samples
    assert not engine._finisher._watches
    assert not engine._open


def test_prompt_logprobs_of_a_prompt_longer_than_a_step(engine):
    tokens = [i % 1000 for i in range(3, 3 + 200)]
    output = one(engine, tokens, max_tokens=1, prompt_logprobs=2)
    assert output.prompt_logprobs[0] is None
    assert [t.token_id for t in output.prompt_logprobs[1:]] == tokens[1:]
    assert all(len(t.top_token_ids) == 2 for t in output.prompt_logprobs[1:])


def test_cached_tokens_tell_what_a_batch_shares(engine):
    block = engine._plan.shapes.block_size
    shared = list(range(5, 5 + 3 * block))
    prompts = [[*shared, 1], [*shared, 2], shared, [*shared[:block], 9]]
    outputs = engine.generate(prompts, SamplingParams(max_tokens=1))
    assert [o.cached_tokens for o in outputs] == [0, 3 * block, 2 * block, block]


@pytest.mark.parametrize(
    ("prompt", "params", "code", "param"),
    [
        ((), {}, ErrorCode.PROMPT_EMPTY, "prompt"),
        ((5, 1024), {}, ErrorCode.TOKEN_ID_OUT_OF_RANGE, "prompt_token_ids"),
        ((5, -1), {}, ErrorCode.TOKEN_ID_OUT_OF_RANGE, "prompt_token_ids"),
        ((5,), {"stop_token_ids": [4000]}, ErrorCode.TOKEN_ID_OUT_OF_RANGE, "stop_token_ids"),
        ((5,) * 250, {"max_tokens": 7}, ErrorCode.CONTEXT_LENGTH_EXCEEDED, "max_tokens"),
        ((5,), {"logit_bias": {1024: 1}}, ErrorCode.TOKEN_ID_OUT_OF_RANGE, "logit_bias"),
        (
            (5,),
            {"allowed_token_ids": [-0, 9999]},
            ErrorCode.TOKEN_ID_OUT_OF_RANGE,
            "allowed_token_ids",
        ),
        (
            (5,),
            {"allowed_token_ids": [2, 7], "stop_token_ids": [7], "min_tokens": 2},
            ErrorCode.INVALID_PARAMETER,
            "allowed_token_ids",
        ),
        (
            (5,),
            {"allowed_token_ids": [2], "ignore_eos": True, "min_tokens": 2},
            ErrorCode.INVALID_PARAMETER,
            "allowed_token_ids",
        ),
        ((5,), {"bad_words": ["a" * 3000]}, ErrorCode.INVALID_PARAMETER, "bad_words"),
    ],
)
def test_a_wrong_request_is_its_own_error(engine, prompt, params, code, param):
    good = Request(prompt_token_ids=tuple(PROMPTS[0]), params=SamplingParams(max_tokens=3))
    bad = Request(prompt_token_ids=prompt, params=SamplingParams(**params))
    first, wrong, last = (f.result() for f in engine.submit_all([good, bad, good]))
    assert first.outputs == last.outputs != ()
    assert (wrong.outputs, wrong.error.code, wrong.error.param) == ((), code, param)


def test_the_whole_context_can_be_used(engine):
    for most in (6, None):
        output = one(engine, [5] * 250, max_tokens=most, ignore_eos=True)
        assert len(output.outputs[0].token_ids) == 6


def test_closing_answers_what_was_asked_and_leaves_no_thread():
    before = set(threading.enumerate())
    options = EngineOptions(numerics="float32", slots=8, prefill_rows=64)
    engine = Engine.from_checkpoint(str(GOLDEN), options=options)
    params = SamplingParams(max_tokens=20)
    futures = [engine.submit(Request(prompt_token_ids=(5, 6, i), params=params)) for i in range(30)]
    engine.close()
    engine.close()
    assert all(len(f.result(timeout=0).outputs) == 1 for f in futures)
    assert set(threading.enumerate()) <= before
    with pytest.raises(EngineClosed):
        engine.submit(Request(prompt_token_ids=(5,), params=params))


def test_a_program_may_end_while_the_devices_work(tiny):
    """Threads that an ending interpreter finds inside the runtime would abort the process."""
    program = f"""
from model.engine.engine import Engine
from model.engine.options import EngineOptions
from model.engine.request import Request
from schemas.sampling import SamplingParams

engine = Engine.from_checkpoint({tiny!r}, options=EngineOptions(slots=8))
params = SamplingParams(max_tokens=40, ignore_eos=True)
asked = [
    engine.submit(Request(prompt_token_ids=(400 + i,), params=params, address=str(i)))
    for i in range(32)
]
asked[0].result()
print("first answer")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "first answer\n"), done.stderr


def test_a_failure_of_the_devices_reaches_every_caller(engine, monkeypatch):
    options = EngineOptions(numerics="float32", slots=8, prefill_rows=64)
    broken = Engine.from_checkpoint(str(GOLDEN), options=options)

    def fail(*arguments):
        raise RuntimeError("device lost")

    monkeypatch.setitem(broken._replicas[0].compiled._compiled, "decode", fail)
    request = Request(prompt_token_ids=(5,), params=SamplingParams())
    with pytest.raises(RuntimeError, match="device lost"):
        broken.submit(request).result(timeout=30)
    broken.close()
    with pytest.raises(EngineClosed) as caught:
        broken.submit(request)
    assert "device lost" in str(caught.value.__cause__)


def test_text_needs_a_tokenizer(engines):
    with pytest.raises(SetupError, match="tokenizer"):
        engines(numerics="float32").generate(["text"])
    request = Request(prompt_token_ids=(5,), params=SamplingParams(stop="x"))
    assert engines(numerics="float32").submit(request).result().error.param == "stop"
    request = Request(prompt_token_ids=(5,), params=SamplingParams(bad_words="x"))
    assert engines(numerics="float32").submit(request).result().error.param == "bad_words"


def test_counters_add_up(engine):
    before = engine.stats()
    outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=7, n=2, ignore_eos=True))
    after = engine.stats()
    assert after.requests - before.requests == len(PROMPTS)
    assert after.completion_tokens - before.completion_tokens == 14 * len(PROMPTS)
    assert after.prompt_tokens - before.prompt_tokens == sum(map(len, PROMPTS))
    assert len(outputs) == len(PROMPTS)
    assert 0 < after.slot_occupancy <= 1
