"""Weight matrices as an exporter sees them: codes of mixed widths, or plain floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoquant.core.storage import code_bytes
from autoquant.pack.bits import unpack_rows
from autoquant.pack.matrix import PackedMatrix
from autoquant.quantizers import UniformQuantizer


@dataclass(frozen=True)
class Levels:
    """The integers within int8 that codes of one width stand for: `factor` * code + `lowest`.

    A grid of half-integers (-0.5, 0.5, ...) is doubled: one integer is then step / factor.
    """

    factor: int
    lowest: int

    @classmethod
    def of(cls, quantizer: UniformQuantizer, bits: int) -> Levels:
        limit = quantizer.grid(bits).limit
        factor = 1 if float(limit).is_integer() else 2
        return cls(factor, -round(limit * factor))

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes (uint8) -> integers (int8)."""
        return (codes.astype(np.int16) * self.factor + self.lowest).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Dense:
    """Floats, [rows, columns] float32."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    @property
    def pruned(self) -> np.ndarray:
        """Which rows are zeros, [rows] bool."""
        return (self.values == 0).all(axis=1)

    def rows_at(self, rows: np.ndarray) -> Dense:
        return Dense(self.values[rows])

    def columns_at(self, columns: np.ndarray) -> Dense:
        return Dense(self.values[:, columns])


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes [rows, columns] uint8 of `widths` [rows] bits on the quantizer's grid of `steps` [rows] float32.

    Pruned rows have width, codes and step 0.
    """

    codes: np.ndarray
    widths: np.ndarray
    steps: np.ndarray
    quantizer: UniformQuantizer

    @classmethod
    def of(cls, matrix: PackedMatrix, quantizer: UniformQuantizer) -> Coded:
        """Take a packed matrix apart; `quantizer.symmetric_int8` must hold."""
        layout = matrix.layout
        codes = np.zeros((layout.rows, layout.columns), np.uint8)
        for bits in layout.widths:
            packed = matrix.codes[layout.bytes_of(bits)].view(-1, code_bytes(1, layout.columns, bits))
            codes[layout.rows_of(bits).numpy()] = unpack_rows(packed, layout.columns, bits).numpy()
        return cls(codes, layout.row_bits.numpy(), layout.row_scales(matrix.scales).numpy(), quantizer)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def widths_used(self) -> list[int]:
        """The different widths, ascending, 0 among them if a row is pruned."""
        return np.unique(self.widths).tolist()

    @cached_property
    def integers(self) -> np.ndarray:
        """What the codes stand for, [rows, columns] int8; times `scales` they are the weights."""
        integers = np.zeros(self.shape, np.int8)
        for bits in filter(None, self.widths_used):
            rows = self.widths == bits
            integers[rows] = Levels.of(self.quantizer, bits)(self.codes[rows])
        return integers

    @property
    def scales(self) -> np.ndarray:
        """[rows] float32."""
        factors = {bits: Levels.of(self.quantizer, bits).factor for bits in self.widths_used if bits}
        return self.steps / np.array([factors.get(bits, 1) for bits in self.widths.tolist()], np.float32)

    @property
    def values(self) -> np.ndarray:
        """[rows, columns] float32."""
        return self.integers * self.scales[:, None]

    @property
    def pruned(self) -> np.ndarray:
        """Which rows are zeros, [rows] bool."""
        return self.widths == 0

    def rows_at(self, rows: np.ndarray) -> Coded:
        return Coded(self.codes[rows], self.widths[rows], self.steps[rows], self.quantizer)

    def columns_at(self, columns: np.ndarray) -> Coded:
        return Coded(self.codes[:, columns], self.widths, self.steps, self.quantizer)

    @classmethod
    def stacked(cls, parts: Sequence[Coded]) -> Coded:
        """Matrices of as many columns, one below the other."""
        codes, widths, steps = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "widths", "steps"))
        return cls(codes, widths, steps, parts[0].quantizer)


Matrix = Dense | Coded


def stacked(parts: Sequence[Matrix]) -> Matrix:
    """Matrices of as many columns, one below the other; coded if all are."""
    coded = [part for part in parts if isinstance(part, Coded)]
    return Coded.stacked(coded) if len(coded) == len(parts) else Dense(np.concatenate([part.values for part in parts]))
