"""The mixed weight of codebook quantizers: what it computes with, what learns, and that its file holds just that."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Matrix, Partition, even_sizes
from autoquant.pack.checkpoint import write_packed
from autoquant.pack.model import load_packed
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer
from autoquant.strategies.sensitivity import quantisation_errors
from autoquant.supernet.coded import CodedWeight
from autoquant.training.evaluate import predict_logits

WIDTHS, SIZES = (2, 3), even_sizes(60, 3)
CODEBOOKS = [name for name, quantizer in QUANTIZERS.items() if isinstance(quantizer, CodebookQuantizer)]
every_quantizer = pytest.mark.parametrize("name", CODEBOOKS)


def coded(name: str) -> CodedWeight:
    """Sixty rows in three sub-groups of 2,000 weights."""
    weight = nn.Parameter(torch.randn(60, 100, generator=torch.Generator().manual_seed(0)))
    partition = Partition(Matrix("m", 60, 100, "query", 0), (0, *WIDTHS), SIZES)
    quantizer: Any = QUANTIZERS[name]
    codebooks = quantizer.measure(weight.detach(), WIDTHS, torch.from_numpy(partition.group_of_row), WIDTHS)
    return CodedWeight(weight, codebooks, partition, WIDTHS, quantizer)


def quantised(mixed: CodedWeight, width: int) -> Tensor:
    k, group = WIDTHS.index(width), mixed.group_of_row
    codebook = mixed.quantizer.split(mixed.scales(), WIDTHS)[k]
    return torch.where(
        mixed.is_outlier, mixed.weight, mixed.quantizer.fake_quantize(mixed.weight, codebook, group, width)
    ).detach()


@every_quantizer
def test_a_choice_quantises_every_sub_group_at_its_width(name: str) -> None:
    mixed = coded(name)
    mixed.use_choice(torch.tensor([0, 1, 0]), torch.tensor([1.0, 1.0, 0.0]))
    expected = torch.cat([quantised(mixed, 2)[:20], quantised(mixed, 3)[20:40], torch.zeros(20, 100)])
    torch.testing.assert_close(mixed().detach(), expected, atol=1e-6, rtol=1e-5)
    rows = torch.tensor([59, 0, 30, 30])
    torch.testing.assert_close(mixed(rows).detach(), expected[rows], atol=1e-6, rtol=1e-5)


@every_quantizer
def test_a_mixture_is_the_sum_of_its_shares(name: str) -> None:
    mixed, share = coded(name), torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.2, 0.3]], requires_grad=True)
    mixed.use_mixture(share)
    per_row = share.detach().repeat_interleave(20, dim=0)
    expected = per_row[:, :1] * quantised(mixed, 2) + per_row[:, 1:] * quantised(mixed, 3)
    torch.testing.assert_close(mixed().detach(), expected, atol=1e-6, rtol=1e-5)
    grad = torch.randn(60, 100, generator=torch.Generator().manual_seed(1))
    mixed().backward(grad)
    assert share.grad is not None
    # dL/dp is the inner product of the gradient with the quantised weight
    torch.testing.assert_close(share.grad[1, 1], (grad * quantised(mixed, 3))[20:40].sum(), rtol=1e-4, atol=1e-3)


@every_quantizer
def test_weights_learn_straight_through_and_centroids_from_their_weights(name: str) -> None:
    mixed = coded(name)
    mixed.use_choice(torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0, 1.0]))
    grad = torch.ones(60, 100)
    mixed().backward(grad)
    kept = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(20)[:, None].expand(60, 100)
    assert mixed.weight.grad is not None
    assert mixed.codebooks.grad is not None
    assert torch.equal(mixed.weight.grad, kept)
    by_group = mixed.codebooks.grad.sum(dim=1) / mixed.spread[:, 0]  # of ones: how many numbers follow a centroid
    outliers = mixed.is_outlier.float().view(3, -1).sum(1)
    torch.testing.assert_close(by_group, torch.tensor([2000.0, 0.0, 2000.0]) - outliers * torch.tensor([1.0, 0.0, 1.0]))
    assert outliers.tolist() == [mixed.quantizer.storage.outliers(2000)] * 3


@every_quantizer
def test_what_is_stored_is_a_centroid_or_an_outlier_in_float16(name: str) -> None:
    mixed, column = coded(name), torch.tensor([0, 1, 1])
    with torch.no_grad():
        mixed.codebooks.mul_(1.01)
        mixed.weight.add_(0.01 * torch.randn(60, 100, generator=torch.Generator().manual_seed(2)))
    mixed.use_choice(column, torch.ones(3))
    stored, codebook = mixed.stored_weight(), mixed.chosen_scale(column)
    assert torch.equal(stored, stored.half().float())
    assert torch.equal(codebook, codebook.half().float())
    assert (stored - mixed().detach()).abs().mean() < 1e-3  # one weight or other falls to the other side
    assert torch.equal(stored[mixed.is_outlier], mixed.weight.detach()[mixed.is_outlier].half().float())


@every_quantizer
def test_codebooks_are_measured_again_of_weights_that_moved(name: str) -> None:
    mixed = coded(name)
    mixed.use_choice(torch.tensor([0, 1, 0]), torch.ones(3))
    with torch.no_grad():
        mixed.weight.mul_(3).add_(1)

    def error() -> float:
        return (mixed() - mixed.weight).square().sum().item()

    assert mixed.chosen_widths() == {2, 3}
    before = error()
    mixed.measure_again()
    assert error() < 0.5 * before
    fresh = mixed.quantizer.measure(mixed.weight.detach(), WIDTHS, mixed.group_of_row, WIDTHS)
    torch.testing.assert_close(mixed.scales(), fresh, rtol=1e-3, atol=1e-4)


def test_a_pruned_sub_group_has_no_width() -> None:
    mixed = coded("pq")
    mixed.use_choice(torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 1.0]))
    assert mixed.chosen_widths() == {3}
    assert mixed.vector_length() == 2
    mixed.use_choice(torch.tensor([0, 0, 0]), torch.zeros(3))
    before = mixed.scales()
    mixed.measure_again()
    assert mixed.vector_length() is None
    assert torch.equal(mixed.scales(), before)


def test_codebooks_are_learned_in_units_of_what_is_used_of_them() -> None:
    weight, group = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.int64)
    partition, gobo = Partition(Matrix("m", 4, 50, "query", 0), (2,), (4,)), QUANTIZERS["gobo"]
    assert isinstance(gobo, CodebookQuantizer)
    measured = gobo.measure(weight, (2, 8), group, allowed=(2,))
    mixed = CodedWeight(nn.Parameter(weight), measured, partition, (2, 8), gobo)
    assert mixed.spread.item() == pytest.approx(measured[0, :4].square().mean().sqrt().item())
    torch.testing.assert_close(mixed.scales(), measured)


@every_quantizer
def test_errors_of_every_width(name: str) -> None:
    mixed = coded(name)
    weight, group = mixed.weight.detach(), mixed.group_of_row
    errors = quantisation_errors(weight, mixed.scales(), (0, *WIDTHS), mixed.quantizer, group)
    assert torch.equal(errors[0], weight)
    size = errors.square().sum(dim=(1, 2))
    assert bool((size[0] > 3 * size[1:]).all())
    assert bool((errors[1:, mixed.is_outlier].abs() < 2e-3).all())


@every_quantizer
@pytest.mark.parametrize("activation_bits", [32, 8])
def test_the_reloaded_file_is_the_simulated_model(
    name: str, activation_bits: int, make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = make_bench("subgroup", activation_bits, name, space_name="codebook")
    supernet, allocation = bench.supernet(), bench.allocation()
    supernet.freeze(allocation)
    supernet.eval()
    settings = bench.blueprint.packed_settings()
    config = copy.deepcopy(bench.model.config)
    config.quantization_config = {"quant_method": "autoquant", **settings}
    config.save_pretrained(tmp_path)
    model, quantizer = bench.blueprint.byte_model, bench.blueprint.quantizer
    path = write_packed(tmp_path / "model.safetensors", *supernet.packed_state(), allocation, model, quantizer, settings)
    assert path.stat().st_size == model.exact_bytes(allocation)
    simulated, some = supernet.materialize(copy.deepcopy(bench.model)), bench.data.select(np.arange(64))
    for memory in ("unpacked", "packed"):
        reloaded = load_packed(tmp_path, memory)
        np.testing.assert_allclose(predict_logits(reloaded, some), predict_logits(simulated, some), atol=1e-6)
        for matrix in supernet.table.slices():
            module: Any = reloaded.get_submodule(matrix.removesuffix(".weight"))
            assert torch.equal(module.weight, simulated.get_parameter(matrix).data), matrix
    for matrix, mixed in supernet.mixed_weights():
        assert (mixed().detach() - simulated.get_parameter(matrix).data).abs().mean() < 1e-3


@every_quantizer
def test_expected_bytes_of_a_certain_choice_are_those_of_the_file(name: str, make_bench: Callable[..., Any]) -> None:
    bench = make_bench("subgroup", 8, name, space_name="codebook")
    supernet, allocation = bench.supernet(), bench.allocation(1)
    bits = torch.tensor([b for matrix in supernet.table.slices() for b in allocation.bits[matrix]])
    with torch.no_grad():
        supernet.width_logits.copy_(torch.where(bits[:, None] == torch.tensor(supernet.widths), 40.0, -40.0))
        supernet.gate_logits.copy_(torch.where(bits > 0, 40.0, -40.0))
    assert supernet.expected_bytes().item() == pytest.approx(bench.blueprint.byte_model.exact_bytes(allocation), abs=0.05)
