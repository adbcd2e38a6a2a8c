"""The search: bilevel training of weights and bit-width logits (AQ-BERT, Algorithm 1), then the knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import Derived, derive, fix_units, price, priced, unit_contents, weigh
from autoquant.core.repair import repair
from autoquant.core.settings import DistillationSettings
from autoquant.strategies.base import Problem, SearchResult, Start
from autoquant.strategies.sensitivity import Sensitivity
from autoquant.strategies.unrolled import unrolled_gradient
from autoquant.supernet.build import Supernet, unit_parameters
from autoquant.supernet.controller import Controller
from autoquant.supernet.size_terms import SIZE_TERMS
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import TeacherOutputs, distillation_loss
from autoquant.training.loop import Stateful, run_steps

# Bits per weight below the best choice at which prior logits are cut off, so that the search can still move them. The widest
# choice, 8 bits, costs 8 of them: what is cut must stay worse than a choice that is merely too wide.
RANGE_BITS = 12.0


@dataclass(frozen=True, eq=False)
class Prior:
    """Where a search starts: log-probabilities of choices [N, K], and logits of keeping each unit [U].

    `beyond` [N, K] and `units_beyond` [U] are what the range cut off, at most 0 for choices: values of a search have it added
    again, or a budget of another price would take a choice for harmless that is only out of range.
    """

    choices: np.ndarray
    units: np.ndarray
    beyond: np.ndarray
    units_beyond: np.ndarray


def sensitivity_prior(sensitivity: Sensitivity, table: ChoiceTable, budget_bytes: int, strength: float) -> Prior:
    """The sensitivity knapsack's solution as a distribution.

    A choice's cost in bits per weight is 8 (score / price + bytes) / parameters, and its logit minus `strength` times that:
    weighted by parameters these are the knapsack's own Lagrangian, so deriving from them gives the `fisher` allocation. A
    unit's logit is the same of its removal's score, less that of its contents' best choices.
    """
    rate = price(-sensitivity.choices, table, budget_bytes, -sensitivity.removals)
    bits = 8 * (sensitivity.choices / rate + table.bytes) / table.parameters[:, None]
    exact = np.where(table.allowed, -strength * bits, -np.inf)
    exact -= exact.max(axis=1, keepdims=True)
    logits = np.where(table.allowed, np.maximum(exact, -RANGE_BITS * strength), -np.inf)
    beyond = np.where(table.allowed, np.minimum(exact + RANGE_BITS * strength, 0.0), 0.0)
    units = _unit_logits(sensitivity, table, rate, strength)
    near = np.clip(units, -RANGE_BITS * strength, RANGE_BITS * strength)
    return Prior(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), near, beyond, units - near)


def _unit_logits(sensitivity: Sensitivity, table: ChoiceTable, rate: float, strength: float) -> np.ndarray:
    if table.removable is None:
        return np.zeros(0)
    worth = sensitivity.removals + unit_contents(priced(-sensitivity.choices, table, rate), table, rate)
    return strength * 8 * worth / rate / unit_parameters(table)


def start_from(supernet: Supernet, prior: Prior) -> None:
    """Set width, gate and unit logits to a prior."""
    logs = torch.from_numpy(prior.choices).float().to(supernet.width_logits.device)
    with torch.no_grad():
        if supernet.has_zero:
            gate = logs[:, 1:].logsumexp(dim=1) - logs[:, 0] if supernet.gates else logs[:, 0]
            supernet.gate_logits.copy_(torch.where(supernet.prunable, gate, 0.0))
            logs = logs[:, 1:]
        supernet.width_logits.copy_(torch.where(torch.isfinite(logs), logs, 0.0))
        if supernet.unit_logits is not None:
            supernet.unit_logits.copy_(torch.from_numpy(prior.units).float())


@dataclass(frozen=True)
class Dnas:
    """Differentiable search with a sensitivity prior; see `SearchSettings` for every number."""

    def search(self, problem: Problem) -> SearchResult:
        settings = problem.search
        supernet = problem.make_supernet()
        prior = None
        if settings.prior_strength:
            prior = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, settings.prior_strength)
            start_from(supernet, prior)
        train_supernet(supernet, problem)
        values, removal = learned_values(supernet, settings.prior_strength, prior)
        if prior is not None:
            before = prior_values(prior, problem.table, settings.prior_strength)
            values, removal = trusting(values, removal, before, settings.trust)
        likely, gone = supernet.most_probable()
        if settings.derive == "knapsack":
            derived = derive(values, problem.table, problem.budget.bytes, removal)
        else:
            derived = _repaired(values, problem.table, likely, gone, problem.budget.bytes)
        with torch.no_grad():
            probability = supernet.probabilities().cpu().numpy()[derived.origins, derived.choice]
        searched = Start(supernet.latent_state(), supernet.learned_scales())
        return SearchResult(derived.allocation, values, removal, probability, searched, round(weigh(problem.table, likely, gone)))


def learned_values(supernet: Supernet, strength: float, prior: Prior | None) -> tuple[np.ndarray, np.ndarray | None]:
    """What every choice [N, K] and removal [U] is worth by the logits, before its price, in one measure at any budget."""
    values, removal = supernet.values(nats_per_byte=8 * strength), supernet.removal_values()
    if prior is not None:
        values += supernet.table.parameters[:, None] * prior.beyond
        removal = None if removal is None else removal - unit_parameters(supernet.table) * prior.units_beyond
    return values, None if removal is None else _with_contents(removal, values, supernet.table, 8 * strength)


def prior_values(prior: Prior, table: ChoiceTable, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """What every choice [N, K] and removal [U] was worth before a step was made, in the measure of `learned_values`."""
    values = table.parameters[:, None] * (prior.choices + prior.beyond) + 8 * strength * table.bytes
    if table.removable is None:
        return values, np.zeros(0)
    removal = -unit_parameters(table) * (prior.units + prior.units_beyond)
    return values, _with_contents(removal, values, table, 8 * strength)


def _with_contents(removal: np.ndarray, values: np.ndarray, table: ChoiceTable, rate: float) -> np.ndarray:
    """Removals [U] in the measure of `derive`, which takes off what a unit's contents are worth at a price: a unit's logit is
    without them, since it says what is more likely at the search's own."""
    return removal + unit_contents(priced(values, table, rate), table, rate)


