"""The search: bilevel training of weights and bit-width logits (AQ-BERT, Algorithm 1, first order), then the knapsack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.allocate import allocate
from autoquant.core.cost import ChoiceTable
from autoquant.core.settings import DistillationSettings
from autoquant.strategies.base import Problem, SearchResult
from autoquant.supernet.build import Supernet
from autoquant.supernet.controller import Controller
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import TeacherOutputs, distillation_loss
from autoquant.training.loop import Stateful, run_steps

# Bits per weight below the best choice at which prior logits are cut off. The widest choice, 8 bits, costs 8 of them: what is
# cut must stay worse than a choice that is merely too wide, or adding its bytes' price back would make it look good.
RANGE_BITS = 12.0


def price(sensitivity: np.ndarray, table: ChoiceTable, budget_bytes: int) -> float:
    """The loss per byte at which the sensitivity-optimal allocation weighs `budget_bytes` (the Lagrangian's multiplier)."""
    costs = np.where(table.allowed, table.bytes, np.inf)
    low, high = 1e-30, 1e6
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        choice = (np.where(table.allowed, sensitivity, np.inf) + middle * costs).argmin(axis=1)
        low, high = (middle, high) if table.total(choice) > budget_bytes else (low, middle)
    return high


def prior_logits(sensitivity: np.ndarray, table: ChoiceTable, budget_bytes: int, strength: float) -> np.ndarray:
    """Log-probabilities [N, K] that start the search at the sensitivity knapsack's solution.

    A choice's cost in bits per weight is 8 (score / price + bytes) / parameters, and its logit minus `strength` times that:
    weighted by parameters these are the knapsack's own Lagrangian, so deriving from them gives the `fisher` allocation.
    """
    bits = 8 * (sensitivity / price(sensitivity, table, budget_bytes) + table.bytes) / table.parameters[:, None]
    logits = np.where(table.allowed, -strength * bits, -np.inf)
    logits -= logits.max(axis=1, keepdims=True)
    logits = np.where(table.allowed, np.maximum(logits, -RANGE_BITS * strength), -np.inf)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def start_from(supernet: Supernet, log_probabilities: np.ndarray) -> None:
    """Set width and gate logits to given log-probabilities [N, K of the table]."""
    logs = torch.from_numpy(log_probabilities).float()
    with torch.no_grad():
        if supernet.has_zero:
            gate = logs[:, 1:].logsumexp(dim=1) - logs[:, 0]
            supernet.gate_logits.copy_(torch.where(supernet.prunable, gate, 0.0))
            logs = logs[:, 1:]
        supernet.width_logits.copy_(torch.where(torch.isfinite(logs), logs, 0.0))


@dataclass(frozen=True)
class Dnas:
    """Differentiable search with a sensitivity prior; see `SearchSettings` for every number."""

    def search(self, problem: Problem) -> SearchResult:
        settings = problem.search
        supernet = problem.make_supernet().to(problem.context.device)
        if settings.prior_strength:
            prior = prior_logits(problem.sensitivity, problem.table, problem.budget.bytes, settings.prior_strength)
            start_from(supernet, prior)
        train_supernet(supernet, problem)
        values = supernet.values(nats_per_byte=8 * settings.prior_strength)
        choice = allocate(values, problem.table, problem.budget.bytes)
        with torch.no_grad():
            probability = supernet.probabilities().cpu().numpy()[np.arange(len(choice)), choice]
        weights = {name: tensor.detach().cpu() for name, tensor in supernet.model.state_dict().items()}
        return SearchResult(problem.table.to_allocation(choice), values, probability, weights)


def train_supernet(supernet: Supernet, problem: Problem) -> None:
    """Algorithm 1, first order: step weights on the training part; step bits on the held-out part; anneal; log."""
    settings, context, device = problem.search, problem.context, problem.context.device
    controller = Controller(
        settings.steps,
        problem.budget.bytes,
        settings.schedule,
        settings.temperature_start,
        settings.temperature_end,
        settings.warmup,
        settings.anneal_after,
        settings.penalty,
        settings.penalty_rate,
    )
    weights = torch.optim.AdamW(
        [
            {"params": supernet.weight_parameters(), "lr": settings.weight_learning_rate},
            {"params": supernet.scale_parameters(), "lr": settings.scale_learning_rate, "weight_decay": 0.0},
        ],
        fused=True,
    )
    bits = torch.optim.Adam(supernet.architecture_parameters(), lr=settings.architecture_learning_rate, betas=(0.5, 0.999))
    train, held_out = problem.train(), problem.held_out()
    train_order = BatchOrder(train.data, settings.batch_size, context.seed)
    held_order = BatchOrder(held_out.data, settings.batch_size, context.seed + 1)

    on_bits = dataclasses.replace(problem.distillation, hidden=settings.architecture_hidden)

    def loss_on(data: TeacherOutputs, indices: np.ndarray, terms: DistillationSettings) -> Tensor:
        batch = data.data.collate(indices, device)
        with context.autocast():
            return distillation_loss(supernet, batch, data.batch(indices), terms)

    def step(number: int) -> dict[str, float]:
        temperature = controller.temperature(number)
        supernet.use_sample()
        loss = loss_on(train, train_order.indices(number), problem.distillation)
        loss.backward()
        weights.step()
        weights.zero_grad()
        values = {"loss": loss.item(), "temperature": temperature}
        if controller.bits_open(number):
            supernet.use_mixture(temperature, hard=settings.sampling == "hard")
            held_loss = loss_on(held_out, held_order.indices(number), on_bits)
            expected = supernet.expected_bytes()
            grads = torch.autograd.grad(held_loss + controller.size_term(expected), supernet.architecture_parameters())
            for parameter, grad in zip(supernet.architecture_parameters(), grads, strict=True):
                parameter.grad = grad
            bits.step()
            controller.update_multiplier(expected.item())
            values |= {"held_out_loss": held_loss.item(), "expected_bytes": expected.item(), "multiplier": controller.multiplier}
        return values

    supernet.eval()
    state: dict[str, Stateful] = {"supernet": supernet, "weights": weights, "bits": bits, "controller": controller}
    run_steps(context, problem.stage, "Search", settings.steps, step, state)
