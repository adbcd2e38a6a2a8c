"""Packed layers: what they keep in memory, and that nothing they are moved or cast to changes what is stored."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForSequenceClassification

from autoquant.core.errors import CheckpointError, ModelError
from autoquant.core.subgroup import Matrix, Partition, even_sizes, frequency_buckets
from autoquant.pack.checkpoint import read_packed
from autoquant.pack.matrix import PackedMatrix
from autoquant.pack.model import load_packed
from autoquant.pack.modules import MEMORY, PackedEmbedding, PackedLinear
from autoquant.pack.quantise import quantise
from autoquant.quantizers.activation import fake_quantize_static
from packed import MIDRISE, save

Maker = Callable[..., Any]
ROWS, COLUMNS, BITS = 20, 13, (0, 1, 2, 3, 8)


def test_weight_is_unpacked_once_and_not_saved(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path
) -> None:
    folder = save(make_material(), tiny_classifier, tmp_path)
    linear = load_packed(folder).get_submodule("bert.encoder.layer.1.output.dense")
    assert isinstance(linear, PackedLinear)
    before = set(linear.state_dict())
    assert linear.weight is linear.weight
    packed = read_packed(folder / "model.safetensors").matrices["bert.encoder.layer.1.output.dense.weight"]
    assert torch.equal(linear.weight, packed.dequantise(MIDRISE))
    assert set(linear.state_dict()) == before == {"weight_codes", "weight_scales", "weight_layout", "bias"}


def matrix(buckets: bool = False, scale: str = "row") -> PackedMatrix:
    """Twenty ragged rows in five sub-groups of different widths, one of them pruned."""
    draw = torch.Generator().manual_seed(0)
    part: tuple[Any, ...] = (even_sizes(ROWS, len(BITS)), None)
    if buckets:
        index, sizes = frequency_buckets(torch.arange(ROWS).numpy()[::-1] % 9, len(BITS))
        part = sizes, index
    partition = Partition(Matrix("m", ROWS, COLUMNS, "query", 0), tuple(sorted(BITS)), *part)
    scales = (0.2 + torch.rand(ROWS if scale == "row" else len(BITS), generator=draw)).half().float()
    return quantise(torch.randn(ROWS, COLUMNS, generator=draw), scales, partition, BITS, scale, MIDRISE)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("scale", ["row", "subgroup"])
def test_some_rows_are_those_rows_of_all(buckets: bool, scale: str) -> None:
    packed = matrix(buckets, scale)
    whole = packed.dequantise(MIDRISE)
    rows = torch.tensor([19, 0, 7, 7, 3, 12])
    assert torch.equal(packed.dequantise(MIDRISE, rows), whole[rows])
    assert packed.dequantise(MIDRISE, rows[:0]).shape == (0, COLUMNS)
    assert (whole == 0).all(dim=1).any()


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_compute_with_the_unpacked_weight(memory: str, dtype: torch.dtype) -> None:
    packed, bias = matrix(), nn.Parameter(torch.randn(ROWS, dtype=dtype))
    weight = packed.dequantise(MIDRISE).to(dtype)
    linear = PackedLinear(packed, bias, MIDRISE, 32, memory=memory, dtype=dtype)
    embedding = PackedEmbedding(packed, MIDRISE, memory=memory, dtype=dtype)
    x, ids = torch.randn(3, 2, COLUMNS, dtype=dtype), torch.tensor([[4, 4, 19], [0, 7, 4]])
    for _ in range(2):
        assert torch.equal(linear(x), functional.linear(x, weight, bias))
        assert torch.equal(embedding(ids), weight[ids])
    assert linear.unpacked.shape == embedding.unpacked.shape == ((0,) if memory == "packed" else (ROWS, COLUMNS))


@pytest.mark.parametrize("memory", MEMORY)
def test_casting_a_layer_leaves_what_is_stored(memory: str) -> None:
    """bfloat16 has too few digits for the float16 scales; a layer cast there and back still has them."""
    packed = matrix()
    linear = PackedLinear(packed, None, MIDRISE, 32, memory=memory)
    stored = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    linear.to(torch.bfloat16)
    assert linear.weight.dtype == torch.bfloat16
    assert {name: tensor.dtype for name, tensor in linear.state_dict().items()} == {n: t.dtype for n, t in stored.items()}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in linear.state_dict().items())
    assert torch.equal(linear.weight, packed.dequantise(MIDRISE).bfloat16())
    copied = copy.deepcopy(linear)
    assert torch.equal(copied.weight, linear.weight)


@pytest.mark.parametrize("assign", [False, True])
def test_other_codes_are_unpacked_anew(
    make_material: Maker, tiny_classifier: BertForSequenceClassification, tmp_path: Path, assign: bool
) -> None:
    """And what was read from the file stays as it was, so that the model is not saved as what it no longer is."""
    folder = save(make_material(), tiny_classifier, tmp_path)
    model, ids = load_packed(folder), torch.tensor([[2, 9, 11, 3]])
    before, name = model(ids).logits, "bert.encoder.layer.1.output.dense.weight_codes"
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name] = state[name].flip(0)
    model.load_state_dict(state, assign=assign)
    after = model(ids).logits
    fresh = load_packed(folder)
    fresh.load_state_dict(state)
    assert torch.equal(after, fresh(ids).logits)
    assert not torch.equal(after, before)
    with pytest.raises(CheckpointError, match="weight_codes was changed after loading"):
        model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("memory", MEMORY)
def test_a_layer_first_used_for_inference_takes_part_in_gradients(memory: str) -> None:
    linear, x = PackedLinear(matrix(), None, MIDRISE, 32, memory=memory), torch.randn(3, COLUMNS)
    with torch.inference_mode():
        linear(x)
    x.requires_grad_()
    linear(x).square().sum().backward()
    assert x.grad is not None


def test_eight_bit_activations_are_computed_in_float32() -> None:
    packed, x = matrix(), torch.randn(4, COLUMNS)
    plain, short = (PackedLinear(packed, None, MIDRISE, 8, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(short(x.bfloat16()).float(), plain(x.bfloat16().float()), atol=0.1, rtol=0.02)
    assert short(x.bfloat16()).dtype == torch.bfloat16


def test_a_stored_range_keeps_its_digits_when_a_layer_is_cast() -> None:
    linear = PackedLinear(matrix(), None, MIDRISE, 4, static=True)
    linear.input_range = torch.tensor([0.1234, -0.777]).half().float()
    stored, x = linear.input_range.clone(), torch.randn(4, COLUMNS).bfloat16()
    expected = functional.linear(fake_quantize_static(x.float(), *stored, 4).bfloat16(), linear.weight.bfloat16())
    assert torch.equal(linear.to(torch.bfloat16)(x), expected)
    assert torch.equal(linear.input_range, stored)


def test_memory_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="memory is 'disk': give 'unpacked'"):
        load_packed(tmp_path, memory="disk")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory", MEMORY)
def test_layers_on_a_gpu(memory: str) -> None:
    packed, x = matrix(buckets=True), torch.randn(4, COLUMNS)
    linear = PackedLinear(packed, None, MIDRISE, 32, memory=memory)
    before: Tensor = linear(x)
    linear.cuda()
    torch.testing.assert_close(linear(x.cuda()).cpu(), before)
    assert {tensor.device.type for tensor in linear.buffers()} == {"cuda"}
