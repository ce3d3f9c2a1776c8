from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hast_lightning.errors import ModelError
from hast_lightning.export.packing import pack, packed_size, unpack


@given(bits=st.integers(1, 8), count=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_what_is_packed_is_unpacked(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(2**bits, (count,), generator=generator).to(torch.uint8)
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), integers)


def test_the_order_of_the_bits_is_as_documented() -> None:
    # 5 = 101, 3 = 011 and 6 = 110, lowest bit first: 101 110 011.
    assert pack(torch.tensor([5, 3, 6]), 3).tolist() == [0b10_011_101, 0b1]


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_bytes_is_refused(change: int) -> None:
    packed = torch.zeros(packed_size(10, 3) + change, dtype=torch.uint8)
    with pytest.raises(ModelError, match="10 weights of 3 bits take 4 bytes"):
        unpack(packed, 3, 10)
