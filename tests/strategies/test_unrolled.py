"""The second-order gradient against finite differences of the objective itself, where first order is far off."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autoquant.strategies.unrolled import unrolled_gradient

RATE = 0.3


class Toy:
    """L_train = |A w - B o|^2 / 2 + sum sin(w) o_0, L_val = |w - c|^2 / 2 + |o|^2 / 2 + w_0 o_1: weights follow the bits."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.a, self.b = torch.randn(4, 3, generator=draw).double(), torch.randn(4, 2, generator=draw).double()
        self.c, self.w = torch.randn(3, generator=draw).double(), torch.randn(3, generator=draw).double().requires_grad_()
        self.o = torch.randn(2, generator=draw).double().requires_grad_()

    def train(self, w: Tensor, o: Tensor) -> Tensor:
        return 0.5 * (self.a @ w - self.b @ o).square().sum() + (w.sin() * o[0]).sum()

    def held_out(self, w: Tensor, o: Tensor) -> Tensor:
        return 0.5 * (w - self.c).square().sum() + 0.5 * o.square().sum() + w[0] * o[1]

    def objective(self, o: Tensor) -> float:
        """L_val(w - xi dL_train(w, o) / dw, o), the true unrolled objective (eq. 13)."""
        w = self.w.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(self.train(w, o), w)
        return self.held_out(w - RATE * grad, o).item()

    def gradient(self, rate: float) -> tuple[Tensor, Tensor]:
        train: Callable[[], Tensor] = lambda: self.train(self.w, self.o)  # noqa: E731
        loss, grads = unrolled_gradient(train, lambda: self.held_out(self.w, self.o), [self.w], [self.o], rate)
        return loss, grads[0]


def differences(toy: Toy, step: float = 1e-5) -> Tensor:
    """Central differences of the true objective."""
    o = toy.o.detach()
    sides = [[toy.objective(o + sign * step * unit) for sign in (1, -1)] for unit in torch.eye(2).double()]
    return torch.tensor([(above - below) / (2 * step) for above, below in sides]).double()


def test_is_the_gradient_of_the_unrolled_objective() -> None:
    toy = Toy()
    loss, gradient = toy.gradient(RATE)
    true = differences(toy)
    assert loss.item() == pytest.approx(toy.objective(toy.o.detach()))
    torch.testing.assert_close(gradient, true, rtol=1e-3, atol=1e-4)
    (first_order,) = torch.autograd.grad(toy.held_out(toy.w, toy.o), toy.o)
    assert (first_order - true).norm() > 0.5 * true.norm()


def test_a_weight_that_the_losses_leave_out_changes_nothing() -> None:
    """Such as a classifier's, under the hidden states alone."""
    toy, other = Toy(), torch.ones(2).double().requires_grad_()
    train, held_out = (lambda: toy.train(toy.w, toy.o)), (lambda: toy.held_out(toy.w, toy.o))
    _, grads = unrolled_gradient(train, held_out, [toy.w, other], [toy.o], RATE)
    assert torch.equal(grads[0], toy.gradient(RATE)[1])
    assert torch.equal(other.detach(), torch.ones(2).double())


def test_without_a_step_it_is_first_order() -> None:
    toy = Toy()
    (first_order,) = torch.autograd.grad(toy.held_out(toy.w, toy.o), toy.o)
    torch.testing.assert_close(toy.gradient(0.0)[1], first_order)


def test_the_weights_are_left_bit_by_bit() -> None:
    toy = Toy()
    before = toy.w.detach().clone()
    toy.gradient(RATE)
    assert torch.equal(toy.w, before)
    assert toy.w.grad is None
    assert toy.o.grad is None
