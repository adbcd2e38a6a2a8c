"""Modules of layers: where they are cut, what goes in, what comes out, and what learns."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoquant.refine import mrem
from autoquant.refine.mrem import LayerRange, encoder_layers, module_boundaries


def test_boundaries_by_hand() -> None:
    assert module_boundaries(6, 4) == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert module_boundaries(12, 4) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert module_boundaries(2, 4) == [(0, 1), (1, 2)]


@given(st.integers(1, 48), st.integers(1, 48))
def test_boundaries_cover_every_layer_once(layers: int, modules: int) -> None:
    ranges = module_boundaries(layers, modules)
    assert [layer for first, last in ranges for layer in range(first, last)] == list(range(layers))
    lengths = [last - first for first, last in ranges]
    assert len(lengths) == min(layers, modules)
    assert max(lengths) - min(lengths) <= 1


def hidden_states(supernet: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        states: tuple[torch.Tensor, ...] = supernet(**inputs, output_hidden_states=True).hidden_states
    return states


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 2), (1, 2)])
def test_without_teacher_it_is_the_network_itself(bench: Any, first: int, last: int) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(5))
    states = hidden_states(supernet, batch)
    output = LayerRange(supernet, first, last).output(batch, torch.randn_like(states[0]), teacher_share=0.0)
    torch.testing.assert_close(output, states[last])


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_teacher_is_mixed_into_the_input(bench: Any, share: float) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(0, 25, 5))  # of one length
    states = hidden_states(supernet, batch)
    teacher = torch.randn_like(states[1])
    output = LayerRange(supernet, 1, 2).output(batch, teacher, share)
    with torch.no_grad():
        expected = encoder_layers(supernet)[1](share * teacher + (1 - share) * states[1])
    torch.testing.assert_close(output, expected)


def attached(supernet: Any) -> list[tuple[int, int, bool]]:
    """Hooks and replaced forward functions of every module."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in supernet.modules()]


def test_what_it_passes_over_is_put_back(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(5))
    before, hooks = hidden_states(supernet, batch), attached(supernet)
    LayerRange(supernet, 1, 2).output(batch, torch.randn_like(before[0]), 0.5)
    assert attached(supernet) == hooks
    assert all(torch.equal(a, b) for a, b in zip(before, hidden_states(supernet, batch), strict=True))


def test_no_gradient_crosses_a_boundary(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.data.collate(np.arange(5))
    module = LayerRange(supernet, 1, 2)
    module.output(batch, torch.randn(5, batch["input_ids"].shape[1], 32), 0.5).square().sum().backward()
    own = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for p in supernet.parameters() if p.grad is not None} <= own
    assert own == {id(p) for p in encoder_layers(supernet)[1].parameters()}


def test_the_first_module_owns_the_embeddings(bench: Any) -> None:
    supernet = bench.supernet()
    own = {id(parameter) for parameter in LayerRange(supernet, 0, 1).parameters()}
    embeddings = supernet.model.bert.embeddings.parameters()
    assert own == {id(p) for p in (*encoder_layers(supernet)[0].parameters(), *embeddings)}


def test_modules_learn_one_after_the_other_with_the_earlier_ones_frozen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, seen, shares = bench.supernet(), [], []
    real = mrem.hidden_loss
    output = LayerRange.output

    def watching(*arguments: Any) -> torch.Tensor:
        seen.append([layer.output.dense.mixed.weight.detach().clone() for layer in encoder_layers(supernet)])
        return real(*arguments)

    def sharing(self: LayerRange, batch: Any, teacher: torch.Tensor, share: float) -> torch.Tensor:
        shares.append(share)
        return output(self, batch, teacher, share)

    monkeypatch.setattr(mrem, "hidden_loss", watching)
    monkeypatch.setattr(LayerRange, "output", sharing)
    with bench.open_context() as context:
        log = bench.refine("mrem-s", supernet, context, mrem_steps=4)
    assert [line["module"] for line in log] == [0, 0, 0, 0, 1, 1, 1, 1]
    moved = [[not torch.equal(a, b) for a, b in zip(seen[i], seen[i + 1], strict=True)] for i in range(7)]
    assert moved == [[True, False]] * 4 + [[False, True]] * 3
    assert shares == [1.0, 0.5, 0.0, 0.0] * 2


def test_labels_are_not_read(bench: Any) -> None:
    states = []
    for run in ("as they are", "other"):
        supernet = bench.supernet()
        if run == "other":
            bench.data.labels[:] = 1 - bench.data.labels
        with bench.open_context(run) as context:
            bench.refine("mrem-s", supernet, context, mrem_steps=2)
        states.append(supernet.state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())
