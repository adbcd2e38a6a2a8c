"""Samples have the probabilities that the logits say, and gradients that do not depend on how they are rounded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoquant.supernet.relaxation import gumbel_gate, gumbel_softmax

LOGITS = torch.tensor([0.5, -1.0, -torch.inf, 1.5])
DRAWS = 20_000


def shares(logits: Tensor, temperature: float = 0.7, hard: bool = False, seed: int = 0, noise: bool = True) -> Tensor:
    torch.manual_seed(seed)
    return gumbel_softmax(logits, temperature, hard, noise)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.floats(0.05, 5.0), st.booleans())
def test_shares_sum_to_one_and_masked_widths_get_none(seed: int, temperature: float, hard: bool) -> None:
    share = shares(LOGITS.expand(8, -1), temperature, hard, seed)
    torch.testing.assert_close(share.sum(1), torch.ones(8))
    assert not share[:, 2].any()
    assert bool((share >= 0).all())


def test_hard_is_one_hot_with_the_soft_gradient() -> None:
    logits, cost = LOGITS.expand(6, -1).clone().requires_grad_(), torch.randn(6, 4)
    hard, soft = shares(logits, hard=True), shares(logits)
    torch.testing.assert_close(hard, torch.nn.functional.one_hot(soft.argmax(1), 4).float())
    gradients = [torch.autograd.grad((share * cost).sum(), logits)[0] for share in (hard, soft)]
    torch.testing.assert_close(*gradients)
    assert bool(gradients[0].isfinite().all())
    assert gradients[0].any()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_samples_follow_the_softmax_at_any_temperature(temperature: float) -> None:
    share = shares(LOGITS.expand(DRAWS, -1), temperature, hard=True)
    torch.testing.assert_close(share.mean(0), torch.softmax(LOGITS, 0), atol=0.015, rtol=0)


def test_temperature_limits() -> None:
    logits = LOGITS.expand(50, -1)
    cold, hard, hot = shares(logits, 1e-6), shares(logits, hard=True), shares(logits, 1e4)
    torch.testing.assert_close(cold, hard, atol=1e-3, rtol=0)
    torch.testing.assert_close(hot, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]).expand(50, -1), atol=1e-3, rtol=0)


def test_without_noise_it_is_the_softmax() -> None:
    torch.testing.assert_close(shares(LOGITS, 0.5, noise=False), torch.softmax(LOGITS / 0.5, 0))


@pytest.mark.parametrize("hard", [True, False])
def test_what_cannot_be_pruned_keeps_exactly_one(hard: bool) -> None:
    logits = torch.tensor([torch.inf, -9.0, torch.inf]).requires_grad_()
    gate = gumbel_gate(logits, 0.5, hard)
    assert gate[0] == gate[2] == 1.0
    (gradient,) = torch.autograd.grad(gate.sum(), logits)
    assert gradient[0] == gradient[2] == 0.0
    assert gradient[1].isfinite()


def test_gates_open_with_the_probability_of_their_logit() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0])
    gate = gumbel_gate(logits.expand(DRAWS, -1), 0.4, hard=True)
    torch.testing.assert_close(gate.mean(0), torch.sigmoid(logits), atol=0.015, rtol=0)
    torch.testing.assert_close(gate, gate.round(), atol=1e-6, rtol=0)


def test_a_gate_is_the_softmax_of_two() -> None:
    logits = torch.tensor([-1.0, 0.3])
    two = torch.softmax(torch.stack([logits, torch.zeros(2)], 1) / 0.5, 1)[:, 0]
    torch.testing.assert_close(gumbel_gate(logits, 0.5, hard=False, noise=False), two)


def test_a_hard_gate_has_the_soft_gradient() -> None:
    gradients = []
    for hard in (True, False):
        logits = torch.tensor([-0.5, 0.1, 1.0]).requires_grad_()
        torch.manual_seed(3)
        gradients += torch.autograd.grad(gumbel_gate(logits, 0.5, hard).sum(), logits)
    torch.testing.assert_close(*gradients)
    assert bool((gradients[0] > 0).all())