def trusting(
    values: np.ndarray, removal: np.ndarray | None, before: tuple[np.ndarray, np.ndarray], trust: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values that moved only a share `trust` of the way from `before`, the prior's, to the learned ones.

    What a few hundred noisy steps moved is partly chance: the best guess of a true value is its prior plus what was observed
    beyond it times the observation's reliability (Kelley 1927).
    """
    start, start_removal = before
    moved = np.subtract(values, start, out=np.zeros_like(start), where=np.isfinite(start))
    return start + trust * moved, None if removal is None else start_removal + trust * (removal - start_removal)


def _repaired(values: np.ndarray, table: ChoiceTable, likely: np.ndarray, gone: np.ndarray, budget_bytes: int) -> Derived:
    """AQ-BERT's derivation: the most probable choices and removals, then greedy repair of the choices."""
    smaller, moved, origins, removed = fix_units(values, table, gone)
    choice = repair(moved, smaller, likely[origins], budget_bytes)
    return Derived(smaller.to_allocation(choice, removed), smaller, choice, origins)


def train_supernet(supernet: Supernet, problem: Problem) -> None:
    """Run the whole search, from its checkpoint if there is one."""
    supernet.eval()
    search = Bilevel(supernet, problem)
    run_steps(problem.context, problem.stage, "Search", problem.search.steps, search.step, search.state())


class Bilevel:
    """Algorithm 1 and all its state: step weights on the training part; step bits on the held-out part; anneal; log."""

    def __init__(self, supernet: Supernet, problem: Problem) -> None:
        self.supernet, self.problem, settings = supernet, problem, problem.search
        self.controller = Controller(
            settings.steps,
            SIZE_TERMS[settings.size_term](settings, problem.budget.bytes),
            schedule=settings.schedule,
            start=settings.temperature_start,
            end=settings.temperature_end,
            warmup=settings.warmup,
            anneal_after=settings.anneal_after,
        )
        self.weights = torch.optim.AdamW(
            [
                {"params": supernet.weight_parameters(), "lr": settings.weight_learning_rate},
                {"params": supernet.scale_parameters(), "lr": settings.scale_learning_rate, "weight_decay": 0.0},
            ],
            fused=True,
        )
        self.architecture = supernet.architecture_parameters()
        rate = settings.architecture_learning_rate
        self.bits: torch.optim.Optimizer = (
            torch.optim.SGD(self.architecture, lr=rate)
            if settings.architecture_optimizer == "sgd"
            else torch.optim.Adam(self.architecture, lr=rate, betas=(0.5, 0.999))
        )
        size, seed = settings.batch_size, problem.context.seed
        self.train = problem.train() if settings.bilevel else problem.whole()
        self.held_out = problem.held_out() if settings.bilevel else self.train
        self.train_order = BatchOrder(self.train.data, size, seed)
        self.held_order = BatchOrder(self.held_out.data, size, seed + 1) if settings.bilevel else self.train_order

    def state(self) -> dict[str, Stateful]:
        return {"supernet": self.supernet, "weights": self.weights, "bits": self.bits, "controller": self.controller}

    def step(self, number: int) -> dict[str, float]:
        temperature = self.controller.temperature(number)
        values = {"loss": self._step_weights(number, temperature), "temperature": temperature}
        if self.controller.bits_open(number):
            values |= self._step_bits(number, temperature)
        return values

    def _step_weights(self, number: int, temperature: float) -> float:
        self.supernet.use_sample()  # in any case: the size terms look at it
        if self.problem.search.weight_sampling == "soft":
            self.supernet.use_mixture(temperature, hard=False)
        loss = self._loss(self.train, self.train_order.indices(number), self.problem.distillation)
        loss.backward()
        self.weights.step()
        self.weights.zero_grad()
        return loss.item()

    def _step_bits(self, number: int, temperature: float) -> dict[str, float]:
        supernet, size = self.supernet, self.controller.size
        expected, assigned = supernet.expected_bytes(), weigh(self.problem.table, *supernet.sampled())
        derived = round(weigh(self.problem.table, *supernet.most_probable()))
        term = size.loss(expected, assigned, supernet.probabilities())
        loss, grads = self._bit_gradients(number, temperature, term)
        for parameter, grad in zip(self.architecture, grads, strict=True):
            parameter.grad = grad
        self.bits.step()
        size.update(expected.item())
        sizes = {"expected_bytes": expected.item(), "derived_bytes": derived}
        return {"held_out_loss": loss.item(), **sizes, **size.state_dict()}

    def _bit_gradients(self, number: int, temperature: float, term: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The held-out loss under a relaxed sample of bits, and the gradients of it plus the size term."""
        problem, rate, hard = self.problem, self.problem.search.unrolled, self.problem.search.sampling == "hard"
        held_out = self.held_order.indices(number)
        if not rate:
            self.supernet.use_mixture(temperature, hard)
            loss = self._loss(self.held_out, held_out, problem.judging_bits)
            return loss.detach(), torch.autograd.grad(loss + term, self.architecture)
        seed, train = int(torch.randint(2**62, ())), self.train_order.indices(number)

        def relaxed(data: TeacherOutputs, indices: np.ndarray, terms: DistillationSettings) -> Tensor:
            torch.manual_seed(seed)  # the same sample of bits in all four losses of an unrolled step
            self.supernet.use_mixture(temperature, hard)
            return self._loss(data, indices, terms)

        loss, grads = unrolled_gradient(
            lambda: relaxed(self.train, train, problem.distillation),
            lambda: relaxed(self.held_out, held_out, problem.judging_bits),
            self.supernet.weight_parameters(),
            self.architecture,
            rate,
        )
        return loss, [a + b for a, b in zip(grads, torch.autograd.grad(term, self.architecture), strict=True)]

    def _loss(self, data: TeacherOutputs, indices: np.ndarray, terms: DistillationSettings) -> Tensor:
        context = self.problem.context
        batch = data.data.collate(indices, context.device)
        with context.autocast():
            return distillation_loss(self.supernet, batch, data.batch(indices), terms)
