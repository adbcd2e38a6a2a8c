import pytest
import torch

from autoquant.core.storage import FLOAT16_SMALLEST
from autoquant.quantizers import QUANTIZERS, UniformQuantizer
from autoquant.quantizers.clipping import GAUSSIAN_STEP, search_scale

SYMMETRIC = {name: QUANTIZERS[name] for name in ("midrise", "lsq")}  # those whose scale is searched, or could be
every_quantizer = pytest.mark.parametrize("quantizer", SYMMETRIC.values(), ids=SYMMETRIC)
every_width = pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])


def heavy_tailed(rows: int = 16, columns: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with outliers, and inputs whose features differ in size and correlate."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 1 + 4 * (torch.rand(rows, columns, generator=generator) < 0.02)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    return weight * 0.05, torch.randn(2000, columns, generator=generator) @ mixing


def output_error(
    quantizer: UniformQuantizer, weight: torch.Tensor, scale: torch.Tensor, bits: int, x: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of every output, [rows]."""
    return (x @ (quantizer.fake_quantize(weight, scale, bits) - weight).T).square().mean(dim=0)


@every_quantizer
@every_width
def test_beats_scaling_to_the_largest_weight(quantizer: UniformQuantizer, bits: int) -> None:
    weight, x = heavy_tailed()
    naive = (weight.abs().amax(dim=1) / quantizer.grid(bits).limit).half().float()
    found = search_scale(quantizer, weight, bits, x.T @ x / len(x))
    better, worse = (output_error(quantizer, weight, scale, bits, x).sum() for scale in (found, naive))
    assert better < (0.9 if bits < 4 else 1.0001) * worse


@every_quantizer
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_inputs_moment_helps_the_output(quantizer: UniformQuantizer, bits: int) -> None:
    weight, x = heavy_tailed()
    blind = output_error(quantizer, weight, search_scale(quantizer, weight, bits), bits, x)
    seeing = output_error(quantizer, weight, search_scale(quantizer, weight, bits, x.T @ x / len(x)), bits, x)
    assert bool((seeing <= blind * 1.001).all())
    assert seeing.sum() < blind.sum()


@every_quantizer
@every_width
def test_scales_are_positive_float16(quantizer: UniformQuantizer, bits: int) -> None:
    weight = torch.cat([heavy_tailed()[0], torch.zeros(1, 96), torch.full((1, 96), 1e-9)])
    scale = search_scale(quantizer, weight, bits)
    assert scale.shape == (18,)
    assert torch.equal(scale, scale.half().float())
    assert bool((scale >= FLOAT16_SMALLEST).all())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_finds_maxs_optimum_of_a_gaussian(bits: int) -> None:
    weight = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    scale = search_scale(QUANTIZERS["midrise"], weight, bits, points=41)
    assert float(scale) == pytest.approx(GAUSSIAN_STEP[bits], rel=0.06)


def test_every_row_is_searched_on_its_own() -> None:
    weight, _ = heavy_tailed()
    together = search_scale(QUANTIZERS["midrise"], weight, 2)
    alone = torch.cat([search_scale(QUANTIZERS["midrise"], row[None], 2) for row in weight])
    assert torch.equal(together, alone)
