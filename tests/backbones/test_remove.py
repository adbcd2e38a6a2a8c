"""A model without units computes what it computes with their value (or first FFN) weights at zero, in smaller matrices."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from architectures import CONFIGS, tiny
from autoquant.backbones import BACKBONES
from autoquant.backbones.remove import remove_units, resize_to
from autoquant.core.structure import find_units, pick_units

every_architecture = pytest.mark.parametrize("name", sorted(CONFIGS))
GONE = ["0.head.1", "0.head.3", "0.ffn.0", "1.ffn.1", "1.ffn.2", "1.head.0"]


def lively(name: str) -> Any:
    model, draw = tiny(name), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0).add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def units_of(model: Any, name: str) -> Any:
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    matrices = BACKBONES[name].matrices(model.config, shapes)
    return matrices, find_units(matrices, model.config.num_attention_heads, 4)


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@every_architecture
def test_removal_is_exact(name: str) -> None:
    model = lively(name)
    matrices, units = units_of(model, name)
    gone = pick_units(units, GONE)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for matrix in matrices:
            for unit in gone:
                if unit.is_gated_by(matrix):
                    zeroed.get_parameter(matrix.name)[unit.start : unit.stop] = 0.0
    before = model.num_parameters()
    remove_units(model, BACKBONES[name], gone)
    torch.testing.assert_close(logits(model), logits(zeroed), atol=2e-5, rtol=1e-5)
    assert model.num_parameters() < before
    backbone = BACKBONES[name]
    expected = {"value": [(16, 32), (24, 32)], "attention_output": [(32, 16), (32, 24)], "ffn_in": [(48, 32), (32, 32)]}
    for kind, shapes in expected.items():
        paths = [f"{backbone.layer.format(i)}.{backbone.layer_modules[kind]}.weight" for i in range(2)]
        assert [tuple(model.get_parameter(path).shape) for path in paths] == shapes


@every_architecture
def test_it_is_no_small_change(name: str) -> None:
    """The test above would not see a removal that forgets the biases if these did nothing."""
    model = lively(name)
    before = logits(model)
    remove_units(model, BACKBONES[name], pick_units(units_of(model, name)[1], GONE))
    assert (logits(model) - before).abs().max() > 1e-2


@every_architecture
def test_resizing_takes_the_weights_of_the_smaller_model(name: str) -> None:
    model = lively(name)
    remove_units(model, BACKBONES[name], pick_units(units_of(model, name)[1], GONE))
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    empty = resize_to(tiny(name), BACKBONES[name], shapes)
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(empty), logits(model))


@pytest.mark.parametrize("width", [0, 12, 40, 64, 10**12])
def test_a_width_that_no_removal_leads_to_is_left_alone(width: int) -> None:
    model, name = tiny("bert"), "bert.encoder.layer.1.attention.self.value.weight"
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    resize_to(model, BACKBONES["bert"], {**shapes, name: [width, 32]})
    assert model.get_parameter(name).shape == (32, 32)
