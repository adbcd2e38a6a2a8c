"""The protocol of a strategy: a problem in, an allocation out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable, SizeBudget
from autoquant.core.settings import DistillationSettings, SearchSettings
from autoquant.strategies.sensitivity import Sensitivity
from autoquant.supernet.build import Supernet
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.loop import Context

ARRAYS = ("values", "removal", "probability")  # of a SearchResult


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Everything a strategy may look at. The evaluation data is not here.

    `sensitivity`: Fisher scores of every choice of the table and every removal;
    `make_supernet` builds a fresh supernet from the teacher's weights; `train` and `held_out` give the two parts of the training
    file with the teacher's outputs, `whole` both together; they are computed when first asked for.
    """

    table: ChoiceTable
    budget: SizeBudget
    sensitivity: Sensitivity
    make_supernet: Callable[[], Supernet]
    train: Callable[[], TeacherOutputs]
    held_out: Callable[[], TeacherOutputs]
    whole: Callable[[], TeacherOutputs]
    search: SearchSettings
    distillation: DistillationSettings
    context: Context
    stage: str
    """Names the search's checkpoint and log lines."""
    found: Callable[[str], SearchResult]
    """Another strategy's result under the same budget, run now or read from its finished stage."""
    measured: Callable[[Problem], Sensitivity]
    """`sensitivity` with every matrix tried at every width (`strategies.probe`), run now as this problem's stage."""
    recovered: Callable[[Problem, SearchResult, str], float]
    """How far a result's predictions on the held-out part are from the teacher's, nats a text, after `search.race_steps` of
    recovery on the training part, as the stage of that name."""

    @property
    def judging_bits(self) -> DistillationSettings:
        """The loss by which bits are judged on held-out texts: the weights' own, with another weight of the hidden states."""
        return dataclasses.replace(self.distillation, hidden=self.search.architecture_hidden)


@dataclass(frozen=True, eq=False)
class Start:
    """Where a recovery can go on from: weights under the source model's names, and scales of every width by matrix."""

    weights: dict[str, Tensor]
    scales: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """An allocation within the budget, and why.

    `values` [N, K] and `removal` [U] are what was maximised (None where nothing was); `probability` that of the chosen width of
    every sub-group of the allocation, for strategies that learn one; `searched` for recoveries that continue from the search;
    `derived_bytes` what the most probable choices weigh before anything makes them fit: how well the size term worked.
    """

    allocation: BitAllocation
    values: np.ndarray | None = None
    removal: np.ndarray | None = None
    probability: np.ndarray | None = None
    searched: Start | None = None
    derived_bytes: int | None = None

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values, as a run directory keeps them."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        tensors = {name: None if array is None else torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
        searched = None if self.searched is None else vars(self.searched)
        plain = {"searched": searched, "derived_bytes": self.derived_bytes}
        return {"allocation": json.dumps(self.allocation.to_json()), **plain, **tensors}

    @classmethod
    def from_state(cls, saved: Mapping[str, Any]) -> SearchResult:
        """What `to_state` gave."""
        arrays = {name: None if saved[name] is None else saved[name].numpy() for name in ARRAYS}
        searched = None if saved["searched"] is None else Start(**saved["searched"])
        allocation = BitAllocation.from_json(json.loads(saved["allocation"]))
        return cls(allocation, searched=searched, derived_bytes=saved["derived_bytes"], **arrays)


class SearchStrategy(Protocol):
    """Frozen, without state of its own: what a search keeps between steps lives in the run's checkpoint."""

    def search(self, problem: Problem) -> SearchResult:
        """Find an allocation within `problem.budget`."""
        ...
