"""A weight whose bits are trained one by one (BSQ: Yang, Duan, Chen and Li, ICLR 2021).

W = step round(sum_b 2^b P_b), `step` being the largest |w| of a sub-group over 2^B - 1. BSQ keeps a positive and a negative
tensor per bit; P_b is their difference, which has the same values and norms wherever one of the two is zero, as both start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.core.subgroup import Partition

LARGEST = 2.0  # what a trained bit may grow to, in either direction


class BitPlanes:
    """The signed planes of one matrix, [B, rows, columns], lowest first; `alive` [B, groups] are those that still exist.

    The bits of a sub-group are those from its lowest to its highest plane alive; what is outside was dropped for good.
    """

    def __init__(self, weight: Tensor, partition: Partition) -> None:
        self.partition, count = partition, max(partition.widths)
        self.group_of_row = torch.from_numpy(partition.group_of_row).to(weight.device)
        self.alive = torch.ones(count, partition.groups, dtype=torch.bool, device=weight.device)
        largest = torch.zeros(partition.groups, device=weight.device)
        largest.scatter_reduce_(0, self.group_of_row, weight.abs().amax(dim=1), "amax")
        self.step = (largest / (2**count - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        self.planes = self._digits((weight / self._rows(self.step)).round())

    def bits(self) -> Tensor:
        """Bits of every sub-group, [groups] int64; 0 where no plane is left."""
        return torch.where(self.alive.any(dim=0), self._highest() - self._lowest() + 1, 0)

    def weight(self) -> Tensor:
        """The quantised weight, [rows, columns]."""
        return self._codes() * self._rows(self.step)

    def move(self, change: Tensor) -> None:
        """Move the weight by about `change` [rows, columns], every plane along its straight-through gradient.

        That gradient is the weight's times step 2^b; together the planes alive move the unrounded weight by exactly `change`.
        """
        place = self.alive * self.place_values()
        share = place / place.square().sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        for plane, portion in zip(self.planes, share, strict=True):
            plane.add_(self._rows(portion) * change).clamp_(-LARGEST, LARGEST)

    def place_values(self) -> Tensor:
        """What a bit of every plane is worth, step 2^b, [B, groups]."""
        return self.step * self._powers()

    def droppable(self, least: int) -> Tensor:
        """Planes alive beside the `least` highest of every sub-group, [B, groups] bool."""
        return self.alive & (torch.arange(len(self.alive), device=self.alive.device)[:, None] <= self._highest() - least)

    def mean_of_rows(self, values: Tensor) -> Tensor:
        """Means over every sub-group's rows, [rows] -> [groups]."""
        sums = torch.zeros(self.alive.shape[1], device=values.device).index_add_(0, self.group_of_row, values)
        return sums / torch.tensor(self.partition.sizes, device=values.device)

    def norms(self) -> Tensor:
        """Euclidean norm of every sub-group's planes, [B, groups]: the terms of BSQ's group lasso."""
        return self._of_group([plane.square().sum(dim=1) for plane in self.planes], "sum").sqrt()

    def shrink(self, factor: Tensor) -> None:
        """Multiply every sub-group's planes by `factor` [B, groups]."""
        for plane, shares in zip(self.planes, factor, strict=True):
            plane.mul_(self._rows(shares))

    def requantise(self) -> None:
        """Drop the planes whose bits all round to zero, below the lowest that has others and above the highest; make the rest
        exact bits again.
        """
        self._keep(self._of_group([plane.abs().amax(dim=1) for plane in self.planes], "amax") >= 0.5)
        self.planes = self._digits(self._codes())
        self._keep(self.norms() > 0)

    def _keep(self, used: Tensor) -> None:
        """Drop what is below the lowest or above the highest plane that is `used` [B, groups]."""
        self.alive &= (used.cumsum(0) > 0) & (used.flip(0).cumsum(0).flip(0) > 0)

    def _of_group(self, rows: list[Tensor], how: str) -> Tensor:
        """Values [rows] of every plane, none below 0, reduced over every sub-group's rows: [B, groups]."""
        values = torch.stack(rows)
        return torch.zeros(self.alive.shape, device=values.device).scatter_reduce_(
            1, self.group_of_row.expand(len(values), -1), values, how
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"planes": self.planes, "alive": self.alive}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.planes, self.alive = (state[name].to(self.step.device) for name in ("planes", "alive"))

    def _codes(self) -> Tensor:
        """Whole multiples of the step, [rows, columns]: rounded at the lowest plane, at most what the planes alive can hold."""
        total, powers = torch.zeros_like(self.planes[0]), self._powers()
        for plane, values in zip(self.planes, self.alive * powers, strict=True):
            total += self._rows(values) * plane
        unit = self._rows(2.0 ** self._lowest())
        most = self._rows((self.alive * powers).sum(dim=0))
        return torch.clamp((total / unit).round() * unit, -most, most)

    def _digits(self, codes: Tensor) -> Tensor:
        """Signed binary digits of whole numbers, [B, rows, columns]."""
        whole = codes.abs().long()
        return torch.stack([(whole >> b & 1) * codes.sign() for b in range(len(self.alive))])

    def _powers(self) -> Tensor:
        """2^b, [B, 1]."""
        return 2.0 ** torch.arange(len(self.alive), device=self.alive.device)[:, None]

    def _lowest(self) -> Tensor:
        return self.alive.int().argmax(dim=0)

    def _highest(self) -> Tensor:
        return len(self.alive) - 1 - self.alive.flip(0).int().argmax(dim=0)

    def _rows(self, of_group: Tensor) -> Tensor:
        """A value per sub-group [groups] as a column, [rows, 1]."""
        return of_group[self.group_of_row, None]
