"""Codes <-> bytes at their true width: every row is a little-endian stream of bits, padded to a whole byte.

Code i of a row fills bits [i * bits, (i + 1) * bits) of its stream; bit 0 is the lowest bit of the first byte. Eight codes
fill exactly `bits` bytes, so both directions are a few shifts over groups of eight, whatever the width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

GROUP = 8  # codes that end on a byte boundary at every width


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """codes [rows, columns] uint8, each below 2**bits -> [rows, ceil(columns * bits / 8)] uint8; `bits` 0 to 8.

    Raises ValueError for a code that does not fit.

    >>> pack_rows(Tensor([[1, 2, 3]]).byte(), 3).tolist()  # 011 010 001 -> 1101 0001, 0
    [[209, 0]]
    """
    rows, columns = codes.shape
    groups = (columns + GROUP - 1) // GROUP
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits")
    grouped = pad(codes, (0, groups * GROUP - columns)).view(rows, groups, GROUP)
    packed = codes.new_zeros(rows, groups, bits)
    for index in range(GROUP if bits else 0):
        byte, shift = divmod(index * bits, 8)
        packed[:, :, byte] |= grouped[:, :, index] << shift
        if shift + bits > 8:
            packed[:, :, byte + 1] |= grouped[:, :, index] >> (8 - shift)
    return packed.view(rows, groups * bits)[:, : (columns * bits + 7) // 8].contiguous()


def unpack_rows(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The inverse: packed [rows, ceil(columns * bits / 8)] uint8 -> codes [rows, columns] uint8."""
    rows, groups = len(packed), (columns + GROUP - 1) // GROUP
    stream = pad(packed, (0, groups * bits - packed.shape[1])).view(rows, groups, bits)
    codes = packed.new_zeros(rows, groups, GROUP)
    for index in range(GROUP if bits else 0):
        byte, shift = divmod(index * bits, 8)
        code = stream[:, :, byte] >> shift
        if shift + bits > 8:
            code |= stream[:, :, byte + 1] << (8 - shift)
        codes[:, :, index] = code & (2**bits - 1)
    return codes.view(rows, groups * GROUP)[:, :columns].contiguous()
