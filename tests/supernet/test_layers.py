"""What layers make of a mixed weight and their input."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import Midrise
from autoquant.quantizers.activation import fake_quantize_dynamic
from autoquant.supernet.layers import MixedPrecisionEmbedding, MixedPrecisionLinear
from autoquant.supernet.mixing import KERNELS
from autoquant.supernet.scaled import ScaledWeight

WIDTHS = (1, 2, 8)


@pytest.fixture
def mixed() -> ScaledWeight:
    """Ten rows in three sub-groups."""
    partition = Partition(Matrix("m.weight", 10, 6, "word_embedding"), (0, *WIDTHS), (3, 3, 4))
    scale = 0.1 + torch.rand(10, len(WIDTHS))
    return ScaledWeight(nn.Parameter(torch.randn(10, 6)), scale.log(), partition, WIDTHS, Midrise(), per_row=True)


def test_an_embedding_mixes_only_the_rows_of_the_batch(mixed: ScaledWeight, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_rows, forward = [], KERNELS.forward
    layer = MixedPrecisionEmbedding(nn.Embedding(10, 6), mixed)
    share, ids = torch.rand(3, 3, requires_grad=True), torch.tensor([[4, 2, 4], [9, 9, 2]])
    leaves = [mixed.weight, mixed.log_scale, share]
    grad = torch.randn(2, 3, 6)

    def spy(*arguments: Tensor) -> Tensor:
        mixed_rows.append(len(arguments[0]))
        return forward(*arguments)

    monkeypatch.setattr(KERNELS, "forward", spy)
    results = []
    for run in (lambda: layer(ids), lambda: functional.embedding(ids, mixed())):
        mixed.use_mixture(share)
        output = run()
        results.append([output, *torch.autograd.grad((output * grad).sum(), leaves)])
    assert mixed_rows == [3, 10]
    for ours, full in zip(*results, strict=True):
        torch.testing.assert_close(ours, full)


@pytest.mark.parametrize("activation_bits", [8, 32])
def test_a_linear_layer_quantises_its_input_only_if_told(mixed: ScaledWeight, activation_bits: int) -> None:
    x, source = torch.randn(4, 6), nn.Linear(6, 10)
    layer = MixedPrecisionLinear(source, mixed, activation_bits)
    mixed.use_choice(torch.tensor([2, 0, 1]), torch.ones(3))
    seen = fake_quantize_dynamic(x) if activation_bits == 8 else x
    torch.testing.assert_close(layer(x), functional.linear(seen, mixed(), source.bias))


def test_an_input_stays_as_it_is_as_often_as_told(mixed: ScaledWeight) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(2000, 6), MixedPrecisionLinear(nn.Linear(6, 10), mixed, 8)
    layer.drop = 0.9
    assert (layer._quantised(x) == x).float().mean().item() == pytest.approx(0.9, abs=0.02)
