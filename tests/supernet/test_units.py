"""Gates of whole units in a supernet: what they weigh, what they silence, and that they learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoquant.core.derive import weigh
from autoquant.supernet.build import unit_parameters


@pytest.fixture
def bench(make_bench: Callable[..., Any]) -> Any:
    """Four heads of 8 rows and four FFN blocks of 16 neurons in each of two layers."""
    return make_bench(space_name="structured")


def decide(supernet: Any, gone: np.ndarray) -> None:
    with torch.no_grad():
        supernet.unit_logits.copy_(torch.from_numpy(np.where(gone, -60.0, 60.0)))


def draw_gone(bench: Any, seed: int) -> np.ndarray:
    units = bench.table.removable.structure.units
    return np.array([unit.index > 0 for unit in units]) & (np.random.default_rng(seed).random(len(units)) < 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_expected_bytes_of_certain_removals_are_what_they_weigh(bench: Any, seed: int) -> None:
    supernet, gone = bench.supernet(), draw_gone(bench, seed)
    choice = bench.table.to_choice(bench.allocation(seed))
    with torch.no_grad():
        supernet.gate_logits.copy_(torch.from_numpy(np.where(choice == 0, -60.0, 60.0)))
        width = np.maximum(choice - 1, 0)
        supernet.width_logits.copy_(120.0 * nn.functional.one_hot(torch.from_numpy(width), len(supernet.widths)).float())
    decide(supernet, gone)
    assert supernet.expected_bytes().item() == pytest.approx(weigh(bench.table, choice, gone), abs=0.5)
    likely, out = supernet.most_probable()
    assert (likely == choice).all()
    assert (out == gone).all()


def test_a_closed_gate_silences_its_rows_and_no_others(bench: Any) -> None:
    supernet, gone = bench.supernet(), draw_gone(bench, 0)
    nn.init.constant_(supernet.gate_logits, 60.0)
    decide(supernet, gone)
    supernet.use_sample()
    units = [unit for unit, out in zip(bench.table.removable.structure.units, gone, strict=True) if out]
    for partition, (_, mixed) in zip(bench.table.partitions, supernet.mixed_weights(), strict=True):
        silent = np.zeros(partition.matrix.rows, dtype=bool)
        for unit in units:
            if unit.is_gated_by(partition.matrix):
                silent[unit.start : unit.stop] = True
        found = (mixed().detach() == 0).all(dim=1).numpy()
        trained = mixed.weight.any(dim=1).numpy()  # padding's row is zeros, which some widths keep
        assert (found == silent)[trained].all(), partition.matrix.name
    assert units
    assert (supernet.sampled()[1] == gone).all()


def test_units_learn_from_the_loss_and_from_the_bytes(bench: Any) -> None:
    supernet = bench.supernet()
    assert supernet.unit_logits in set(supernet.architecture_parameters())
    supernet.use_mixture(1.0, hard=False)
    (grad,) = torch.autograd.grad(supernet(**bench.batch()).logits.square().sum(), supernet.unit_logits)
    assert bool((grad != 0).all())
    (grad,) = torch.autograd.grad(supernet.expected_bytes(), supernet.unit_logits)
    assert bool((grad > 0).all())


def test_removal_is_worth_its_log_odds_by_parameters(bench: Any) -> None:
    supernet = bench.supernet()
    nn.init.normal_(supernet.unit_logits)
    sizes = unit_parameters(bench.table)
    kinds = [unit.kind for unit in bench.table.removable.structure.units]
    # a head: 8 rows of three matrices of 32 columns, 8 columns of 32 rows; a block: 16 rows of 32 columns and back
    assert set(zip(kinds, sizes.tolist(), strict=True)) == {("head", 4 * 8 * 32), ("ffn", 2 * 16 * 32)}
    np.testing.assert_allclose(supernet.removal_values(), -supernet.unit_logits.detach().numpy() * sizes, rtol=1e-6)


def test_a_space_without_units_has_none(make_bench: Callable[..., Any]) -> None:
    supernet = make_bench().supernet()
    assert supernet.unit_logits is None
    assert supernet.removal_values() is None
    assert len(supernet.architecture_parameters()) == 2
