"""What codebook quantizers share, given their centroids: nearest centroids, codes, codes back to values, and outliers.

A codebook belongs to the rows of one sub-group at one width b. It has a centroid for every code: 2^b numbers or, where a code
stands for a block of weights side by side in a row, as many vectors. It is handed around as the file stores it: float16 numbers
in a row, one centroid after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autoquant.core.storage import FLOAT16_LARGEST, Storage

CHUNK = 2**18  # distances computed at a time: what stays in cache


class CodebookQuantizer(ABC):
    """Every weight, or block of weights, takes its nearest centroid; a few outliers may stay as they are, in float16."""

    name: str
    widths: tuple[int, ...] = (1, 2, 3, 4, 8)
    storage: Storage
    symmetric_int8 = False

    @abstractmethod
    def centroids(self, weight: Tensor, bits: int) -> Tensor:
        """The codebook of one sub-group, [numbers], exact in float16: weight [rows, columns]."""

    def measure(self, weight: Tensor, widths: Sequence[int], group: Tensor, allowed: Sequence[int]) -> Tensor:
        """Codebooks of every width one after the other, [groups, numbers of all `widths`]; zeros where not `allowed`.

        weight [rows, columns]; `group` [rows] numbers the sub-groups from 0, every number in use.
        """
        members = [weight[group == index] for index in range(int(group.max()) + 1)]
        columns = []
        for bits in widths:
            if bits in allowed:
                columns.append(torch.stack([self.centroids(member, bits) for member in members]))
            else:
                columns.append(weight.new_zeros(len(members), self.storage.numbers(bits)))
        return torch.cat(columns, dim=1)

    def split(self, codebooks: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        """What `measure` joined: the codebooks of every width, [groups, numbers] each."""
        return codebooks.split([self.storage.numbers(bits) for bits in widths], dim=1)

    def outliers(self, weight: Tensor, group: Tensor) -> Tensor:
        """Which weights stay as they are, [rows, columns] bool.

        Of every sub-group as many as `storage.outliers` says: the least probable under a Gaussian with the sub-group's mean
        and deviation, that is, those farthest from the mean.
        """
        found = torch.zeros_like(weight, dtype=torch.bool)
        for index in range(int(group.max()) + 1 if self.storage.outlier_every else 0):
            rows = (group == index).nonzero()[:, 0]
            distance = (weight[rows] - weight[rows].mean()).abs()
            farthest = distance.flatten().topk(self.storage.outliers(distance.numel())).indices
            found[rows[farthest // weight.shape[1]], farthest % weight.shape[1]] = True
        return found

    def encode(self, weight: Tensor, codebook: Tensor, group: Tensor, bits: int) -> Tensor:
        """Codes of the nearest centroids, [rows, codes a row] uint8, each below 2**code_bits.

        weight [rows, columns]; codebook [groups, numbers]; `group` [rows]: the codebook of every row. Of a last block that
        reaches beyond its row only what is in the row counts.
        """
        block = self.storage.block(bits)
        if block == 1:
            return _nearest_numbers(weight, codebook, group)
        columns = weight.shape[1]
        whole = columns // block
        codes = torch.empty(len(weight), self.storage.codes(columns, bits), dtype=torch.uint8, device=weight.device)
        for index in group.unique().tolist():
            rows, centroids = group == index, codebook[index].view(-1, block)
            if whole:
                codes[rows, :whole] = _nearest_vectors(weight[rows, : whole * block].unflatten(1, (-1, block)), centroids)
            if columns % block:
                codes[rows, whole:] = _nearest_vectors(weight[rows, None, whole * block :], centroids[:, : columns % block])
        return codes

    def decode(self, codes: Tensor, codebook: Tensor, group: Tensor, bits: int, columns: int) -> Tensor:
        """Values of codes, [rows, columns]; differentiable in the codebook [groups, numbers]."""
        block = self.storage.block(bits)
        size = codebook.shape[1] // block
        index = codes.long() + (group * size)[:, None]
        return functional.embedding(index, codebook.reshape(-1, block)).flatten(1)[:, :columns]

    def fake_quantize(self, weight: Tensor, codebook: Tensor, group: Tensor, bits: int) -> Tensor:
        """Whole sub-groups as they will be stored, [rows, columns]: nearest centroids, and outliers in float16; no gradient."""
        values = self.decode(self.encode(weight, codebook, group, bits), codebook, group, bits, weight.shape[1])
        return torch.where(self.outliers(weight, group), to_half(weight), values)


def to_half(numbers: Tensor) -> Tensor:
    """As float16 stores them, float32."""
    return numbers.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST).half().float()


def _nearest_numbers(weight: Tensor, codebook: Tensor, group: Tensor) -> Tensor:
    """Codes [rows, columns] uint8 of the nearest of each row's numbers; the smaller one at a tie."""
    ordered, order = codebook.sort(dim=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    if len(codebook) == 1:
        place = torch.bucketize(weight, middles[0])
        return order[0].to(torch.uint8)[place]
    place = torch.searchsorted(middles[group], weight)
    return order[group].gather(1, place).to(torch.uint8)


def _nearest_vectors(blocks: Tensor, centroids: Tensor) -> Tensor:
    """Codes [rows, blocks of a row] uint8: blocks [rows, blocks of a row, block], centroids [size, block].

    |x - c|^2 is least where x c - |c|^2 / 2 is greatest.
    """
    flat, half = blocks.flatten(0, 1), centroids.square().sum(1) / 2
    with torch.autocast(blocks.device.type, enabled=False):  # which is nearest is decided in full precision
        parts = [(part @ centroids.T - half).argmax(1) for part in flat.split(max(1, CHUNK // len(centroids)))]
    return torch.cat(parts).to(torch.uint8).view(blocks.shape[:2])
