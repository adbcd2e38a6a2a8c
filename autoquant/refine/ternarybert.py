"""TernaryBERT's distillation (Zhang et al. 2020, section 3.3): hidden states, attention scores and logits of the teacher.

L = L_trm + L_pred, unweighted and in one stage, as in the authors' code. L_trm: squared error of the embeddings' and every
layer's hidden states and of every layer's attention scores, before the softmax. L_pred: soft cross-entropy of the logits.
Padding does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.core.errors import RunError
from autoquant.core.settings import DistillationSettings
from autoquant.refine.base import RefineProblem
from autoquant.refine.train import Taught, everything, train
from autoquant.training.distillation import distillation_loss

STATES_AND_LOGITS = DistillationSettings(logits=1.0, hidden=1.0, cross_entropy=0.0)


def attention_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Q K^T / sqrt(width of a head), [batch, heads, tokens, tokens], of query and key [batch, tokens, width]."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared error of scores [batch, heads, tokens, tokens], averaged over heads and real pairs, summed over layers."""
    real = mask[:, None, :, None] * mask[:, None, None, :]
    pairs = real.sum() * student[0].shape[1]
    return torch.stack([((s - t).square() * real).sum() / pairs for s, t in zip(student, teacher, strict=True)]).sum()


@contextmanager
def kept_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What each module gave in the last forward pass, in their order; empty until there was one."""
    seen: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(index: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            seen[index] = output

        return hook

    handles = [module.register_forward_hook(keep(index)) for index, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def projections(problem: RefineProblem, model: nn.Module, kind: str) -> list[nn.Module]:
    """The layers of a kind, `query` or `key`, first to last."""
    names = [p.matrix.name for p in problem.supernet.table.partitions if p.matrix.kind == kind]
    return [model.get_submodule(name.removesuffix(".weight")) for name in names]


@dataclass(frozen=True)
class TernaryBert:
    """All weights and scales learn, from the teacher alone. Raises RunError where heads were removed: scores have no partner."""

    def refine(self, problem: RefineProblem) -> None:
        supernet, config = problem.supernet, problem.teacher.config
        heads: Any = config.num_attention_heads  # type: ignore[union-attr]
        queries, keys = (projections(problem, supernet.model, kind) for kind in ("query", "key"))
        theirs = [projections(problem, problem.teacher, kind) for kind in ("query", "key")]
        if any(_width(ours) != _width(whole) for ours, whole in zip(queries, theirs[0], strict=True)):
            raise RunError("TernaryBERT's distillation needs every head in place: choose --recovery.training retrain.")
        with kept_outputs([*queries, *keys]) as seen:

            def loss(batch: dict[str, Tensor], taught: Taught, _: float) -> Tensor:
                target = taught()
                value = distillation_loss(supernet, batch, target, STATES_AND_LOGITS)
                student = [attention_scores(q, k, heads) for q, k in zip(seen[: len(queries)], seen[len(queries) :], strict=True)]
                full = torch.autocast(batch["input_ids"].device.type, enabled=False)  # as all that the teacher says
                with torch.no_grad(), full:  # a layer's input is the hidden state before it
                    pairs = zip(target.hidden[:-1], *theirs, strict=True)
                    teacher = [attention_scores(query(hidden), key(hidden), heads) for hidden, query, key in pairs]
                return value + attention_loss(student, teacher, batch["attention_mask"])

            train(problem, loss, everything(problem))


def _width(layer: nn.Module) -> Any:
    return layer.out_features
