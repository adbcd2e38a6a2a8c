"""Q-BERT's bits (Shen et al., AAAI 2020): whole layers, the upper of two widths for those whose loss is most curved.

Sensitivity of layer i (eq. 2): Omega_i = |mean(lambda_i)| + std(lambda_i), over the top eigenvalues lambda_i of the layer's own
Hessian on slices of the training data: what is curved, or differently curved on other data, needs more bits. The paper gives
layers 2 or 3 (or 2 or 4) bits by this order, by hand. Here the budget decides: everybody has the lower of two neighbouring widths
of the space, and layers get the upper one in this order until it is spent. Matrices outside the encoder, which the paper fixes
at 8 bits, are ranked each as a layer of its own where the space has a choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.hessian import Vectors, data_slices, hessian_product, label_losses, top_eigenvalue
from autoquant.training.loop import run_steps

STAIR = 64.0  # how many times a bit is worth one of the next wider width
SPREAD = 32.0  # how many times it is worth to the first layer what it is to the last: less than a stair


@dataclass(frozen=True)
class Qbert:
    """Layers in the order of their top Hessian eigenvalues; see `SearchSettings` for slices, texts and iterations."""

    def search(self, problem: Problem) -> SearchResult:
        table, blocks = problem.table, find_blocks(problem.table)
        omega = sensitivity(measure(problem, blocks))
        ranked = sorted(zip(omega, blocks, strict=True))
        rows = [[block, f"{value:.4g}"] for value, block in reversed(ranked)]
        problem.context.progress.table("Q-BERT's sensitivity, |mean| + std of the top eigenvalue", ["layer", "Omega"], rows)
        values = ranked_values(table, [blocks[block] for _, block in ranked])
        return SearchResult(derive(values, table, problem.budget.bytes).allocation, values)


def ranked_values(table: ChoiceTable, ranked: list[list[str]]) -> np.ndarray:
    """Values [N, K] whose knapsack is Q-BERT's rule; `ranked` are the matrices of every block, the least sensitive first.

    Per bit and weight, any width is worth more to everybody than the next wider one to anybody; within a width the order is
    that of the blocks.
    """
    rank, slices = np.zeros(len(table)), table.slices()
    for place, names in enumerate(ranked, start=1):
        for name in names:
            rank[slices[name]] = place / len(ranked)
    steps = np.diff(table.widths, prepend=0) * STAIR ** -np.arange(len(table.widths), dtype=float)
    return table.parameters[:, None] * SPREAD ** rank[:, None] * np.cumsum(steps)


def find_blocks(table: ChoiceTable) -> dict[str, list[str]]:
    """Encoder layer, or matrix outside the encoder -> its matrices; only those with a choice."""
    blocks: dict[str, list[str]] = {}
    for partition in table.partitions:
        matrix = partition.matrix
        if len(partition.widths) > 1:
            name = matrix.name.removesuffix(".weight") if matrix.layer is None else f"layer {matrix.layer}"
            blocks.setdefault(name, []).append(matrix.name)
    return blocks


def sensitivity(eigenvalues: np.ndarray) -> np.ndarray:
    """Q-BERT's eq. 2: [slices, blocks] -> [blocks].

    >>> sensitivity(np.array([[1.0, -3.0], [3.0, -3.0]])).tolist()
    [3.0, 3.0]
    """
    return np.abs(eigenvalues.mean(axis=0)) + eigenvalues.std(axis=0)


def measure(problem: Problem, blocks: dict[str, list[str]]) -> np.ndarray:
    """Top eigenvalue of every block's Hessian on every slice, [slices, blocks]; a step each, whatever the budget."""
    settings, context = problem.search, problem.context
    outputs, found = problem.train(), _Eigenvalues(problem.search.hessian_slices, len(blocks))
    slices = data_slices(outputs.data, settings.hessian_slices, settings.hessian_samples, context.seed)
    matrices = list(blocks.values())

    def step(number: int) -> dict[str, float]:
        index, block = divmod(number, len(blocks))
        parameters = [outputs.teacher.get_parameter(name) for name in matrices[block]]

        def product(vectors: Vectors) -> tuple[float, list[Tensor]]:
            return hessian_product(label_losses(outputs.teacher, slices[index], context.device), parameters, vectors)

        value, loss = top_eigenvalue(product, parameters, settings.power_iterations)
        found.values[index, block] = value
        return {"loss": loss, "eigenvalue": value, "block": block}

    run_steps(context, problem.stage, "Hessian", found.values.numel(), step, {"found": found})
    return found.values.numpy()


class _Eigenvalues:
    """What was measured so far, [slices, blocks] float64."""

    def __init__(self, slices: int, blocks: int) -> None:
        self.values = torch.zeros(slices, blocks, dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values = state["values"]
