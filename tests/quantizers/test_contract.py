"""What every quantizer promises, whatever its scheme. (That files hold it to the byte: tests/pack/test_checkpoint.py.)"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoquant.core.space import SUPPORTED_WIDTHS
from autoquant.core.storage import FLOAT16_SMALLEST, Storage
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer, Quantizer, UniformQuantizer

UNIFORM = {name: quantizer for name, quantizer in QUANTIZERS.items() if not isinstance(quantizer, CodebookQuantizer)}
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
every_uniform = pytest.mark.parametrize("quantizer", UNIFORM.values(), ids=UNIFORM)
every_case = pytest.mark.parametrize(
    ("quantizer", "bits"),
    [pytest.param(quantizer, bits, id=f"{name}-{bits}") for name, quantizer in UNIFORM.items() for bits in quantizer.widths],
)
matrices = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([1e-4, 1.0, 1e3]))


def draw(quantizer: UniformQuantizer, shape: tuple[int, int, int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of some spread, far beyond the grid in places, and scales (and midpoints) that float16 holds."""
    rows, columns, seed, spread = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * spread
    scale = (spread * (0.01 + torch.rand(rows, generator=generator))).half().float()
    if quantizer.asymmetric:
        scale = torch.stack([scale, (spread * torch.randn(rows, generator=generator)).half().float()], dim=1)
    return weight, scale


def ones(quantizer: UniformQuantizer) -> torch.Tensor:
    """The scale 1 of one row, around a midpoint of 0."""
    return torch.tensor([[1.0, 0.0]]) if quantizer.asymmetric else torch.ones(1)


@every_quantizer
def test_table_key_is_the_name(quantizer: Quantizer) -> None:
    assert QUANTIZERS[quantizer.name] is quantizer


@every_quantizer
def test_widths_are_those_of_search_spaces(quantizer: Quantizer) -> None:
    assert set(quantizer.widths) <= set(SUPPORTED_WIDTHS) - {0}
    assert list(quantizer.widths) == sorted(quantizer.widths)


@every_case
@settings(deadline=None, max_examples=40)
@given(shape=matrices)
def test_codes_hold_exactly_what_is_simulated(quantizer: UniformQuantizer, bits: int, shape: tuple[int, int, int, float]) -> None:
    weight, scale = draw(quantizer, shape)
    codes = quantizer.encode(weight, scale, bits)
    assert codes.dtype == torch.uint8
    assert codes.shape == weight.shape
    assert int(codes.max()) < 2**bits
    values = quantizer.fake_quantize(weight, scale, bits)
    assert torch.equal(quantizer.decode(codes, scale, bits), values)
    # float16 scales are what the file stores
    assert torch.equal(quantizer.decode(codes, scale.half().float(), bits), values)


@every_case
@settings(deadline=None, max_examples=40)
@given(shape=matrices)
def test_quantising_twice_changes_nothing(quantizer: UniformQuantizer, bits: int, shape: tuple[int, int, int, float]) -> None:
    weight, scale = draw(quantizer, shape)
    once = quantizer.fake_quantize(weight, scale, bits)
    assert torch.equal(quantizer.fake_quantize(once, scale, bits), once)


@every_case
@settings(deadline=None, max_examples=40)
@given(shape=matrices)
def test_no_representable_value_is_nearer(quantizer: UniformQuantizer, bits: int, shape: tuple[int, int, int, float]) -> None:
    weight, scale = draw(quantizer, shape)
    grid = quantizer.grid(bits)
    levels = torch.arange(-grid.limit, grid.limit + 1)
    assert len(levels) <= 2**bits
    assert (grid.limit - grid.offset) % 1 == 0
    step, middle = (scale[:, 0], scale[:, 1]) if quantizer.asymmetric else (scale, torch.zeros_like(scale))
    values = step[:, None] * levels + middle[:, None]
    nearest = (weight[..., None] - values[:, None, :]).abs().amin(dim=-1)
    error = (quantizer.fake_quantize(weight, scale, bits) - weight).abs()
    assert bool((error <= nearest + 1e-5 * (step + middle.abs())[:, None]).all())


@every_case
@settings(deadline=None, max_examples=40)
@given(shape=matrices)
def test_symmetric_int8_codes_are_what_int8_kernels_take(
    quantizer: UniformQuantizer, bits: int, shape: tuple[int, int, int, float]
) -> None:
    if not quantizer.symmetric_int8:
        return
    weight, scale = draw(quantizer, shape)
    step = scale if bits == 8 else scale / 2
    integers = quantizer.fake_quantize(weight, scale, bits) / step[:, None]
    assert torch.equal(integers, integers.round())
    assert int(integers.abs().max()) <= 127


@every_case
def test_levels_are_symmetric(quantizer: UniformQuantizer, bits: int) -> None:
    grid = quantizer.grid(bits)
    codes = torch.arange(int(2 * grid.limit) + 1, dtype=torch.uint8)[None]
    values = quantizer.decode(codes, ones(quantizer), bits)[0]
    assert torch.equal(values, -values.flip(0))
    assert torch.equal(values, torch.arange(-grid.limit, grid.limit + 1))


@every_case
def test_a_row_of_zeros_has_a_scale_that_float16_holds(quantizer: UniformQuantizer, bits: int) -> None:
    zeros = torch.zeros(2, 4)
    scale = quantizer.initial_scale(zeros, bits)
    step = scale[:, 0] if quantizer.asymmetric else scale
    assert bool((step >= FLOAT16_SMALLEST).all())
    assert bool(quantizer.fake_quantize(zeros, scale, bits).isfinite().all())


@every_case
def test_weights_without_bound_saturate(quantizer: UniformQuantizer, bits: int) -> None:
    weight, limit = torch.tensor([[1e30, -1e30]]), quantizer.grid(bits).limit
    assert quantizer.fake_quantize(weight, ones(quantizer), bits).tolist() == [[limit, -limit]]


@every_uniform
def test_a_float16_scale_is_stored_and_perhaps_a_midpoint(quantizer: UniformQuantizer) -> None:
    assert quantizer.storage == Storage(scales=1 + quantizer.asymmetric)


@every_uniform
@pytest.mark.parametrize("bits", [0, 5, 9])
def test_unknown_widths_are_refused(quantizer: UniformQuantizer, bits: int) -> None:
    with pytest.raises(ValueError, match=f"not {bits}"):
        quantizer.grid(bits)
