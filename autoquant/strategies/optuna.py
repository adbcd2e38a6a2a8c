"""Black-box search over one width per matrix: Optuna's TPE (Bergstra et al. 2011) or NSGA-II (Deb et al. 2002).

A trial's widths become an allocation by the repair that keeps every strategy inside its budget, guided by the Fisher scores;
its value is the loss of the unrecovered model on held-out training texts, as the architecture of `dnas` sees it. The first trial
is the Fisher knapsack at one width per matrix. As all trials have the same size, NSGA-II has one objective here.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler, TPESampler

from autoquant.core.allocate import allocate
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable
from autoquant.core.repair import repair
from autoquant.strategies.base import Problem, SearchResult
from autoquant.supernet.build import Supernet
from autoquant.training.distillation import TeacherOutputs, distillation_loss
from autoquant.training.loop import run_steps

POPULATION = 16
BATCH_SIZE = 64


SAMPLERS = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
}


@dataclass(frozen=True)
class Optuna:
    """The best of `search.trials` allocations that `search.sampler` asks for."""

    def search(self, problem: Problem) -> SearchResult:
        table, worth, settings = problem.table, -problem.sensitivity.choices, problem.search
        matrices = per_matrix(table)
        warm = allocate(np.add.reduceat(worth, _starts(table)), matrices, problem.budget.bytes)
        supernet, outputs = problem.make_supernet().eval(), _held_out(problem)
        study = Study(matrices)

        def allocation(columns: np.ndarray) -> BitAllocation:
            choice = repair(worth, table, np.repeat(columns, [p.groups for p in table.partitions]), problem.budget.bytes)
            return table.to_allocation(choice)

        def step(number: int) -> dict[str, float]:
            columns = study.ask(settings.sampler, warm)
            supernet.freeze(allocation(columns))
            loss = _loss(supernet, outputs, problem)
            study.tell(loss)
            return {"loss": loss, "best": study.best_loss}

        run_steps(problem.context, problem.stage, "Search", settings.trials, step, {"study": study})
        return SearchResult(allocation(study.best_columns))


def per_matrix(table: ChoiceTable) -> ChoiceTable:
    """The table of one width per matrix, a row each: for the solver, not for allocations."""
    starts = _starts(table)
    sizes, parameters = (np.add.reduceat(column, starts) for column in (table.bytes, table.parameters))
    return dataclasses.replace(table, bytes=sizes, parameters=parameters, allowed=table.allowed[starts], removable=None)


def _starts(table: ChoiceTable) -> np.ndarray:
    """The first row of every matrix."""
    return np.array([rows.start for rows in table.slices().values()])


def _held_out(problem: Problem) -> TeacherOutputs:
    """At most `trial_samples` of the held-out texts, the same for every trial."""
    outputs = problem.held_out()
    order = np.random.default_rng((problem.context.seed, 6)).permutation(len(outputs.data))
    return outputs.select(np.sort(order[: problem.search.trial_samples]))


@torch.no_grad()
def _loss(supernet: Supernet, outputs: TeacherOutputs, problem: Problem) -> float:
    """Mean loss a text of the frozen supernet."""
    context, total = problem.context, 0.0
    for indices in outputs.data.by_length(BATCH_SIZE):
        batch = outputs.data.collate(indices, context.device)
        with context.autocast():
            loss = distillation_loss(supernet, batch, outputs.batch(indices), problem.judging_bits)
        total += loss.item() * len(indices)
    return total / len(outputs.data)


class Study:
    """Optuna's study of one width per matrix, as columns [M] of the table; its state is its finished trials.

    Every trial gets a sampler of its own, seeded by torch: what it draws depends on the step and on the trials before it.
    """

    def __init__(self, matrices: ChoiceTable) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.columns = [np.flatnonzero(may) for may in matrices.allowed]
        names = [partition.matrix.name for partition in matrices.partitions]
        self.distributions = {n: IntDistribution(0, len(c) - 1) for n, c in zip(names, self.columns, strict=True)}
        self.study = optuna.create_study(direction="minimize")
        self.trial: optuna.Trial | None = None

    def ask(self, sampler: str, first: np.ndarray) -> np.ndarray:
        """Columns to try next; the very first time `first`."""
        if not self.study.trials:
            at = [int(np.searchsorted(c, chosen)) for c, chosen in zip(self.columns, first, strict=True)]
            self.study.enqueue_trial(dict(zip(self.distributions, at, strict=True)))
        self.study.sampler = SAMPLERS[sampler](int(torch.randint(2**31, ())))
        self.trial = self.study.ask(dict(self.distributions))
        return self._to_columns(self.trial.params)

    def tell(self, loss: float) -> None:
        """What came of it."""
        assert self.trial is not None
        self.study.tell(self.trial, loss)

    @property
    def best_loss(self) -> float:
        return float(self.study.best_value)

    @property
    def best_columns(self) -> np.ndarray:
        return self._to_columns(self.study.best_params)

    def _to_columns(self, parameters: Mapping[str, int]) -> np.ndarray:
        return np.array([c[parameters[name]] for name, c in zip(self.distributions, self.columns, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        done = [(dict(t.params), t.value, dict(t.system_attrs)) for t in self.study.get_trials(deepcopy=False)]
        return {"trials": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for parameters, loss, attributes in state["trials"]:
            trial = optuna.trial.create_trial(
                params=parameters, distributions=dict(self.distributions), value=loss, system_attrs=attributes
            )
            self.study.add_trial(trial)
