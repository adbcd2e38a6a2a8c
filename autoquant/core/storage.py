"""What does a quantizer store? Codes, the numbers that a row or a sub-group shares, and weights that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

SCALE_BYTES = 2  # float16
FLOAT16_SMALLEST, FLOAT16_LARGEST = 2.0**-24, 65504.0  # positive float16 numbers


@dataclass(frozen=True)
class Storage:
    """How much a quantizer stores, all that its bytes follow from; a code has at most 8 bits.

    `scales`: float16 numbers that a row (or sub-group) has beside its codes; `codebook`: it has a value for every possible code
    instead; `vectors`: a code stands for 8 // bits weights side by side in a row and not for one; `outlier_every`: one weight
    of a sub-group in so many is stored once more, as float16 with its position (0: none is).
    """

    scales: int = 1
    codebook: bool = False
    vectors: bool = False
    outlier_every: int = 0

    def block(self, bits: int) -> int:
        """Weights that one code stands for."""
        return 8 // bits if self.vectors else 1

    def code_bits(self, bits: int) -> int:
        """Bits of one code, where a weight has `bits`.

        >>> [Storage(vectors=True).code_bits(bits) for bits in (1, 2, 3, 4, 8)]
        [8, 8, 6, 8, 8]
        """
        return bits * self.block(bits)

    def codes(self, columns: int, bits: int) -> int:
        """Codes of a row; the last may stand for fewer weights than the others."""
        return -(-columns // self.block(bits))

    def row_bytes(self, columns: int, bits: int) -> int:
        """Bytes of the codes of a row, padded to a whole byte; 0 at 0 bits."""
        return (self.codes(columns, bits) * self.code_bits(bits) + 7) // 8 if bits else 0

    def numbers(self, bits: int) -> int:
        """float16 numbers that the rows of one scale (or codebook) share; 0 at 0 bits."""
        if bits == 0:
            return 0
        return 2 ** self.code_bits(bits) * self.block(bits) if self.codebook else self.scales

    def outliers(self, weights: int) -> int:
        """How many of a sub-group's weights are stored as they are."""
        return weights // self.outlier_every if self.outlier_every else 0


PLAIN = Storage()
"""A scale, and a code for every weight."""


def code_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of `rows` rows of codes of `bits` bits, one a weight, each row padded to a whole byte.

    >>> code_bytes(2, 384, 3)
    288
    """
    return rows * PLAIN.row_bytes(columns, bits)


def position_bytes(weights: int) -> int:
    """Bytes that number the weights of a matrix from 0.

    >>> [position_bytes(n) for n in (1, 256, 257, 384 * 1536)]
    [0, 1, 2, 3]
    """
    return ((weights - 1).bit_length() + 7) // 8
