import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoquant.core.storage import code_bytes
from autoquant.pack.bits import pack_rows, unpack_rows


def reference(row: list[int], bits: int) -> bytes:
    """One row as one big integer: code i at bit i * bits."""
    number = sum(code << (index * bits) for index, code in enumerate(row))
    return number.to_bytes((len(row) * bits + 7) // 8, "little")


def codes_of(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0, 1], 1, [0b1, 0b1]),
        ([1, 2, 3, 0], 2, [0b00_11_10_01]),
        ([1, 2, 3], 3, [0b11_010_001, 0b0]),
        ([5, 10, 15], 4, [0b1010_0101, 0b1111]),
        ([200, 7], 8, [200, 7]),
    ],
)
def test_hand_computed(codes: list[int], bits: int, expected: list[int]) -> None:
    assert pack_rows(torch.tensor([codes], dtype=torch.uint8), bits).tolist() == [expected]


@settings(max_examples=200, deadline=None)
@given(bits=st.integers(0, 8), rows=st.integers(0, 5), columns=st.integers(1, 41), seed=st.integers(0, 2**31))
def test_round_trip_matches_big_integers(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = codes_of(rows, columns, bits, seed)
    packed = pack_rows(codes, bits)
    assert packed.numel() == code_bytes(rows, columns, bits)
    assert [bytes(row) for row in packed.tolist()] == [reference(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_rows(packed, columns, bits), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_refuses_a_code_that_would_spill_into_its_neighbour(bits: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows(torch.tensor([[0, 2**bits]], dtype=torch.uint8), bits)
