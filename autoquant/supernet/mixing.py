"""Quantised weights are mixed, then multiplied once: sum_k p_k Q_k(W) in one pass over W, with a hand-written backward.

With W_mix = sum_k p_k Q_k(W) per row, dL/dp_k is the inner product of dL/dW_mix with Q_k(W) over the row: one backward pass to
dL/dW_mix, then K reductions, without K copies of W (EdMIPS mixes weights; this is its cheap gradient). The two passes are
bound by memory traffic, so they are compiled where a C++ compiler is at hand and run in chunks of rows otherwise.

Shapes: weight [rows, columns]; scale, limit, offset, share [rows, K]. `scale` gets LSQ's gradient (Esser et al. 2020), but that
the whole last cell of a grid counts as inside: half a step more than LSQ's own integers, which it clips at the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 128
FEWEST_COMPILED_ROWS = 64  # smaller matrices are not worth a compilation of their own
VARIANTS = 64  # every number of widths is one, and torch stops compiling after eight without a word of ours

Kernel = Callable[..., Any]


def mix_forward(weight: Tensor, scale: Tensor, limit: Tensor, offset: Tensor, share: Tensor) -> Tensor:
    """The mixed weight, [rows, columns]."""
    mixed = torch.zeros_like(weight)
    for k in range(scale.shape[1]):
        step, top, shift = scale[:, k : k + 1], limit[:, k : k + 1], offset[:, k : k + 1]
        level = torch.clamp(torch.floor(_in_steps(weight, step, scale) - shift + 0.5) + shift, -top, top)
        mixed = mixed + (share[:, k : k + 1] * step) * level
    return mixed


def _in_steps(weight: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    """weight / step, [rows, columns]; in a mixture by a division a row and not a weight, where a last digit decides nothing."""
    return weight / step if scale.shape[1] == 1 else weight * (1.0 / step)


def mix_backward(
    weight: Tensor, scale: Tensor, limit: Tensor, offset: Tensor, share: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight [rows, columns] (straight-through inside the range), scale [rows, K] and share [rows, K]."""
    grad_weight = torch.zeros_like(weight)
    grad_scale, grad_share = [], []
    for k in range(scale.shape[1]):
        step, top, shift = scale[:, k : k + 1], limit[:, k : k + 1], offset[:, k : k + 1]
        steps = _in_steps(weight, step, scale)
        level = torch.clamp(torch.floor(steps - shift + 0.5) + shift, -top, top)
        inside = steps.abs() <= top + 0.5
        grad_share.append((grad * level).sum(1) * step[:, 0])
        through = share[:, k : k + 1] * grad
        grad_weight = grad_weight + torch.where(inside, through, 0.0)
        grad_scale.append((torch.where(inside, level - steps, level) * through).sum(1))
    return grad_weight, torch.stack(grad_scale, 1), torch.stack(grad_share, 1)


class Kernels:
    """The two passes, compiled on first use; falls back to eager chunks, with a word to the user, if that fails."""

    def __init__(self) -> None:
        self._compiled: tuple[Kernel, Kernel] | None = None
        self.compile = True

    def forward(self, *arguments: Tensor) -> Tensor:
        return self._run(0, arguments)

    def backward(self, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._run(1, arguments)

    def _run(self, which: int, arguments: tuple[Tensor, ...]) -> Any:
        # detached: whether a gradient is wanted is part of what torch.compile specialises on, and would double the variants
        arguments = tuple(argument.detach() for argument in arguments)
        if self.compile and len(arguments[0]) >= FEWEST_COMPILED_ROWS:
            try:
                _compile_all_variants()
                if self._compiled is None:
                    self._compiled = (torch.compile(mix_forward, dynamic=True), torch.compile(mix_backward, dynamic=True))
                return self._compiled[which](*arguments)
            except Exception as error:  # any failure of the compiler's: the eager pass gives the same numbers
                self.compile = False
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logging.getLogger(__name__).warning(
                    "Could not compile the mixing pass (%s): running it uncompiled, some 20 times slower. "
                    "Install a C++ compiler (Debian: apt-get install g++) to make the search fast.",
                    reason[0],
                )
        kernel = (mix_forward, mix_backward)[which]
        return _in_chunks(kernel, arguments) if arguments[0].device.type == "cpu" else kernel(*arguments)


def _compile_all_variants() -> None:
    """Torch keeps the limit for every thread by itself, and backward passes on a GPU have one of their own."""
    from torch import _dynamo  # slow to import

    if _dynamo.config.recompile_limit < VARIANTS:
        _dynamo.config.recompile_limit = VARIANTS


def _in_chunks(kernel: Kernel, arguments: tuple[Tensor, ...]) -> Any:
    """The eager pass over chunks of rows that stay in cache."""
    parts = [kernel(*chunk) for chunk in zip(*(a.split(CHUNK_ROWS) for a in arguments), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(parts)


KERNELS = Kernels()


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, limit: Tensor, offset: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale, limit, offset, share)
        return KERNELS.forward(weight, scale, limit, offset, share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_weight, grad_scale, grad_share = KERNELS.backward(*ctx.saved_tensors, grad.contiguous())
        return grad_weight, grad_scale, None, None, grad_share


def mix(weight: Tensor, scale: Tensor, limit: Tensor, offset: Tensor, share: Tensor) -> Tensor:
    """sum_k share_k Q_k(weight), [rows, columns]; gradients for weight, scale and share. See the module's docstring."""
    mixed: Tensor = _Mix.apply(weight, scale, limit, offset, share)
    return mixed
