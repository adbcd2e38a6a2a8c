"""What quantizers store, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.space import SUPPORTED_WIDTHS
from autoquant.core.storage import PLAIN, Storage, code_bytes, position_bytes

CODEBOOK, VECTORS = Storage(codebook=True), Storage(codebook=True, vectors=True)
WIDTHS = [bits for bits in SUPPORTED_WIDTHS if bits]


def test_a_scale_or_a_codebook() -> None:
    assert [PLAIN.numbers(bits) for bits in SUPPORTED_WIDTHS] == [0, 1, 1, 1, 1, 1]
    assert [Storage(scales=2).numbers(bits) for bits in (0, 3)] == [0, 2]
    assert [CODEBOOK.numbers(bits) for bits in SUPPORTED_WIDTHS] == [0, 2, 4, 8, 16, 256]
    # 256 vectors of 8 and of 4 weights, 64 of 2, 256 of 2, 256 numbers
    assert [VECTORS.numbers(bits) for bits in SUPPORTED_WIDTHS] == [0, 2048, 1024, 128, 512, 256]


def test_blocks_by_hand() -> None:
    assert [VECTORS.block(bits) for bits in WIDTHS] == [8, 4, 2, 2, 1]
    # ten weights: 2 codes of 8 bits, 3 of 8, 5 of 6 (30 bits), 5 of 8, 10 of 8
    assert [VECTORS.codes(10, bits) for bits in WIDTHS] == [2, 3, 5, 5, 10]
    assert [VECTORS.row_bytes(10, bits) for bits in WIDTHS] == [2, 3, 4, 5, 10]


def test_one_outlier_in_so_many() -> None:
    assert [Storage(outlier_every=1000).outliers(weights) for weights in (0, 999, 1000, 589_824)] == [0, 0, 1, 589]
    assert PLAIN.outliers(10**6) == 0
    assert [position_bytes(weights) for weights in (1, 2, 256, 257, 65_536, 65_537, 23_440_896)] == [0, 1, 1, 2, 2, 3, 4]


@given(st.integers(1, 4000), st.sampled_from(WIDTHS))
def test_codes_fit_a_byte_and_whole_blocks_weigh_what_single_codes_do(columns: int, bits: int) -> None:
    assert VECTORS.code_bits(bits) <= 8
    assert VECTORS.codes(columns, bits) * VECTORS.block(bits) >= columns
    assert code_bytes(3, columns, bits) <= 3 * VECTORS.row_bytes(columns, bits)
    if columns % 8 == 0:
        assert code_bytes(3, columns, bits) == 3 * VECTORS.row_bytes(columns, bits)


@pytest.mark.parametrize("storage", [PLAIN, CODEBOOK, VECTORS])
def test_zero_bits_store_nothing(storage: Storage) -> None:
    assert (storage.numbers(0), storage.row_bytes(100, 0)) == (0, 0)
