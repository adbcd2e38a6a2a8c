"""Which blocks Quant-Noise quantises, and that the clean ones' gradient is exact."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoquant.core.errors import SpaceError
from autoquant.core.settings import RecoverySettings
from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer
from autoquant.refine import quant_noise
from autoquant.refine.quant_noise import BLOCK, quantised_in_part
from autoquant.supernet.coded import CodedWeight
from autoquant.supernet.mixed import MixedWeight


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


def test_recovery_draws_blocks_of_whole_codes_and_then_measures_again(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, measured, blocks = bench.supernet(), [], set()

    def watching(quantised: Tensor, latent: Tensor, share: float, block: int = BLOCK) -> Tensor:
        blocks.add(block)
        return quantised_in_part(quantised, latent, share, block)

    monkeypatch.setattr(quant_noise, "quantised_in_part", watching)
    monkeypatch.setattr(MixedWeight, "vector_length", lambda _: 4)
    monkeypatch.setattr(MixedWeight, "measure_again", lambda self: measured.append(self))
    with bench.open_context() as context:
        bench.refine("quant-noise", supernet, context, steps=2)
    assert blocks == {4}
    assert measured == [mixed for _, mixed in supernet.mixed_weights()]


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
