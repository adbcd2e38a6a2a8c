"""Modules of layers: where they are cut, what goes in, what comes out, and what they share with the whole."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DistilBertConfig, DistilBertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from autoquant.refine.modules import Module, cut, cut_model, layer_sizes
from autoquant.refine.mrem import Reconstruction, prepare


def test_cuts_by_hand() -> None:
    assert cut([1, 1, 1, 1], 2) == [(0, 2), (2, 4)]
    assert cut([3] * 12, 4) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    # MiniLM in millions: embeddings weigh almost seven layers
    assert cut([13.7, 1.8, 1.8, 1.8, 1.8, 1.9], 4) == [(0, 1), (1, 3), (3, 5), (5, 6)]
    assert cut([1, 1], 4) == [(0, 1), (1, 2)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=24), st.integers(1, 24))
def test_cuts_cover_every_layer_once(sizes: list[int], modules: int) -> None:
    ranges = cut(sizes, modules)
    assert [layer for first, last in ranges for layer in range(first, last)] == list(range(len(sizes)))
    assert len(ranges) == min(len(sizes), modules)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=9), st.integers(0, 8))
def test_no_cut_in_two_is_more_even(sizes: list[int], other: int) -> None:
    def worst(ranges: list[tuple[int, int]]) -> int:
        return max(sum(sizes[first:last]) for first, last in ranges)

    at = 1 + other % (len(sizes) - 1)
    assert worst(cut(sizes, 2)) <= worst([(0, at), (at, len(sizes))])


def whole(model: Any, batch: dict[str, torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    return out.hidden_states, out.logits


def through(modules: list[Module], batch: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """What every module of a chain makes of the one before's output."""
    states: list[torch.Tensor] = []
    with torch.no_grad():
        for module in modules:
            hidden, logits = module(batch, states[-1] if states else None)
            states.append(hidden)
    return states, logits


@pytest.mark.parametrize("count", [1, 2])
def test_modules_in_a_row_are_the_network(bench: Any, count: int) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(0, 25, 5))  # of one length
    modules = cut_model(supernet.model, supernet.layers_path, count)
    states, logits = through(modules, batch)
    expected, expected_logits = whole(supernet, batch)
    for module, state in zip(modules, states, strict=True):
        assert torch.equal(state, expected[module.last])
    assert torch.equal(logits, expected_logits)
    again, again_logits = whole(supernet, batch)  # the network itself is as it was
    assert torch.equal(again_logits, expected_logits)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


SMALL = {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0}
OTHERS = {
    "distilbert.transformer.layer": DistilBertForSequenceClassification(
        DistilBertConfig(dim=16, hidden_dim=32, n_layers=3, n_heads=2, **SMALL)
    ),
    "roberta.encoder.layer": RobertaForSequenceClassification(
        RobertaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, **SMALL)
    ),
}


@pytest.mark.parametrize("path", OTHERS)
def test_other_architectures_too(path: str) -> None:
    model = OTHERS[path].eval()
    ids = torch.arange(2, 12).view(2, 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(2)}
    modules = [Module(model, path, 0, 1), Module(model, path, 1, 3)]
    states, logits = through(modules, batch)
    expected, expected_logits = whole(model, batch)
    assert torch.equal(states[0], expected[1])
    assert torch.equal(states[1], expected[3])
    assert torch.equal(logits, expected_logits)
    owned = [id(p) for module in modules for p in module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_every_parameter_is_in_one_module_and_shared(bench: Any) -> None:
    supernet = bench.supernet()
    modules = cut_model(supernet.model, supernet.layers_path, 2)
    owned = [id(p) for module in modules for p in module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in supernet.model.parameters())
    model = supernet.model
    embeddings, head = model.bert.embeddings.parameters(), [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    assert {id(p) for p in embeddings} <= {id(p) for p in modules[0].parameters()}
    assert {id(p) for p in head} <= {id(p) for p in modules[1].parameters()}
    assert sum(layer_sizes(model, supernet.layers_path)) == sum(p.numel() for p in model.parameters())
    for module in modules:
        parts = [id(p) for p in (*module.weight_parameters(), *module.scale_parameters())]
        assert sorted(parts) == sorted(id(p) for p in module.parameters())


def test_no_gradient_crosses_a_boundary(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(5))
    module = Module(supernet.model, supernet.layers_path, 1, 2)
    hidden, logits = module(batch, torch.randn(5, batch["input_ids"].shape[1], 32))
    (hidden.square().sum() + logits.square().sum()).backward()
    own = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for p in supernet.parameters() if p.grad is not None} == own


def test_what_a_step_hands_on_has_no_gradient(bench: Any) -> None:
    supernet = bench.supernet()
    with bench.open_context() as context:
        problem = bench.problem("mrem-s", supernet, context, mrem_steps=2)
        modules, lessons = prepare(problem)
        first, second = (Reconstruction(m, lesson, problem.settings, context) for m, lesson in zip(modules, lessons, strict=True))
        indices = np.arange(5)
        _, output = first.step(0, indices, None)
        assert not output.requires_grad
        before = [p.clone() for p in modules[0].parameters()]
        second.step(0, indices, output)
    assert all(p.grad is None for p in modules[0].parameters())
    assert all(torch.equal(p, old) for p, old in zip(modules[0].parameters(), before, strict=True))


def test_dropped_quantisation_lets_inputs_through(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(0, 25, 5))
    module = Module(supernet.model, supernet.layers_path, 0, 1)
    quantised, _ = module(batch, None)
    module.drop_quantisation(0.5)
    assert not torch.equal(module(batch, None)[0], quantised)
    module.drop_quantisation(0.0)
    assert torch.equal(module(batch, None)[0], quantised)
