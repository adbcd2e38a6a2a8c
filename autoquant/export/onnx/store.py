"""Rows at their true width: how they lie in the file, and the nodes that unpack them.

Whole matrices are unpacked by nodes whose inputs are all constant, so the runtime does it once, when the session loads. The
word embedding stays packed: the rows of a text's tokens are fetched, and only those unpacked.

Unpacking is looking up: a byte of b-bit codes is an index into a table of 256 rows of 8 / b values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from autoquant.export.onnx.graph import FLOAT, INT8, INT32, Graph
from autoquant.export.onnx.weights import Coded, Levels
from autoquant.pack.bits import pack_rows

BYTE_WIDTHS = (1, 2, 4, 8)  # widths of which a whole number of codes fills a byte


def unpack_matrices(graph: Graph, matrices: Sequence[Coded]) -> list[str]:
    """The int8 tensors [rows, columns] that matrices become when the session loads (scales not applied), in their order.

    Rows of equal length and width lie together, whatever their matrix, so that few nodes do it.
    """
    names = [""] * len(matrices)
    for columns in sorted({matrix.shape[1] for matrix in matrices}):
        chosen = [index for index, matrix in enumerate(matrices) if matrix.shape[1] == columns]
        rows = [matrices[index].shape[0] for index in chosen]
        unpacked = _unpack_rows(graph, Coded.stacked([matrices[index] for index in chosen]))
        parts = graph.ops("Split", unpacked, graph.integers(*rows), outputs=len(rows), axis=0)
        for index, part in zip(chosen, parts, strict=True):
            names[index] = part
    return names


def _unpack_rows(graph: Graph, matrix: Coded) -> str:
    """int8 [rows, columns]: unpacked width by width, ascending, then put back in their order."""
    parts = [_rows_of_width(graph, matrix, bits) for bits in matrix.widths_used]
    together = graph.op("Concat", *parts, axis=0)
    # the inverse of a stable sort by width is the sort of its result
    rows = len(matrix.widths)
    key = graph.op("Mul", values_by_row(graph, matrix.widths.astype(np.int32)), graph.constant(np.array(rows, np.int32)))
    key = graph.op("Add", key, _count_up(graph, rows))
    for _ in range(2):
        key = graph.ops("TopK", key, graph.integers(rows), outputs=2, largest=0)[1]
    return graph.op("Gather", together, key, axis=0)


def _rows_of_width(graph: Graph, matrix: Coded, bits: int) -> str:
    """The rows of one width, int8 [rows of it, columns]."""
    codes = matrix.codes[matrix.widths == bits]
    rows, columns = codes.shape
    if bits == 0:
        return graph.op("Expand", graph.constant(np.zeros((1, 1), np.int8)), graph.integers(rows, columns))
    levels = Levels.of(matrix.quantizer, bits)
    if bits == 8:
        return graph.constant(levels(codes))
    if bits != 3:
        return _unpack(graph, codes, bits, levels(np.arange(2**bits)))
    high = _unpack(graph, codes >> 1, 2, levels(np.arange(0, 8, 2)))
    low = _unpack(graph, codes & 1, 1, np.array([0, levels.factor], np.int8))
    wide = [graph.op("Cast", part, to=INT32) for part in (high, low)]  # older runtimes have no Add of int8
    return graph.op("Cast", graph.op("Add", *wide), to=INT8)


def _unpack(graph: Graph, codes: np.ndarray, bits: int, values: np.ndarray) -> str:
    """`values` [2**bits] at codes [rows, columns]; the file has the codes at `bits` (1, 2, 4 or 8) bits each."""
    rows, columns = codes.shape
    packed = graph.constant(pack_rows(torch.from_numpy(codes), bits).numpy())
    per_byte = 8 // bits
    shifts = bits * np.arange(per_byte)
    table = graph.constant(values[(np.arange(256)[:, None] >> shifts) & (2**bits - 1)])
    looked_up = graph.op("Gather", table, graph.op("Cast", packed, to=INT32))
    flat = graph.op("Reshape", looked_up, graph.integers(rows, -1))
    if columns % per_byte == 0:
        return flat
    return graph.op("Slice", flat, graph.integers(0), graph.integers(columns), graph.integers(1))


def values_by_row(graph: Graph, values: np.ndarray) -> str:
    """A vector of numbers; where few are different, the file has them once and a narrow index for every row."""
    different, index = np.unique(values, return_inverse=True)
    bits = next((width for width in BYTE_WIDTHS if len(different) <= 2**width), None)
    if bits is None:
        return graph.floats(values)
    packed = _unpack(graph, index.astype(np.uint8)[None], bits, np.arange(2**bits, dtype=np.int32))
    numbers = graph.floats(different) if values.dtype == np.float32 else graph.constant(different)
    return graph.op("Gather", numbers, graph.op("Reshape", packed, graph.integers(-1)))


def _count_up(graph: Graph, end: int) -> str:
    """0, 1, ... end - 1 (int32)."""
    return graph.op("Range", *(graph.constant(np.array(value, np.int32)) for value in (0, end, 1)))


def look_up_rows(graph: Graph, table: Coded, ids: str) -> str:
    """Rows of a packed table, float32 [..., columns], at ids [...]; unpacks the rows that were asked for.

    A row of b bits lies in the file as b planes of one bit a code: a code is the sum of its bits, plane p weighing 2^p.
    With signs s = 2 bit - 1 in place of bits, value = step * (sum_p 2^(p-1) s_p + (2^b - 1) / 2 - limit), in which the
    constant vanishes for grids of half-integers. So a row is a product of its weights [planes] and its signs.
    """
    columns, most = table.shape[1], _planes_of_the_widest(table)
    widths = graph.op("Unsqueeze", values_by_row(graph, table.widths.astype(np.int32)), graph.integers(1))
    steps = graph.op("Unsqueeze", values_by_row(graph, table.steps), graph.integers(1))
    plane = _count_up(graph, most)
    # folded when the session loads: where a row's planes are, and what they weigh
    first = graph.op("CumSum", widths, graph.integers(0), exclusive=1)
    where = graph.op("Add", first, plane)
    powers = graph.op("Mul", steps, graph.constant(2.0 ** np.arange(-1, most - 1, dtype=np.float32)))
    weights = graph.op("Where", graph.op("Less", plane, widths), powers, graph.constant(np.zeros(1, np.float32)))
    # at run time
    packed = graph.op("Gather", graph.constant(_planes(table)), graph.op("Gather", where, ids))
    signs = graph.op("Gather", _signs(graph), graph.op("Cast", packed, to=INT32))
    signs = graph.op("Reshape", signs, graph.integers(0, 0, most, -1))
    row_weights = graph.op("Gather", graph.op("Unsqueeze", weights, graph.integers(1)), ids)
    rows = graph.op("Reshape", graph.op("MatMul", row_weights, signs), graph.integers(0, 0, -1))
    if columns % 8:
        rows = graph.op("Slice", rows, graph.integers(0), graph.integers(columns), graph.integers(2))
    shifts = _shifts(table)
    if not any(shifts):
        return rows
    by_width = graph.op("Gather", graph.constant(shifts), widths)
    return graph.op("Add", rows, graph.op("Gather", graph.op("Mul", steps, by_width), ids))


def _shifts(table: Coded) -> np.ndarray:
    """(2^b - 1) / 2 - limit by width b from 0 to 8, float32: 0 for grids of half-integers and widths not in use."""
    shifts = np.zeros(9, np.float32)
    for bits in filter(None, table.widths_used):
        shifts[bits] = (2**bits - 1) / 2 - table.quantizer.grid(bits).limit
    return shifts


def _planes_of_the_widest(table: Coded) -> int:
    """One at least, of zeros: a table whose rows are all pruned is looked up all the same."""
    return max(1, int(table.widths.max()))


def _planes(table: Coded) -> np.ndarray:
    """[sum of widths + the largest, ceil(columns / 8)] uint8: every row's planes, lowest bit first; zeros after the last."""
    most = _planes_of_the_widest(table)
    bits = (table.codes[:, None, :] >> np.arange(most, dtype=np.uint8)[:, None]) & 1
    packed = np.packbits(bits, axis=-1, bitorder="little")
    live = np.arange(most) < table.widths[:, None]
    return np.concatenate([packed[live], np.zeros((most, packed.shape[-1]), np.uint8)])


def _signs(graph: Graph) -> str:
    """The eight bits of every byte as -1 and 1, [256, 8] float32."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    return graph.op("Cast", graph.constant((2 * bits - 1).astype(np.int8)), to=FLOAT)
