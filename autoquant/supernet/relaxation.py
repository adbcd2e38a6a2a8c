"""Logits -> shares: Gumbel-softmax over bit-widths, a binary Gumbel gate for pruning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gumbel_softmax(logits: Tensor, temperature: float, hard: bool, noise: bool = True) -> Tensor:
    """AQ-BERT's relaxation (eq. 11): softmax((logits + g) / temperature), g ~ Gumbel(0, 1); [sub-groups, widths].

    `hard` returns the one-hot of the sample with the soft sample's gradient (straight-through). Logits of -inf stay 0.
    """
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-9, 1 - 1e-7)
        logits = logits - torch.log(-torch.log(uniform))
    soft = functional.softmax(logits / temperature, dim=-1)
    if not hard:
        return soft
    one_hot = functional.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
    return one_hot + soft - soft.detach()


def gumbel_gate(logits: Tensor, temperature: float, hard: bool, noise: bool = True) -> Tensor:
    """A relaxed Bernoulli gate per sub-group, [sub-groups]: 1 keeps, 0 prunes; the two-choice case of `gumbel_softmax`.

    Logits of +inf (sub-groups that cannot be pruned) give exactly 1.
    """
    free = torch.isfinite(logits)
    safe = torch.where(free, logits, 0.0)
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        safe = safe + torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid(safe / temperature)
    if hard:
        soft = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
    return torch.where(free, soft, 1.0)
