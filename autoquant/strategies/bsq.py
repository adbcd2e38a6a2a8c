"""BSQ (Yang, Duan, Chen and Li, ICLR 2021): every bit of the weights is trained, a group lasso empties bit-planes, they go.

The loss gets alpha sum_g #Para_g #Bit_g / #Para sum_b |P_gb|, the paper's memory-aware group lasso, with our sub-groups g for
its layers; from time to time all planes are rounded to exact bits and those that became zero are dropped, for good.

The paper trains long with a fixed alpha and takes the size that comes of it. Here there are hundreds of steps, and a budget; so,
ours: the lasso's step is a proximal one in each plane's own curvature, (step 2^b)^2 times the mean squared gradient of its
sub-group, which is where long training would lead to; and alpha is set, at every re-quantisation, so that the size falls on a
straight line to the budget. Widths that the space does not have become the next wider one, then the repair makes
it fit. Activations are not quantised meanwhile, and matrices without a choice stay as they are.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import ChoiceTable
from autoquant.core.repair import repair
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.sensitivity import squared_errors
from autoquant.strategies.uniform import nearest_columns
from autoquant.supernet.bit_planes import BitPlanes
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import distillation_loss
from autoquant.training.loop import Stateful, run_steps

BETAS = (0.9, 0.999)  # of AdamW
ARRIVAL = 0.8  # share of the steps after which the size should have reached the budget
EMPTIED = 0.6  # share of its norm that a plane must have lost for all its bits to round to zero


@dataclass(frozen=True)
class Bsq:
    """Bits that survive the lasso; `steps`, `weight_learning_rate` and `requantise_every` of the search are its numbers."""

    def search(self, problem: Problem) -> SearchResult:
        table, capacity = problem.table, problem.budget.bytes
        training = Training(problem)
        run_steps(problem.context, problem.stage, "Search", problem.search.steps, training.step, training.state())
        choice = nearest_columns(table, training.bits())
        values = -training.curvature()[:, None] * squared_errors(problem.make_supernet())
        allocation = table.to_allocation(repair(values, table, choice, capacity))
        return SearchResult(allocation, values, derived_bytes=table.total(choice))


class Training:
    """The loop and all its state: step the weights as bits; shrink the planes; re-quantise, and set alpha, now and then."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.outputs, table = problem, problem.whole(), problem.table
        self.model = copy.deepcopy(self.outputs.teacher).to(problem.context.device).eval()
        self.planes = {
            p.matrix.name: BitPlanes(self.model.get_parameter(p.matrix.name).detach(), p)
            for p in table.partitions
            if len(p.widths) > 1
        }
        counted = table.parameters * (table.bytes.max(axis=1) > 0)
        shares = torch.from_numpy(counted / counted.sum()).float().to(problem.context.device)
        self.memory = {name: shares[rows] for name, rows in table.slices().items()}
        rate = problem.search.weight_learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=BETAS, fused=True)
        self.order = BatchOrder(self.outputs.data, problem.search.batch_size, problem.context.seed)
        self.bytes_at = bytes_at_all_bits(table)
        self.alpha, self.start = 0.0, self.size(self.bits())
        self._quantise()

    def state(self) -> dict[str, Stateful]:
        return {"model": self.model, "optimizer": self.optimizer, "planes": self}

    def step(self, number: int) -> dict[str, float]:
        settings = self.problem.search
        loss = self._step_weights(number)
        if number % settings.requantise_every == 0:
            self.alpha = self._alpha(number + settings.requantise_every)
        for name, planes in self.planes.items():
            planes.shrink((1.0 - self.alpha * self._shares(name)).clamp_min(0.0))
        if number + 1 == settings.steps or (number + 1) % settings.requantise_every == 0:
            for planes in self.planes.values():
                planes.requantise()
        self._quantise()
        return {"loss": loss, "size_bytes": self.size(self.bits()), "alpha": self.alpha}

    def _step_weights(self, number: int) -> float:
        """AdamW on the weights as they are quantised; the planes follow along their straight-through gradients."""
        indices, context = self.order.indices(number), self.problem.context
        batch = self.outputs.data.collate(indices, context.device)
        with context.autocast():
            loss = distillation_loss(self.model, batch, self.outputs.batch(indices), self.problem.distillation)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, planes in self.planes.items():
            planes.move(self.model.get_parameter(name).detach() - planes.weight())
        return loss.item()

    def _shares(self, name: str) -> Tensor:
        """Share of its norm that the lasso's proximal step takes from every plane at alpha = 1, [B, groups].

        0 for the highest planes, as many as the space's least bits.
        """
        planes = self.planes[name]
        resistance = self._curvature(name) * planes.place_values().square() * planes.norms()
        share = planes.bits() * self.memory[name] / resistance.clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(planes.droppable(min(planes.partition.widths)), share, 0.0)

    def _alpha(self, step: int) -> float:
        """The least alpha that empties enough planes until the re-quantisation at `step` for the size to be on its line."""
        settings, bits, budget = self.problem.search, self.bits(), self.problem.budget.bytes
        line = self.start + (budget - self.start) * min(1.0, step / (ARRIVAL * settings.steps))
        needed = np.full((self.bytes_at.shape[1] - 1, len(bits)), np.inf)
        for name, rows in self.problem.table.slices().items():
            if name in self.planes:
                shares = self._shares(name).double().cpu().numpy()
                with np.errstate(divide="ignore"):
                    needed[: len(shares), rows] = EMPTIED / settings.requantise_every / shares
        choices = np.concatenate([[0.0], np.unique(needed[np.isfinite(needed)])])
        at = bisect_left(choices, True, key=lambda alpha: self.size(bits - (needed <= alpha).sum(axis=0)) <= line)
        return float(choices[min(at, len(choices) - 1)])

    def _curvature(self, name: str) -> Tensor:
        """Mean squared gradient of every sub-group, [groups], as AdamW has it."""
        state = self.optimizer.state[self.model.get_parameter(name)]
        squared = state["exp_avg_sq"].mean(dim=1) / (1 - BETAS[1] ** float(state["step"]))
        return self.planes[name].mean_of_rows(squared)

    def _quantise(self) -> None:
        for name, planes in self.planes.items():
            self.model.get_parameter(name).data.copy_(planes.weight())

    def bits(self) -> np.ndarray:
        """Bits of every sub-group of the table, [N]; its only width where there is no choice."""
        found = [
            self.planes[p.matrix.name].bits().cpu().numpy() if p.matrix.name in self.planes else np.full(p.groups, p.widths[0])
            for p in self.problem.table.partitions
        ]
        return np.concatenate(found)

    def curvature(self) -> np.ndarray:
        """Mean squared gradient of every sub-group of the table, [N] float64; 0 where there is no choice."""
        found = [
            self._curvature(p.matrix.name).double().cpu().numpy() if p.matrix.name in self.planes else np.zeros(p.groups)
            for p in self.problem.table.partitions
        ]
        return np.concatenate(found)

    def size(self, bits: np.ndarray) -> float:
        """Bytes that count, at bits per sub-group [N]."""
        return self.problem.table.fixed + float(self.bytes_at[np.arange(len(bits)), bits].sum())

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **{name: planes.state_dict() for name, planes in self.planes.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha = state["alpha"]
        for name, planes in self.planes.items():
            planes.load_state_dict(state[name])


def bytes_at_all_bits(table: ChoiceTable) -> np.ndarray:
    """Bytes of every sub-group at 0, 1, ... bits, [N, widest + 1]; those of widths that the space does not have in proportion."""
    widths, every = np.asarray(table.widths), np.arange(max(table.widths) + 1)
    rows = zip(table.bytes, table.allowed, strict=True)
    return np.array([np.interp(every, widths[may], sizes[may]) for sizes, may in rows])
