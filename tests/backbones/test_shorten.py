"""Fewer layers: which ones, and that those kept compute what they did, also when they are loaded again."""

from pathlib import Path

import pytest
import torch

from architectures import CONFIGS, save_tiny, tiny
from autoquant.backbones import BACKBONES
from autoquant.backbones.load import open_model
from autoquant.backbones.shorten import keep_layers, kept_layers
from autoquant.core.errors import ModelError

LABELS = ("bad", "good")


@pytest.mark.parametrize(
    ("layers", "keep", "expected"),
    [(12, 6, (0, 2, 4, 7, 9, 11)), (6, 3, (0, 2, 5)), (4, 2, (0, 3)), (2, 1, (0,)), (3, 3, (0, 1, 2))],
)
def test_kept_layers_are_spread(layers: int, keep: int, expected: tuple[int, ...]) -> None:
    assert kept_layers(layers, keep) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_layer_alone_gives_its_own_output(name: str) -> None:
    model, ids = tiny(name), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[1]
        states = keep_layers(model, BACKBONES[name], (0,))(ids, output_hidden_states=True).hidden_states
    assert len(states) == 2
    assert torch.equal(states[1], expected)
    assert model.config.num_hidden_layers == 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("trim", [False, True])
def test_a_source_with_fewer_layers_loads_them_and_what_was_saved_of_it(name: str, trim: bool, tmp_path: Path) -> None:
    source = open_model(str(save_tiny(name, tmp_path / "whole")), LABELS, 32, trim).with_every(2)
    model, has_head = source.load(0)
    assert has_head
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == source.shapes()
    model.save_pretrained(tmp_path / "short")
    source.tokenizer.save_pretrained(tmp_path / "short")
    again, _ = open_model(str(tmp_path / "short"), LABELS, 32, trim).load(0)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert source.with_every(1).load(0)[0].config.num_hidden_layers == 2


def test_one_layer_cannot_be_halved(tmp_path: Path) -> None:
    source = open_model(str(save_tiny("bert", tmp_path / "whole")), LABELS, 32, False).with_every(2)
    source.load(0)[0].save_pretrained(tmp_path / "short")
    source.tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(ModelError, match=r"has 1 layer, of which none can go: give --student\.keep-every 1"):
        open_model(str(tmp_path / "short"), LABELS, 32, False).with_every(2)
