"""HAWQ-V2's bits (Dong et al., NeurIPS 2020): the Hessian's average trace times the squared quantisation error, solved exactly.

Omega_i = Tr(H_i) / n_i |Q(W_i) - W_i|^2, summed over what gets a width of its own and minimised at the given size: the paper's
layers are matrices, whose average trace all their sub-groups share: that of one sub-group would mostly be noise. The trace comes
from Hutchinson's estimator, E[v' H v] = Tr(H) for random signs v; one product with a v over all matrices serves each of them,
since what the others add has mean zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.hessian import hessian_product, label_losses, random_signs
from autoquant.strategies.sensitivity import squared_errors
from autoquant.training.batches import BatchOrder
from autoquant.training.loop import run_steps

LEAST = 1e-6  # of the largest trace: more bits are never worth nothing


@dataclass(frozen=True)
class Hawq:
    """Minimise the summed Omega within the budget; nothing is removed as a whole, as HAWQ prices no removals."""

    def search(self, problem: Problem) -> SearchResult:
        trace = average_traces(problem)
        trace = np.maximum(trace, LEAST * np.abs(trace).max())  # a negative estimate is curvature below the noise
        values = -trace[:, None] * squared_errors(problem.make_supernet())
        return SearchResult(derive(values, problem.table, problem.budget.bytes).allocation, values)


def average_traces(problem: Problem) -> np.ndarray:
    """Tr(H) / n of every sub-group's matrix, [N], whatever the budget; each step is one random vector on one batch."""
    settings, context, table = problem.search, problem.context, problem.table
    outputs, found = problem.train(), _Traces(len(table))
    parameters = [outputs.teacher.get_parameter(p.matrix.name) for p in table.partitions]
    order = BatchOrder(outputs.data, settings.batch_size, context.seed)

    def step(number: int) -> dict[str, float]:
        vectors = random_signs(parameters)
        losses = label_losses(outputs.teacher, outputs.data.select(order.indices(number)), context.device)
        loss, product = hessian_product(losses, parameters, vectors)
        found.add(by_subgroup(table, [v * h for v, h in zip(vectors, product, strict=True)]))
        return {"loss": loss, "trace": found.sums.sum().item() / found.count}

    run_steps(context, problem.stage, "Hessian", settings.trace_vectors, step, {"found": found})
    average = found.sums.numpy() / found.count
    for matrix in table.slices().values():
        average[matrix] = average[matrix].sum() / table.parameters[matrix].sum()
    return average


def by_subgroup(table: ChoiceTable, matrices: list[Tensor]) -> Tensor:
    """Sums over the entries of every sub-group, [N] float64; `matrices` in the order of the table."""
    sums = []
    for partition, matrix in zip(table.partitions, matrices, strict=True):
        rows = matrix.detach().double().sum(dim=1).cpu()
        sums.append(torch.zeros(partition.groups).double().index_add_(0, torch.from_numpy(partition.group_of_row), rows))
    return torch.cat(sums)


class _Traces:
    """Summed estimates of every sub-group's trace, [N] float64, and how many there are."""

    def __init__(self, subgroups: int) -> None:
        self.sums, self.count = torch.zeros(subgroups, dtype=torch.float64), 0

    def add(self, estimates: Tensor) -> None:
        self.sums, self.count = self.sums + estimates, self.count + 1

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.sums, self.count = torch.as_tensor(state["sums"]), int(state["count"])
