"""Which blocks Quant-Noise quantises, and that the clean ones' gradient is exact."""

import pytest
import torch
from torch import nn

from autoquant.core.errors import SpaceError
from autoquant.core.settings import RecoverySettings
from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer
from autoquant.refine.quant_noise import BLOCK, quantised_in_part
from autoquant.supernet.coded import CodedWeight


def test_whole_blocks_are_quantised_or_not() -> None:
    torch.manual_seed(0)
    part = quantised_in_part(torch.ones(200, 20), torch.zeros(200, 20), share=0.3)  # two blocks and a half a row
    blocks = [part[:, start : start + BLOCK] for start in (0, 8, 16)]
    assert all(torch.equal(block, block[:, :1].expand_as(block)) for block in blocks)
    assert part.mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("name", "length"), [("pq", 4), ("gobo", None)])
def test_a_block_is_what_a_code_stands_for(name: str, length: int | None) -> None:
    partition = Partition(Matrix("m", 32, 32, "query", 0), (2,), (32,))
    weight, quantizer, group = nn.Parameter(torch.randn(32, 32)), QUANTIZERS[name], torch.zeros(32, dtype=torch.long)
    assert isinstance(quantizer, CodebookQuantizer)
    mixed = CodedWeight(weight, quantizer.measure(weight.detach(), (2,), group, (2,)), partition, (2,), quantizer)
    mixed.use_choice(torch.tensor([0]), torch.ones(1))
    assert mixed.vector_length() == length


def test_a_share_of_one_quantises_everything() -> None:
    quantised, latent = torch.randn(3, 10), torch.randn(3, 10)
    assert torch.equal(quantised_in_part(quantised, latent, share=1.0), quantised)


def test_clean_blocks_get_the_exact_gradient() -> None:
    torch.manual_seed(1)
    latent = torch.randn(4, 16, requires_grad=True)
    part = quantised_in_part(torch.zeros(4, 16), latent, share=0.5)
    part.sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, (part != 0).float())


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_a_share_is_a_share(noise: float) -> None:
    with pytest.raises(SpaceError, match=rf"noise {noise} must be above 0"):
        RecoverySettings(noise=noise)
