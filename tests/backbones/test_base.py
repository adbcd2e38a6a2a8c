"""Which matrices does an architecture have? Names, shapes and kinds, embeddings first."""

import pytest
from transformers import BertForSequenceClassification

from autoquant.backbones import BACKBONES
from autoquant.core.space import KINDS
from autoquant.core.subgroup import Matrix

LAYER = ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]


def matrices(model: BertForSequenceClassification) -> tuple[Matrix, ...]:
    return BACKBONES["bert"].matrices(model.config, {name: tuple(t.shape) for name, t in model.state_dict().items()})


def test_every_two_dimensional_parameter_is_found_once(tiny_classifier: BertForSequenceClassification) -> None:
    found = matrices(tiny_classifier)
    wanted = {name: tuple(p.shape) for name, p in tiny_classifier.named_parameters() if p.dim() == 2}
    assert {m.name: (m.rows, m.columns) for m in found} == wanted
    assert len(found) == len(wanted) == 3 + 2 * 6 + 2


def test_kinds_and_layers_in_order(tiny_classifier: BertForSequenceClassification) -> None:
    found = matrices(tiny_classifier)
    embeddings = ["word_embedding", "position_embedding", "type_embedding"]
    assert [m.kind for m in found] == [*embeddings, *LAYER, *LAYER, "pooler", "classifier"]
    assert [m.layer for m in found] == [None] * 3 + [0] * 6 + [1] * 6 + [None] * 2
    assert {m.kind for m in found} <= set(KINDS)
    ffn = next(m for m in found if m.kind == "ffn_in")
    assert (ffn.name, ffn.rows, ffn.columns) == ("bert.encoder.layer.0.intermediate.dense.weight", 64, 32)


def test_what_a_model_lacks_is_left_out(tiny_classifier: BertForSequenceClassification) -> None:
    shapes = {name: tuple(t.shape) for name, t in tiny_classifier.bert.state_dict(prefix="bert.").items()}
    assert "classifier" not in {m.kind for m in BACKBONES["bert"].matrices(tiny_classifier.config, shapes)}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_is_known_to_the_search_space(name: str) -> None:
    backbone = BACKBONES[name]
    kinds = [*backbone.embedding_modules, *backbone.layer_modules, *backbone.outer_modules]
    assert set(kinds) <= set(KINDS)
    assert set(backbone.dynamic_activations) <= {*backbone.layer_modules, *backbone.outer_modules}
