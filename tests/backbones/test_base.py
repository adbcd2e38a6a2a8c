"""Which matrices does an architecture have? Names, shapes and kinds, embeddings first."""

import pytest
import torch
from transformers import BertForSequenceClassification

from architectures import tiny
from autoquant.backbones import BACKBONES
from autoquant.core.space import KINDS
from autoquant.core.subgroup import Matrix

LAYER = ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]
EMBEDDINGS = {
    "bert": ["word_embedding", "position_embedding", "type_embedding"],
    "distilbert": ["word_embedding", "position_embedding"],
    "roberta": ["word_embedding", "position_embedding", "type_embedding"],
}


def matrices(name: str) -> tuple[Matrix, ...]:
    model = tiny(name)
    return BACKBONES[name].matrices(model.config, {key: tuple(t.shape) for key, t in model.state_dict().items()})


@pytest.mark.parametrize("name", BACKBONES)
def test_every_two_dimensional_parameter_is_found_once(name: str) -> None:
    found = matrices(name)
    wanted = {key: tuple(p.shape) for key, p in tiny(name).named_parameters() if p.dim() == 2}
    assert {m.name: (m.rows, m.columns) for m in found} == wanted
    assert len(found) == len(wanted) == len(EMBEDDINGS[name]) + 2 * 6 + 2


@pytest.mark.parametrize("name", BACKBONES)
def test_kinds_and_layers_in_order(name: str) -> None:
    found, embeddings = matrices(name), EMBEDDINGS[name]
    assert [m.kind for m in found] == [*embeddings, *LAYER, *LAYER, "pooler", "classifier"]
    assert [m.layer for m in found] == [None] * len(embeddings) + [0] * 6 + [1] * 6 + [None] * 2
    assert [(m.rows, m.columns) for m in found if m.kind == "ffn_in"] == [(64, 32)] * 2
    assert [(m.rows, m.columns) for m in found if m.kind in ("pooler", "classifier")] == [(32, 32), (2, 32)]


@pytest.mark.parametrize("name", BACKBONES)
def test_kinds_are_what_the_model_uses_them_for(name: str) -> None:
    """In the order in which a forward pass comes to them; query, key and value see what the others do not."""
    model, backbone, seen = tiny(name), BACKBONES[name], []
    kinds = {m.name.removesuffix(".weight"): (m.kind, m.layer) for m in matrices(name)}
    for path, kind in kinds.items():
        model.get_submodule(path).register_forward_hook(lambda *_, kind=kind: seen.append(kind))
    model(input_ids=torch.tensor([[0, 5, 6, 2]]))
    layers = [(kind, index) for index in range(2) for kind in LAYER]
    assert [kind for kind in seen if kind[1] is not None] == layers
    assert seen[-2:] == [("pooler", None), ("classifier", None)]
    assert len(model.get_submodule(backbone.layers)) == 2


def test_a_name_in_full() -> None:
    names = {name: next(m.name for m in matrices(name) if m.kind == "ffn_in") for name in BACKBONES}
    assert names == {
        "bert": "bert.encoder.layer.0.intermediate.dense.weight",
        "distilbert": "distilbert.transformer.layer.0.ffn.lin1.weight",
        "roberta": "roberta.encoder.layer.0.intermediate.dense.weight",
    }


def test_what_a_model_lacks_is_left_out(tiny_classifier: BertForSequenceClassification) -> None:
    shapes = {name: tuple(t.shape) for name, t in tiny_classifier.bert.state_dict(prefix="bert.").items()}
    assert "classifier" not in {m.kind for m in BACKBONES["bert"].matrices(tiny_classifier.config, shapes)}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_is_known_to_the_search_space(name: str) -> None:
    backbone = BACKBONES[name]
    kinds = [*backbone.embedding_modules, *backbone.layer_modules, *backbone.outer_modules]
    assert set(kinds) <= set(KINDS)
    assert set(backbone.dynamic_activations) <= {*backbone.layer_modules, *backbone.outer_modules}


@pytest.mark.parametrize(("name", "first"), [("bert", 0), ("distilbert", 0), ("roberta", 2)])
def test_the_first_tokens_position(name: str, first: int) -> None:
    model, backbone, rows = tiny(name), BACKBONES[name], []
    positions = model.get_submodule(backbone.embedding_modules["position_embedding"])
    positions.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    model(input_ids=torch.tensor([[0, 5, 6, 2]]))
    assert rows[0].tolist() == [[first, first + 1, first + 2, first + 3]]
    assert backbone.first_position(model.config) == first
