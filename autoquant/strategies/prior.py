"""Where does a search start, and what is that worth beside what it learned? The sensitivities as logits, and logits as values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import price, priced, unit_contents
from autoquant.strategies.sensitivity import Sensitivity
from autoquant.supernet.build import Supernet, unit_parameters

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
