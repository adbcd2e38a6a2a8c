"""The search: bilevel training of weights and bit-width logits (AQ-BERT, Algorithm 1), then the knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import Derived, derive, fix_units, weigh
from autoquant.core.repair import repair
from autoquant.core.settings import DistillationSettings
from autoquant.strategies.base import Problem, SearchResult, Start
from autoquant.strategies.prior import learned_values, prior_values, sensitivity_prior, start_from, trusting
from autoquant.strategies.unrolled import unrolled_gradient
from autoquant.supernet.build import Supernet
from autoquant.supernet.controller import Controller
from autoquant.supernet.size_terms import SIZE_TERMS
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import TeacherOutputs, distillation_loss
from autoquant.training.loop import Stateful, run_steps


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
