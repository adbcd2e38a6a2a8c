"""HAWQ-V2's bits (Dong et al., NeurIPS 2020): the Hessian's average trace times the squared quantisation error, solved exactly.

Omega_i = Tr(H_i) / n_i |Q(W_i) - W_i|^2, summed over what gets a width of its own and minimised at the given size: the paper's
layers are matrices, whose average trace all their sub-groups share.

Ours: H is the generalised Gauss-Newton matrix J' F J, with F the curvature of the loss by a text's logits. The rest of the
Hessian vanishes where the model fits its labels, and what it adds to an estimate is noise: v' H v with a random v over all
matrices came out negative for a third of them after 64 vectors. Hutchinson's estimator is used where F is, with random signs e
for a text's classes: E |J' L e|^2 = Tr(J' F J) for L L' = F (`fisher_loss`), all matrices at once; of two classes it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.sensitivity import fisher_loss, squared_errors
from autoquant.training.batches import BatchOrder
from autoquant.training.loop import run_steps

LEAST = 1e-6  # of the largest trace: more bits are never worth nothing


@dataclass(frozen=True)
class Hawq:
    """Minimise the summed Omega within the budget; nothing is removed as a whole, as HAWQ prices no removals."""

    def search(self, problem: Problem) -> SearchResult:
        trace = average_traces(problem)
        trace = np.maximum(trace, LEAST * trace.max())  # of a matrix that no text reaches
        values = -trace[:, None] * squared_errors(problem.make_supernet())
        return SearchResult(derive(values, problem.table, problem.budget.bytes).allocation, values)


def average_traces(problem: Problem) -> np.ndarray:
    """Tr(H) / n of every sub-group's matrix per text, [N], whatever the budget; each step adds a batch of texts."""
    settings, context, table = problem.search, problem.context, problem.table
    outputs, found = problem.train(), _Traces(len(table.partitions))
    teacher, data = outputs.teacher.eval(), outputs.data
    parameters = [teacher.get_parameter(p.matrix.name) for p in table.partitions]
    order = BatchOrder(data, settings.batch_size, context.seed)

    def step(number: int) -> dict[str, float]:
        for index in order.indices(number):
            batch = data.collate([index], context.device)
            batch.pop("labels")
            found.add(text_traces(teacher(**batch).logits.float(), parameters))
        trace = found.sums.sum().item() / found.count
        return {"loss": trace, "trace": trace}

    run_steps(context, problem.stage, "Hessian", settings.trace_vectors, step, {"found": found})
    sizes = [p.matrix.rows * p.matrix.columns for p in table.partitions]
    average = found.sums.numpy() / found.count / sizes
    return np.repeat(average, [p.groups for p in table.partitions])


def text_traces(logits: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """|J' L e|^2 of one text's logits [1, classes] by each of the parameters, [matrices] float64."""
    gradients = torch.autograd.grad(fisher_loss(logits), parameters)
    return torch.stack([gradient.square().sum() for gradient in gradients]).double().cpu()


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
