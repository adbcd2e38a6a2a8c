"""Quantised activations: 8 bits as the fast runtime computes them, or a learned static range (LSQ+) of 8 or 4 bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.core.storage import FLOAT16_LARGEST, FLOAT16_SMALLEST


def fake_quantize_dynamic(x: Tensor) -> Tensor:
    """uint8 with the range of this very tensor, zero included; straight-through gradient.

    The arithmetic of ONNX DynamicQuantizeLinear: scale = (max - min) / 255, zero point = round(-min / scale),
    code = clamp(round(x / scale) + zero point, 0, 255).
    """
    values: Tensor = _Dynamic.apply(x)
    return values


class _Dynamic(torch.autograd.Function):
    """One new tensor, changed in place: it is passes over memory that this costs, and there were nine of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low) / 255.0).clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.round(-low / scale)
        return (x / scale).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def fake_quantize_static(x: Tensor, step: Tensor, offset: Tensor, bits: int) -> Tensor:
    """LSQ+ (Bhalgat et al. 2020, eq. 1-2): clamp(round((x - offset) / step), 0, 2^bits - 1) * step + offset, of x's shape.

    `step` and `offset` are scalars and get LSQ+'s gradients, scaled by 1 / sqrt(n (2^bits - 1)) for the n elements of x.
    """
    values: Tensor = _Static.apply(x, step, offset, 2**bits - 1)
    return values


class _Static(torch.autograd.Function):
    """As few passes over memory as the dynamic one: it has to keep one more tensor, the steps before rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, offset: Tensor, top: int) -> Tensor:
        steps = (x - offset).div_(step)
        ctx.save_for_backward(steps)
        ctx.top = top
        return steps.round().clamp_(0, top).mul_(step).add_(offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (steps,) = ctx.saved_tensors
        inside = (steps >= 0).logical_and_(steps <= ctx.top)
        grad_inside = grad * inside
        # by step: round(s) - s inside, the nearest of 0 and top outside; by offset: 0 inside, 1 outside
        by_step = steps.round().clamp_(0, ctx.top).sub_(steps.where(inside, 0.0))
        factor = 1 / math.sqrt(steps.numel() * ctx.top)
        grad_step, grad_offset = _dot(grad, by_step) * factor, _dot(grad, inside.logical_not_()) * factor
        return grad_inside, grad_step, grad_offset, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, added up in float32 at least, whatever the tensors are."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype))


class StaticRange(nn.Module):
    """The learned range of one tensor of activations: a log-step, which keeps the step positive, and an offset."""

    def __init__(self, step: float, offset: float, bits: int) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(max(step, FLOAT16_SMALLEST)).log())
        self.offset = nn.Parameter(torch.tensor(float(offset)))
        self.bits = bits

    @classmethod
    def starting(cls, mean: float, minimum: float, bits: int) -> StaticRange:
        """From the mean of |x| and the smallest x: step 4 mean|x| / sqrt(Qp) with Qp = 2^bits - 1, offset = minimum."""
        return cls(4 * mean / math.sqrt(2**bits - 1), minimum, bits)

    def forward(self, x: Tensor) -> Tensor:
        learned = torch.stack([self.log_step.exp(), self.offset])
        step, offset = (learned + (self.stored() - learned).detach()).to(x.dtype)  # what the file will hold, straight through
        return fake_quantize_static(x, step, offset, self.bits)

    @torch.no_grad()
    def stored(self) -> Tensor:
        """Step and offset as float16 stores them, [2] float32."""
        step = self.log_step.exp().clamp(FLOAT16_SMALLEST, FLOAT16_LARGEST)
        return torch.stack([step, self.offset.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)]).half().float()
