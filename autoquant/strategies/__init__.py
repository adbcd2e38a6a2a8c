"""Which bits? One file a strategy, one protocol; the table drives the contract tests."""

from autoquant.strategies.base import Problem, SearchResult, SearchStrategy, Start
from autoquant.strategies.dnas import Dnas
from autoquant.strategies.fisher import Fisher
from autoquant.strategies.random import Random
from autoquant.strategies.reversed import Reversed
from autoquant.strategies.uniform import Uniform

STRATEGIES: dict[str, SearchStrategy] = {
    "dnas": Dnas(),
    "uniform": Uniform(),
    "random": Random(),
    "reversed": Reversed(),
    "fisher": Fisher(),
}

# Their search takes long, and what it learned (`SearchResult.values`) holds under every budget: only the knapsack is another.
REUSABLE: frozenset[str] = frozenset({"dnas", "reversed"})

__all__ = ["REUSABLE", "STRATEGIES", "Problem", "SearchResult", "SearchStrategy", "Start"]
