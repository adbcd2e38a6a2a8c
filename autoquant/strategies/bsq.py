"""BSQ (Yang, Duan, Chen and Li, ICLR 2021): every bit of the weights is trained, a group lasso empties bit-planes, they go.

The loss gets alpha sum_g #Para_g #Bit_g / #Para sum_b |P_gb|, the paper's memory-aware group lasso, with our sub-groups g for
its layers; from time to time all planes are rounded to exact bits and those that became zero are dropped, for good.

The paper trains long with a fixed alpha and takes the size that comes of it. Here there are hundreds of steps, and a budget; so,
ours: the lasso's step is a proximal one in each plane's own curvature, (step 2^b)^2 times the mean squared gradient of its
sub-group, which is where long training would lead to; and alpha rises or falls to keep the size on a straight line from its
start to the budget, and is 0 once inside. Widths that the space does not have become the next wider one, then the repair makes
it fit. Activations are not quantised meanwhile, and matrices without a choice stay as they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
FACTOR = 1.5  # by which alpha rises or falls at a re-quantisation


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
    """The loop and all its state: step the weights as bits; shrink; re-quantise now and then; set alpha."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.outputs = problem, problem.whole()
        self.model = copy.deepcopy(self.outputs.teacher).to(problem.context.device).eval()
        self.planes = {
            p.matrix.name: BitPlanes(self.model.get_parameter(p.matrix.name).detach(), p)
            for p in problem.table.partitions
            if len(p.widths) > 1
        }
        counted = problem.table.parameters * (problem.table.bytes.max(axis=1) > 0)
        shares = torch.from_numpy(counted / counted.sum()).float().to(problem.context.device)
        self.memory = {name: shares[rows] for name, rows in problem.table.slices().items()}
        rate = problem.search.weight_learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=BETAS, fused=True)
        self.order = BatchOrder(self.outputs.data, problem.search.batch_size, problem.context.seed)
        self.lasso = Lasso(self.size(), problem.budget.bytes, ARRIVAL * problem.search.steps)
        self._quantise()

    def state(self) -> dict[str, Stateful]:
        return {"model": self.model, "optimizer": self.optimizer, "planes": self, "lasso": self.lasso}

    def step(self, number: int) -> dict[str, float]:
        loss = self._step_weights(number)
        self._shrink()
        last = number + 1 == self.problem.search.steps
        if last or (number + 1) % self.problem.search.requantise_every == 0:
            for planes in self.planes.values():
                planes.requantise()
            self.lasso.update(self.size(), number + 1)
        self._quantise()
        return {"loss": loss, "size_bytes": self.lasso.size, "alpha": self.lasso.alpha}

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

    def _shrink(self) -> None:
        """The group lasso's proximal step: the norm of every plane that may go falls by a share of it, to 0 at the least."""
        shares = {name: self._shares(name) for name in self.planes}
        if self.lasso.alpha == 0.0:
            typical = torch.cat([share.amax(dim=0) for share in shares.values()]).median().item()
            self.lasso.alpha = 0.5 / self.problem.search.requantise_every / max(typical, 1e-30)
        for name, planes in self.planes.items():
            planes.shrink((1.0 - self.lasso.pressure * shares[name]).clamp_min(0.0))

    def _shares(self, name: str) -> Tensor:
        """Share of its norm that every plane loses at alpha = 1, [B, groups]; 0 for those that the space's least bits need."""
        planes = self.planes[name]
        resistance = self._curvature(name) * planes.place_values().square() * planes.norms()
        share = planes.bits() * self.memory[name] / resistance.clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(planes.droppable(min(planes.partition.widths)), share, 0.0)

    def _curvature(self, name: str) -> Tensor:
        """Mean squared gradient of every sub-group, [groups], as AdamW has it; before its first step 0."""
        state, planes = self.optimizer.state[self.model.get_parameter(name)], self.planes[name]
        if not state:
            return torch.zeros(planes.partition.groups)
        squared = state["exp_avg_sq"].mean(dim=1) / (1 - BETAS[1] ** float(state["step"]))
        return planes.mean_of_rows(squared)

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

    def size(self) -> float:
        """Bytes that count; of widths between those of the space in proportion, so that every plane that goes is seen."""
        table, widths = self.problem.table, np.asarray(self.problem.table.widths)
        rows = zip(self.bits(), table.bytes, table.allowed, strict=True)
        return table.fixed + float(sum(np.interp(bits, widths[may], sizes[may]) for bits, sizes, may in rows))

    def state_dict(self) -> dict[str, Any]:
        return {name: planes.state_dict() for name, planes in self.planes.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, planes in self.planes.items():
            planes.load_state_dict(state[name])


@dataclass
class Lasso:
    """The weight alpha of the group lasso, set so that the size falls from `first` bytes to the budget in `arrival` steps."""

    first: float
    budget_bytes: int
    arrival: float
    alpha: float = 0.0
    size: float = 0.0

    def __post_init__(self) -> None:
        self.size = self.first

    @property
    def pressure(self) -> float:
        """alpha; 0 once the size is inside the budget."""
        return self.alpha if self.size > self.budget_bytes else 0.0

    def update(self, size: float, done: int) -> None:
        """Raise alpha where the size is above its line after `done` steps, else lower it."""
        line = self.first + (self.budget_bytes - self.first) * min(1.0, done / self.arrival)
        self.size, self.alpha = size, self.alpha * (FACTOR if size > line else 1 / FACTOR)

    def state_dict(self) -> dict[str, float]:
        return {"alpha": self.alpha, "size": self.size}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.alpha, self.size = state["alpha"], state["size"]
