"""TernaryBERT's attention term by hand, against transformers' own scores, and where it cannot be had."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoquant.core.errors import RunError
from autoquant.refine import REFINERS, RefineProblem, ternarybert
from autoquant.refine.ternarybert import attention_loss, attention_scores, kept_outputs, projections
from autoquant.training.distillation import distillation_loss


def test_scores_by_hand() -> None:
    """One head of width 4: (1 * 2 + 0 + 0 + 3 * 4) / 2 for the first query and key."""
    query = torch.tensor([[[1.0, 0.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]]])
    key = torch.tensor([[[2.0, 0.0, 0.0, 4.0], [0.0, 0.0, 2.0, 0.0]]])
    assert attention_scores(query, key, heads=1).tolist() == [[[[7.0, 0.0], [3.0, 1.0]]]]
    two = attention_scores(query, key, heads=2)  # the first two and the last two columns, each over sqrt(2)
    torch.testing.assert_close(two[0, :, 0, 0], torch.tensor([2.0, 12.0]) / math.sqrt(2))


def test_loss_by_hand() -> None:
    """Two layers, one head, the second token padding: only the first pair counts."""
    student = [torch.tensor([[[[3.0, 9.0], [9.0, 9.0]]]]), torch.tensor([[[[1.0, 9.0], [9.0, 9.0]]]])]
    loss = attention_loss(student, [torch.zeros(1, 1, 2, 2)] * 2, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(9 + 1)
    two = attention_loss([torch.full((1, 2, 1, 1), 3.0)], [torch.zeros(1, 2, 1, 1)], torch.tensor([[1]]))
    assert two.item() == 9.0  # two heads, each 3 off


def test_scores_before_the_softmax_are_the_models_own(bench: Any) -> None:
    """Their softmax is what transformers calls attentions, both from what the layers gave and from cached hidden states."""
    teacher, supernet = bench.teacher, bench.supernet()
    with bench.open_context() as context:
        problem = bench.problem("ternarybert", supernet, context)
    queries, keys = (projections(problem, teacher, kind) for kind in ("query", "key"))
    batch = bench.data.collate(np.arange(0, 25, 5))  # of one length
    batch.pop("labels")
    teacher.config._attn_implementation = "eager"
    with kept_outputs([*queries, *keys]) as seen, torch.no_grad():
        out = teacher(**batch, output_attentions=True, output_hidden_states=True)
    assert len(queries) == len(out.attentions) == 2
    for layer, expected in enumerate(out.attentions):
        kept = attention_scores(seen[layer], seen[2 + layer], heads=4)
        hidden = out.hidden_states[layer]
        again = attention_scores(queries[layer](hidden), keys[layer](hidden), heads=4)
        torch.testing.assert_close(kept.softmax(-1), expected)
        torch.testing.assert_close(again.softmax(-1), expected)


def own_scores(problem: RefineProblem, model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A model's attention scores of every layer in a pass of its own."""
    queries, keys = (projections(problem, model, kind) for kind in ("query", "key"))
    with kept_outputs([*queries, *keys]) as seen, torch.no_grad():
        model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    return [attention_scores(query, key, heads=4) for query, key in zip(seen[:2], seen[2:], strict=True)]


def test_the_first_loss_is_the_sum_of_the_terms(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def keeping(problem: Any, loss: Any, groups: Any) -> None:
        given.append(loss)
        indices = np.arange(6)
        batch = problem.data.collate(indices)  # of different lengths
        target = problem.outputs().batch(indices)
        whole = loss(batch, lambda: target, 0.0)
        plain = distillation_loss(problem.supernet, batch, target, ternarybert.STATES_AND_LOGITS)
        scores = [own_scores(problem, model, batch) for model in (problem.supernet.model, problem.teacher)]
        expected = plain + attention_loss(*scores, batch["attention_mask"])
        assert whole.item() == pytest.approx(expected.item(), rel=1e-3)  # the target's hidden states are in float16
        whole.backward()
        query = problem.supernet.model.bert.encoder.layer[0].attention.self.query.mixed.weight
        assert query.grad.abs().sum() > 0

    monkeypatch.setattr(ternarybert, "train", keeping)
    with bench.open_context() as context:
        REFINERS["ternarybert"].refine(bench.problem("ternarybert", bench.supernet(), context))
    assert given


def test_removed_heads_have_no_partner(bench: Any) -> None:
    supernet = bench.supernet()
    supernet.model.bert.encoder.layer[0].attention.self.query.out_features = 24
    with (
        bench.open_context() as context,
        pytest.raises(RunError, match=r"every head in place: choose --recovery\.training retrain"),
    ):
        REFINERS["ternarybert"].refine(bench.problem("ternarybert", supernet, context))
