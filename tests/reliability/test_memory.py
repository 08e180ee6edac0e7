"""Devices without enough memory: half the slots where that changes no bit, else a sentence."""

import gc
import json
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import pytest

from model.engine.engine import Engine
from model.engine.loop import Loop
from model.engine.memory import OutOfMemory
from model.engine.options import EngineOptions
from model.engine.request import Request
from pipeline import registry
from pipeline.commit import PROVENANCE
from pipeline.storage import Folder
from schemas.sampling import SamplingParams
from tests.reliability import runs

pytestmark = pytest.mark.slow

SLOTS = ("--slots", "256")
"""Of which half give the same bits on a CPU; of the 8 of other runs they might not."""

MORE = (*SLOTS, "--chunk-rows", "160", "--max-context", "256")

LIMITED = """
import resource, sys
from model.engine import replica
from pipeline.cli import main
allocate, given = replica.allocate, []

def limited(plan):
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + (190 << 20), most))
    try:
        return allocate(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        given.append(plan.shapes.rows)

replica.allocate = limited
code = main(sys.argv[1:])
print("slots", *given)
sys.exit(code)
"""
"""Runs the command where there is memory for a cache of 190 MiB: half of the 256 slots take 120."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("in")
    runs.write(folder / "a.parquet", runs.prompts(320))
    return str(folder)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("whole") / "out")
    assert runs.generate(inputs, output, *MORE) == 0
    return output


@pytest.fixture(autouse=True)
def fresh():
    """What other tests have loaded or found out is of no matter here."""
    yield
    registry._fewer_slots.clear()
    registry.close_all()


def _exhaust(monkeypatch, calls: set[int]) -> None:
    """Makes the device refuse an allocation at decode steps of these numbers."""
    decode, seen = Loop._decode, []

    def greedy(self):
        seen.append(1)
        if len(seen) in calls:
            jnp.zeros(1 << 45, jnp.int8).block_until_ready()
        decode(self)

    monkeypatch.setattr(Loop, "_decode", greedy)


def _slots(output: str) -> set[str]:
    """By the parts' footers."""
    footers = [metadata for _, metadata in runs.fingerprint(output).values()]
    return {json.loads(footer[PROVENANCE])["engine"]["slots"] for footer in footers}


def test_half_the_slots_give_the_same_bits(inputs, whole, tmp_path):
    output = str(tmp_path / "out")
    assert runs.generate(inputs, output, *MORE, "--slots", "128") == 0
    assert _slots(output) == {"128"}
    assert _slots(whole) == {"256"}
    assert runs.rows(output) == runs.rows(whole)


def test_a_device_that_cannot_hold_the_cache(inputs, whole, environment, tmp_path):
    """The command goes on with half the slots, and says so."""
    output = str(tmp_path / "out")
    command = [sys.executable, "-c", LIMITED, *runs.arguments(inputs, output, *MORE)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert "slots 256 128" in ended.stdout
    sentence = "grok1: the devices' memory does not hold 256 slots: "
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.endswith("; going on with 128, which changes no result\n")
    assert ended.stderr.count("\n") == 1
    assert _slots(output) == {"128"}
    assert runs.rows(output) == runs.rows(whole)


def test_a_device_that_runs_out_on_the_way(inputs, whole, tmp_path, monkeypatch, caplog):
    """What was in the engine is computed again with half the slots, and no row is a suspect."""
    registry.close_all()
    output = str(tmp_path / "out")
    _exhaust(monkeypatch, {3})
    assert runs.generate(inputs, output, *MORE) == 0
    assert _slots(output) == {"128"}
    assert runs.rows(output) == runs.rows(whole)
    assert Folder(f"{output}/_strikes").names() == {}
    told = [record.getMessage() for record in caplog.records if record.name == "grok1.worker"]
    assert [text for text in told if "going on with 128, which changes no result" in text] == told


def test_where_half_might_change_results_it_stops(inputs, tmp_path, monkeypatch, capsys):
    registry.close_all()
    output = str(tmp_path / "out")
    _exhaust(monkeypatch, {3})
    assert runs.generate(inputs, output, "--max-context", "128") == 2
    told = capsys.readouterr().err
    assert "does not hold 8 slots" in told
    assert "give --slots 4, with which results may differ in their last bits" in told
    assert told.count("\n") == 1
    monkeypatch.undo()
    # As it was told, and on what was committed before.
    assert runs.generate(inputs, output, "--max-context", "128", "--slots", "4") == 0


def test_an_engine_that_failed_lets_the_memory_go(monkeypatch):
    """Whoever still holds it: the next one needs the room."""
    _exhaust(monkeypatch, {1})
    engine = Engine.from_checkpoint(runs.CHECKPOINT, options=EngineOptions(slots=256))
    arrays = [
        leaf
        for leaf in jax.tree.leaves(vars(engine._replicas[0].loop._runner))
        if isinstance(leaf, jax.Array)
    ]
    assert len(arrays) > 10
    references = [weakref.ref(array) for array in arrays]
    del arrays
    request = Request(prompt_token_ids=(1, 2), params=SamplingParams(max_tokens=4), address="a")
    for _ in range(2):  # the second asks an engine that has failed
        with pytest.raises(OutOfMemory) as caught:
            engine.submit(request).result(60)
        assert (caught.value.slots, caught.value.half) == (256, 128)
    gc.collect()
    assert [reference for reference in references if reference() is not None] == []
