import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.int4 import pack_int4, unpack_int4


@given(
    values=st.lists(st.integers(-8, 7), min_size=2, max_size=40).filter(lambda v: len(v) % 2 < 1)
)
def test_four_bit_numbers_two_to_a_byte(values):
    array = np.array([values, values[::-1]], np.int8)
    packed = pack_int4(array)
    assert packed.shape == (2, len(values) // 2)
    np.testing.assert_array_equal(unpack_int4(packed).astype(np.int8), array)
