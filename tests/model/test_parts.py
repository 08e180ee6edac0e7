import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import files, parts
from model.checkpoint.location import ArrayLocation
from model.checkpoint.source import open_checkpoint
from model.config import GROK_1
from model.params import declare, indivisible


@given(data=st.data(), long_runs=st.booleans())
def test_parts_are_the_cuts_of_the_whole(data, long_runs):
    count = data.draw(st.sampled_from([1, 2, 4, 8]))
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] *= count
    dtype = np.dtype(data.draw(st.sampled_from(["i1", "<f4"])))
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    offset = data.draw(st.integers(0, 3))
    whole = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    file = np.frombuffer(bytes(offset) + whole.tobytes(), np.uint8)

    def read(start, buffer):
        buffer[:] = file[start : start + buffer.size]

    location = ArrayLocation(offset, whole.nbytes, tuple(shape), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_LEAST_RUN", 1 if long_runs else 1 << 20)
        patch.setattr(files, "RANGE_BYTES", 8)
        found = list(parts.read_parts(read, location, axis, count, wanted))
    for index, part in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(part, np.split(whole, count, axis)[index])
        assert part.dtype == dtype
        assert part.flags.c_contiguous


def test_only_the_bytes_of_a_part_are_read_where_it_lies_in_long_runs(monkeypatch):
    asked = []

    def read(start, buffer):
        asked.append((start, start + buffer.size))

    monkeypatch.setattr(files, "RANGE_BYTES", 3 << 20)
    location = ArrayLocation(7, 64 << 20, (2, 8, 4 << 20), np.dtype(np.int8))
    (part,) = parts.read_parts(read, location, 1, 8, [5])
    assert part.shape == (2, 1, 4 << 20)
    begins = [7 + (line * 8 + 5) * (4 << 20) for line in range(2)]
    cut = 3 << 20
    expected = [r for b in begins for r in ((b, b + cut), (b + cut, b + (4 << 20)))]
    assert sorted(asked) == expected


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_release_read_by_parts(tiny, count):
    checkpoint = open_checkpoint(tiny)
    for tensor in checkpoint.tensors():
        param, whole = tensor.param, checkpoint.read(tensor)
        found = list(checkpoint.read_parts(tensor, count))
        declared = param.part(count)
        assert {part.values.shape for part in found} == {declared.shape}
        axis = param.split_axis
        assert len(found) == (1 if axis is None else count)
        joined = np.concatenate([part.values for part in found], axis or 0)
        np.testing.assert_array_equal(joined, whole.values)
        if whole.scales is not None:
            assert {part.scales.shape for part in found} == {declared.scales_shape}
            joined = np.concatenate([part.scales for part in found], axis)
            np.testing.assert_array_equal(joined, whole.scales)
        if axis is not None:
            (last,) = checkpoint.read_parts(tensor, count, [count - 1])
            np.testing.assert_array_equal(last.values, found[-1].values)


def test_more_devices_than_scale_groups_share_them():
    param = dataclasses.replace(declare(GROK_1)["down"], groups=2)
    assert param.part(2).scales_shape == param.part(8).scales_shape == (8, 1, 6144)
    assert indivisible(GROK_1, 8) == ""
    assert indivisible(dataclasses.replace(GROK_1, model_shards=16), 8) == ""
    odd = dataclasses.replace(GROK_1, num_q_heads=48, model_shards=12, ffn_size=32772)
    assert indivisible(odd, 8) == "ffn_size=32772, model_shards=12"


def test_what_is_split():
    axes = {name: param.split_axis for name, param in declare(GROK_1).items()}
    assert {name for name, axis in axes.items() if axis is None} == {
        "final_norm", "attn_norm", "attn_post_norm", "moe_norm", "moe_post_norm", "router",
    }  # fmt: skip
    assert (axes["embedding"], axes["query"], axes["attn_out"]) == (0, 1, 0)
    assert (axes["gate"], axes["up"], axes["down"]) == (2, 2, 1)
