"""Omega by hand: average trace times squared error, per sub-group."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.allocate import allocate
from autoquant.strategies import STRATEGIES, Problem, hawq
from autoquant.strategies.sensitivity import quantisation_errors, squared_errors

MakeProblem = Callable[..., Problem]


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


def test_sub_groups_share_the_average_trace_of_their_matrix(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of eight texts says 1, the second 3."""
    problem, calls = make_problem(trace_vectors=2), itertools.count()

    def traces(logits: Any, parameters: Any) -> Any:
        factor = 1.0 if next(calls) < 8 else 3.0
        return torch.tensor([factor * number * p.numel() for number, p in enumerate(parameters)], dtype=torch.float64)

    monkeypatch.setattr(hawq, "text_traces", traces)
    found, slices = hawq.average_traces(problem), problem.table.slices()
    assert next(calls) == 16
    for number, partition in enumerate(problem.table.partitions):
        np.testing.assert_allclose(found[slices[partition.matrix.name]], 2.0 * number)


def test_two_classes_have_their_trace_in_a_single_vector() -> None:
    """Logits W x: the Gauss-Newton matrix is F kron x x', its trace tr(F) |x|^2: 2 * 3/16 at a margin of ln 3, and 5."""
    x = torch.tensor([[1.0, 2.0]])
    weight = torch.tensor([[np.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float32, requires_grad=True)
    assert hawq.text_traces(x @ weight.T, [weight]).item() == pytest.approx(2 * 3 / 16 * 5, rel=1e-5)


def test_three_classes_have_it_on_average() -> None:
    """Against the Gauss-Newton matrix written out."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 2, requires_grad=True), torch.randn(1, 2)
    p = torch.softmax((x @ weight.T)[0], 0).detach()
    expected = (torch.diag(p) - torch.outer(p, p)).trace() * x.square().sum()
    drawn = [hawq.text_traces(x @ weight.T, [weight]).item() for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(expected.item(), rel=0.1)


def test_curvature_is_found_where_the_loss_depends_on_the_weights(make_problem: MakeProblem) -> None:
    problem = make_problem(trace_vectors=30)
    traces = hawq.average_traces(problem)
    assert np.isfinite(traces).all()
    log = [line["trace"] for line in problem.context.run.read_log() if line["stage"] == problem.stage]
    assert len(log) == 30
    assert log[-1] == pytest.approx((traces * problem.table.parameters).sum())
