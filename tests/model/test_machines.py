import pytest

from model.config import GROK_1
from model.machines import MACHINES, decode_floor, find_machine, prefill_floor, weight_bytes
from schemas.error import SetupError


def test_weights_are_as_large_as_the_release():
    # 316.6 GB: the release's int8 with the embedding in bfloat16.
    assert weight_bytes(GROK_1, "int8") == pytest.approx(316.6e9, rel=2e-3)
    assert weight_bytes(GROK_1, "int4") < 0.52 * weight_bytes(GROK_1, "int8")


@pytest.mark.parametrize(("name", "tokens"), [("h100x8", 5138), ("h200x8", 7362), ("a100x8", 3128)])
def test_small_batches_are_bound_by_memory(name, tokens):
    assert decode_floor(MACHINES[name], GROK_1, slots=64, context=1024) == pytest.approx(
        tokens, rel=5e-3
    )


def test_large_batches_are_bound_by_products():
    machine = MACHINES["a100x8"]
    assert decode_floor(machine, GROK_1, slots=4096, context=1024, cache_bytes=0) == pytest.approx(
        prefill_floor(machine, GROK_1)
    )


def test_an_unknown_machine_is_refused():
    with pytest.raises(SetupError, match="h100x8"):
        find_machine("h100")
