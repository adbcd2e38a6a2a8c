"""HAWQ-V2's bits (Dong et al., NeurIPS 2020): the Hessian's average trace times the squared quantisation error, solved exactly.

Omega_i = Tr(H_i) / n_i |Q(W_i) - W_i|^2, summed over what gets a width of its own and minimised at the given size: the paper's
layers are matrices, whose average trace all their sub-groups share. Hutchinson's estimator gives the trace, matrix by matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.hessian import block_traces, label_losses
from autoquant.strategies.sensitivity import squared_errors
from autoquant.training.batches import BatchOrder
from autoquant.training.loop import run_steps

TEXTS = 8  # on which one vector a matrix is tried: many vectors on few texts say more than few on many
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
    """Tr(H) / n of every sub-group's matrix, [N], whatever the budget; a step is one random vector a matrix."""
    settings, context, table = problem.search, problem.context, problem.table
    outputs, found = problem.train(), _Traces(len(table.partitions))
    parameters = [outputs.teacher.get_parameter(p.matrix.name) for p in table.partitions]
    order = BatchOrder(outputs.data, TEXTS, context.seed)

    def step(number: int) -> dict[str, float]:
        losses = label_losses(outputs.teacher, outputs.data.select(order.indices(number)), context.device)
        loss, traces = block_traces(losses, parameters)
        found.add(traces)
        return {"loss": loss, "trace": found.sums.sum().item() / found.count}

    run_steps(context, problem.stage, "Hessian", settings.trace_vectors, step, {"found": found})
    sizes = [p.matrix.rows * p.matrix.columns for p in table.partitions]
    average = found.sums.numpy() / found.count / sizes
    return np.repeat(average, [p.groups for p in table.partitions])


class _Traces:
    """Summed estimates of every matrix's trace, float64, and how many there are."""

    def __init__(self, matrices: int) -> None:
        self.sums, self.count = torch.zeros(matrices, dtype=torch.float64), 0

    def add(self, estimates: Tensor) -> None:
        self.sums, self.count = self.sums + estimates, self.count + 1

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.sums, self.count = torch.as_tensor(state["sums"]), int(state["count"])
