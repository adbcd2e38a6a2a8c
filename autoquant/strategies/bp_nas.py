"""BP-NAS (Yu et al., ECCV 2020): the differentiable search under a soft barrier, its distributions driven to one-hot.

Its two terms are `supernet.size_terms.SoftBarrier`; loop, supernet and mixing are those of `dnas`. As in the paper there is no
sensitivity prior, and the most probable choices are the result: the barrier has to bring them inside by itself, and only what
it missed (`derived_bytes`) is repaired.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.dnas import Dnas


@dataclass(frozen=True)
class BpNas:
    """`dnas` with what BP-NAS fixes; `barrier_weight`, `size_tolerance` and `one_hot_weight` are its numbers."""

    def search(self, problem: Problem) -> SearchResult:
        settings = dataclasses.replace(problem.search, size_term="soft_barrier", prior_strength=0.0, derive="argmax")
        return Dnas().search(dataclasses.replace(problem, search=settings))
