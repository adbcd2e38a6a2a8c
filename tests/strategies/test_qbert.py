"""Sensitivity by hand, and layers that get their bits in its order."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from autoquant.core.allocate import allocate
from autoquant.strategies import STRATEGIES, Problem, qbert

MakeProblem = Callable[..., Problem]


def test_sensitivity_by_hand() -> None:
    """lambda 1 and 3: mean 2, deviation 1; -4 twice: mean -4, deviation 0; -2 and 2: mean 0, deviation 2."""
    assert qbert.sensitivity(np.array([[1.0, -4.0, -2.0], [3.0, -4.0, 2.0]])).tolist() == [3.0, 4.0, 2.0]


def test_layers_are_blocks_and_what_has_no_choice_is_none(make_problem: MakeProblem) -> None:
    blocks = qbert.find_blocks(make_problem().table)
    assert [name for name in blocks if name.startswith("layer")] == ["layer 0", "layer 1"]
    assert all(len(blocks[f"layer {layer}"]) == 6 for layer in (0, 1))
    assert "bert.embeddings.word_embeddings" in blocks
    assert "classifier" not in blocks


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_bits_go_to_whole_layers_in_the_order_of_their_sensitivity(
    share: float, seed: int, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(share)
    table, blocks = problem.table, qbert.find_blocks(problem.table)
    eigenvalues = np.random.default_rng(seed).normal(size=(10, len(blocks)))
    monkeypatch.setattr(qbert, "measure", lambda *_: eigenvalues)
    choice = table.to_choice(STRATEGIES["qbert"].search(problem).allocation)
    free = table.allowed.all(axis=1)
    used = np.unique(choice[free])
    assert len(used) <= 3  # two, and what is left over within the last block may add a third
    order = np.argsort(-qbert.sensitivity(eigenvalues))
    names = [list(blocks.values())[index] for index in order]
    means = [
        np.average(choice[rows], weights=table.parameters[rows])
        for block in names
        if (rows := np.concatenate([np.arange(len(table))[table.slices()[name]] for name in block])) is not None
        and free[rows].all()
    ]
    assert all(a >= b - 0.05 for a, b in pairwise(means))
    split = [mean for mean in means if 0.05 < mean % 1 < 0.95]
    assert len(split) <= 2  # where the budget ends, and in the next one what still fits beside it


def test_the_least_bits_everywhere_come_before_the_next_anywhere(make_problem: MakeProblem) -> None:
    """A bit less for the most sensitive layer is worth more than a bit more for anybody."""
    table = make_problem().table
    values = qbert.ranked_values(table, list(qbert.find_blocks(table).values())) / table.parameters[:, None]
    per_bit = np.diff(values, axis=1) / np.diff(table.widths)
    free = table.allowed.all(axis=1)
    assert (per_bit[free, :-1].min(axis=0) > per_bit[free, 1:].max(axis=0)).all()
    assert (allocate(values * table.parameters[:, None], table, table.largest()) == table.allowed.shape[1] - 1).all()


def test_every_block_is_measured_on_every_slice(make_problem: MakeProblem) -> None:
    problem = make_problem(hessian_slices=3)
    blocks = qbert.find_blocks(problem.table)
    found = qbert.measure(problem, blocks)
    assert found.shape == (3, len(blocks))
    assert len(np.unique(found)) == found.size
    log = [line for line in problem.context.run.read_log() if line["stage"] == problem.stage]
    assert [line["eigenvalue"] for line in log] == found.ravel().tolist()
    assert [line["block"] for line in log[: len(blocks)]] == list(range(len(blocks)))
