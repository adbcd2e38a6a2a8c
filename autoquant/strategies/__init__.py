"""Which bits? One file a strategy, one protocol; the table drives the contract tests."""

from collections.abc import Sequence

from autoquant.core.errors import SpaceError
from autoquant.strategies.base import Problem, SearchResult, SearchStrategy, Start
from autoquant.strategies.bp_nas import BpNas
from autoquant.strategies.bsq import Bsq
from autoquant.strategies.dnas import Dnas
from autoquant.strategies.fisher import Fisher
from autoquant.strategies.hawq import Hawq
from autoquant.strategies.lifted import Lifted
from autoquant.strategies.measured import Measured
from autoquant.strategies.optuna import Optuna
from autoquant.strategies.qbert import Qbert
from autoquant.strategies.race import CANDIDATES, Race
from autoquant.strategies.random import Random
from autoquant.strategies.reversed import Reversed
from autoquant.strategies.uniform import Uniform

STRATEGIES: dict[str, SearchStrategy] = {
    "dnas": Dnas(),
    "uniform": Uniform(),
    "random": Random(),
    "reversed": Reversed(),
    "fisher": Fisher(),
    "lifted": Lifted(),
    "measured": Measured(),
    "qbert": Qbert(),
    "hawq": Hawq(),
    "bp-nas": BpNas(),
    "bsq": Bsq(),
    "optuna": Optuna(),
    "race": Race(),
}

# Their search takes long, and what it learned (`SearchResult.values`) holds under every budget: only the knapsack is another.
REUSABLE: frozenset[str] = frozenset({"dnas", "reversed", "measured", "qbert", "hawq"})

# They begin with the search of others (`Problem.found`), whose stages are theirs too.
LEARNS_FROM: dict[str, tuple[str, ...]] = {"reversed": ("dnas",), "race": CANDIDATES}

__all__ = [
    "LEARNS_FROM",
    "REUSABLE",
    "STRATEGIES",
    "Problem",
    "SearchResult",
    "SearchStrategy",
    "Start",
    "check_strategies",
    "search_stages",
    "stages_of",
]


def search_stages(strategy: str) -> list[str]:
    """Names of the stages that a strategy's search takes: its own, and those of the strategies that it begins with."""
    return [f"search-{name}" for name in (strategy, *LEARNS_FROM.get(strategy, ()))]


def stages_of(strategy: str) -> list[str]:
    """Those, and of what becomes of its allocation: all whose seconds are the strategy's own."""
    return [*search_stages(strategy), f"recover-{strategy}", f"pack-{strategy}"]


def check_strategies(names: Sequence[str]) -> None:
    """Raise SpaceError for a name that is no strategy."""
    for name in names:
        if name not in STRATEGIES:
            raise SpaceError(f"Unknown strategy '{name}'; known are {', '.join(STRATEGIES)}.")
