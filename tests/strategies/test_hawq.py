"""Omega by hand: average trace times squared error, per sub-group."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.allocate import allocate
from autoquant.core.cost import ByteModel, choice_table
from autoquant.core.subgroup import Matrix, Partition
from autoquant.strategies import STRATEGIES, Problem, hawq
from autoquant.strategies.sensitivity import quantisation_errors, squared_errors

MakeProblem = Callable[..., Problem]


def test_sums_by_sub_group_by_hand() -> None:
    runs = Partition(Matrix("a.weight", 3, 2, "ffn_in"), (2, 4), (2, 1))
    buckets = Partition(Matrix("b.weight", 3, 1, "word_embedding"), (2, 4), (1, 2), np.array([1, 0, 1], dtype=np.uint8))
    table = choice_table(ByteModel((runs, buckets), {}, "row", "{}"))
    matrices = [torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0], [10.0], [100.0]])]
    assert hawq.by_subgroup(table, matrices).tolist() == [10.0, 11.0, 10.0, 101.0]


def test_squared_errors_are_those_of_the_quantised_rows(make_problem: MakeProblem) -> None:
    problem = make_problem()
    supernet, table = problem.make_supernet(), problem.table
    found = squared_errors(supernet)
    assert found.shape == table.bytes.shape
    for (name, mixed), partition in zip(supernet.mixed_weights(), table.partitions, strict=True):
        errors = quantisation_errors(mixed.weight.detach(), mixed.scales(), table.widths, mixed.quantizer)
        for group in range(partition.groups):
            rows = torch.from_numpy(partition.group_of_row == group)
            expected = errors[:, rows].square().sum(dim=(1, 2)).numpy()
            np.testing.assert_allclose(found[table.slices()[name]][group], expected, rtol=1e-4)


def test_the_knapsack_minimises_trace_times_error(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    traces = np.random.default_rng(0).lognormal(0.0, 2.0, len(problem.table))
    traces[0] = -1.0
    monkeypatch.setattr(hawq, "average_traces", lambda _: traces)
    result = STRATEGIES["hawq"].search(problem)
    omega = np.maximum(traces, 1e-6 * traces.max())[:, None] * squared_errors(problem.make_supernet())
    np.testing.assert_allclose(result.values, -omega)
    assert result.allocation == problem.table.to_allocation(allocate(-omega, problem.table, problem.budget.bytes))


def test_traces_are_those_of_the_hessian(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a diagonal Hessian one random vector is enough: v h v = h, whatever the signs."""
    problem = make_problem(trace_vectors=2)

    def diagonal(losses: Any, parameters: Any, vectors: Any) -> Any:
        return 0.0, [3.0 * v for v in vectors]

    monkeypatch.setattr(hawq, "hessian_product", diagonal)
    np.testing.assert_allclose(hawq.average_traces(problem), 3.0)


def test_curvature_is_found_where_the_loss_depends_on_the_weights(make_problem: MakeProblem) -> None:
    problem = make_problem(trace_vectors=30)
    traces = hawq.average_traces(problem)
    assert np.isfinite(traces).all()
    log = [line["trace"] for line in problem.context.run.read_log() if line["stage"] == problem.stage]
    assert len(log) == 30
    assert log[-1] == pytest.approx((traces * problem.table.parameters).sum())
