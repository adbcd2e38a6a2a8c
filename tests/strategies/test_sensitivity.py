"""Fisher scores against a direct computation, one text, one row, one choice at a time."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForSequenceClassification

from autoquant.backbones.bert import BERT
from autoquant.core.cost import ByteModel, ChoiceTable, choice_table
from autoquant.core.progress import SilentProgress
from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import Midrise
from autoquant.strategies import sensitivity
from autoquant.strategies.sensitivity import Sensitivity, fisher_loss, fisher_scores, good_turing, quantisation_errors
from autoquant.training.batches import Encoded

WIDTHS = (0, 2, 8)
QUANTIZER = Midrise()
TEXTS = 40  # more than a batch


class Tiny(nn.Module):
    """Words plus positions (looked up once for the whole batch), a hidden layer on every token, a head on their masked sum."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(6, 4), nn.Embedding(5, 4)
        self.hidden, self.head = nn.Linear(4, 3), nn.Linear(3, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Any:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        x = torch.tanh(self.hidden(x)) * attention_mask[:, :, None]
        return SimpleNamespace(logits=self.head(x.sum(1)))


BUCKETS = np.array([1, 0, 1, 0, 1, 1], dtype=np.uint8)


def make_table() -> ChoiceTable:
    words = Partition(Matrix("words.weight", 6, 4, "word_embedding"), WIDTHS, (2, 4), BUCKETS)
    positions = Partition(Matrix("positions.weight", 5, 4, "position_embedding"), WIDTHS, (3, 2))
    hidden = Partition(Matrix("hidden.weight", 3, 4, "ffn_in"), WIDTHS, (2, 1))
    return choice_table(ByteModel((words, positions, hidden), {}, "row", "{}"))


def test_a_softened_prediction_by_hand() -> None:
    """Two classes, a margin of 8 at temperature 4: p = 1 / (1 + e^-2), and g^2 = p (1 - p) whatever the sign."""
    logits = torch.tensor([[8.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(fisher_loss(logits, temperature=4.0), logits)
    p = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(gradient.square().numpy(), [[p * (1 - p)] * 2], rtol=1e-5)


@pytest.fixture
def problem() -> tuple[Tiny, ChoiceTable, dict[str, Tensor], Encoded]:
    torch.manual_seed(0)
    model, table = Tiny(3), make_table()
    scales = {p.matrix.name: 0.1 + torch.rand(p.matrix.rows, 2) for p in table.partitions}
    draw = np.random.default_rng(0)
    ids = tuple(draw.integers(1, 5, length) for length in draw.integers(1, 6, TEXTS))
    return model, table, scales, Encoded(ids, ids, np.zeros(TEXTS, dtype=np.int64), pad_id=0)


def scores(
    problem: tuple[Tiny, ChoiceTable, dict[str, Tensor], Encoded], counts: np.ndarray, seed: int = 7, **how: Any
) -> np.ndarray:
    model, table, scales, data = problem
    return fisher_scores(model, BERT, table, QUANTIZER, scales, data, counts, seed, SilentProgress(), **how).choices


def drawn_gradients(model: Tiny, data: Encoded, seed: int, temperature: float = 1.0) -> list[dict[int, Tensor]]:
    """The gradient by its logits that each text is given, by batch."""
    torch.manual_seed(seed)
    found = []
    for order in data.by_length(32):
        logits = model(**data.collate(order)).logits.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(fisher_loss(logits, temperature), logits)
        found.append(dict(zip(order.tolist(), gradients, strict=True)))
    assert len(found) == 2
    return found


COUNTS = np.array([0, 5, 4, 2, 1, 0])


@pytest.mark.parametrize(("coherent", "temperature"), [(False, 1.0), (True, 1.0), (False, 4.0)])
def test_scores_of_a_linear_layer(problem: Any, coherent: bool, temperature: float) -> None:
    """Squared gradient times squared change, summed; coherent: their products summed over a text and a sub-group, squared."""
    model, table, scales, data = problem
    found = scores(problem, COUNTS, coherent=coherent, temperature=temperature)[table.slices()["hidden.weight"]]
    (first, second), expected = drawn_gradients(model, data, 7, temperature), np.zeros((2, 3))
    for text, by_logits in (first | second).items():
        x = model.words(torch.from_numpy(data.ids[text])) + model.positions.weight[: len(data.ids[text])]
        y = model.hidden(x).detach().requires_grad_()
        logits = model.head(torch.tanh(y).sum(0))
        (gradient,) = torch.autograd.grad(logits, y, by_logits)
        added = np.zeros((2, 3))
        for row in range(3):
            weight = model.hidden.weight[[row]].detach()
            for k, width in enumerate(WIDTHS):
                scale = scales["hidden.weight"][[row]]
                kept = QUANTIZER.fake_quantize(weight, scale[:, k - 1], width) if width else torch.zeros(1, 4)
                loss = gradient[:, row] * (x.detach() @ (weight - kept)[0])
                added[0 if row < 2 else 1, k] += (loss if coherent else loss.square()).sum().item()
        expected += added**2 if coherent else added
    np.testing.assert_allclose(found, expected / TEXTS, rtol=1e-4)
    assert found.dtype == np.float64


def token_gradients(model: Tiny, data: Encoded, seed: int) -> list[tuple[int, int, int, Tensor]]:
    """(batch, token, position, gradient [width]) of every real token."""
    found = []
    for number, gradients in enumerate(drawn_gradients(model, data, seed)):
        for text, by_logits in gradients.items():
            ids = data.ids[text]
            x = (model.words(torch.from_numpy(ids)) + model.positions.weight[: len(ids)]).detach().requires_grad_()
            logits = model.head(torch.tanh(model.hidden(x)).sum(0))
            (gradient,) = torch.autograd.grad(logits, x, by_logits)
            found += [(number, int(token), place, gradient[place]) for place, token in enumerate(ids)]
    return found


def test_scores_of_positions_are_those_of_the_rows_that_occur(problem: Any) -> None:
    """One lookup serves a batch, so gradients are added before they are squared."""
    model, table, scales, data = problem
    found = scores(problem, COUNTS)[table.slices()["positions.weight"]]
    errors = quantisation_errors(model.positions.weight.detach(), scales["positions.weight"], WIDTHS, QUANTIZER)
    added = torch.zeros(2, 5, 4)
    for batch, _, place, gradient in token_gradients(model, data, 7):
        added[batch, place] += gradient
    each = (added.square().sum(0) * errors.square()).sum(2).T.numpy()
    expected = np.stack([each[:3].sum(0), each[3:].sum(0)])
    np.testing.assert_allclose(found, expected / TEXTS, rtol=1e-4)


def test_scores_of_words_blend_with_the_average_token_and_count_what_is_expected(problem: Any) -> None:
    model, table, scales, data = problem
    found = scores(problem, COUNTS)[table.slices()["words.weight"]]
    errors = quantisation_errors(model.words.weight.detach(), scales["words.weight"], WIDTHS, QUANTIZER)
    tokens = token_gradients(model, data, 7)
    seen, total = np.zeros(6), torch.zeros(6, 4)
    for _, token, _, gradient in tokens:
        seen[token] += 1
        total[token] += gradient.square()
    average, blend = total.sum(0) / len(tokens), sensitivity.EMBEDDING_PRIOR_OCCURRENCES
    expected = np.zeros((2, 3))
    for token, probability in enumerate(good_turing(COUNTS)):
        each = (total[token] + blend * average) / (seen[token] + blend) * probability * len(tokens)
        for k in range(3):
            expected[BUCKETS[token], k] += (each * errors[k, token].square()).sum().item()
    np.testing.assert_allclose(found, expected / TEXTS, rtol=1e-4)


def test_scores_repeat_with_the_seed_and_leave_the_model_as_it_was(problem: Any) -> None:
    model = problem[0]
    first = scores(problem, COUNTS)
    assert np.array_equal(first, scores(problem, COUNTS))
    assert not np.array_equal(first, scores(problem, COUNTS, seed=8))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_scale_per_group_is_that_scale_in_each_of_its_rows(problem: Any) -> None:
    model, table, _, data = problem
    groups = {p.matrix.name: 0.1 + torch.rand(p.groups, 2) for p in table.partitions}
    rows = {p.matrix.name: groups[p.matrix.name][torch.from_numpy(p.group_of_row)] for p in table.partitions}
    assert np.array_equal(*(scores((model, table, scales, data), COUNTS) for scales in (groups, rows)))


def test_more_bits_are_never_worse_on_a_real_model(make_problem: Callable[..., Any]) -> None:
    problem = make_problem()
    table, scored = problem.table, problem.sensitivity.choices
    assert np.isfinite(scored).all()
    assert (scored >= 0).all()
    columns = [table.widths.index(width) for width in (1, 2, 4, 8)]
    totals = scored[:, columns].sum(axis=0)
    assert (totals[:-1] > 2 * totals[1:]).all()


def test_quantisation_errors_of_no_bits_are_the_weights() -> None:
    weight = torch.tensor([[0.3, -0.6]])
    errors = quantisation_errors(weight, torch.tensor([[0.5, 0.25]]), WIDTHS, QUANTIZER)
    torch.testing.assert_close(errors, torch.tensor([[[0.3, -0.6]], [[0.05, 0.15]], [[0.05, -0.1]]]))


def test_what_stays_after_recovery_by_hand() -> None:
    scores = Sensitivity(np.array([[8.0, 4.0, 2.0, 1.0]]), np.array([3.0]))
    lasting = scores.after_recovery((0, 1, 2, 8), lasting_0=2.0, lasting_1=1.5)
    assert lasting.choices.tolist() == [[16.0, 6.0, 2.0, 1.0]]
    assert lasting.removals.tolist() == [6.0]


def by_logits(logits: Tensor) -> Tensor:
    torch.manual_seed(0)
    logits = logits.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(fisher_loss(logits), logits)
    return gradients


def test_two_classes_have_their_information_in_every_single_gradient() -> None:
    """Of logits 0 and ln 3: p (1 - p) = 3/16, whatever the sign; of a confident teacher too."""
    gradients = by_logits(torch.tensor([[0.0, np.log(3.0)]] * 50, dtype=torch.float32))
    torch.testing.assert_close(gradients.square(), torch.full((50, 2), 3 / 16))
    torch.testing.assert_close(gradients.sum(1), torch.zeros(50))
    assert len(gradients[:, 0].sign().unique()) == 2
    confident = by_logits(torch.tensor([[0.0, 8.0], [0.0, 200.0]]))
    assert confident[0, 0].square().item() == pytest.approx(np.exp(-8) / (1 + np.exp(-8)) ** 2, rel=1e-4)
    assert confident[1].abs().max() < 1e-5


@given(npst.arrays(np.float32, (1, 4), elements=st.floats(-4, 4, width=32)))
def test_the_second_moment_is_the_fisher_information(logits: np.ndarray) -> None:
    """diag(p) - p p^T, over many draws."""
    gradients = by_logits(torch.from_numpy(logits).expand(20_000, -1))
    p = torch.softmax(torch.from_numpy(logits)[0], 0)
    torch.testing.assert_close(gradients.T @ gradients / 20_000, torch.diag(p) - torch.outer(p, p), atol=0.01, rtol=0.05)


def test_the_gradient_of_a_regression_is_a_sign() -> None:
    gradient = by_logits(torch.zeros(20_000, 1))
    assert gradient.unique().tolist() == [-1.0, 1.0]
    assert gradient.mean().item() == pytest.approx(0.0, abs=0.03)


def test_good_turing_by_hand() -> None:
    """Ten tokens, two of them seen once: the two unseen share a fifth, the others keep four fifths of their share."""
    np.testing.assert_allclose(good_turing(np.array([0, 5, 1, 3, 1, 0])), [0.1, 0.4, 0.08, 0.24, 0.08, 0.1])
    np.testing.assert_allclose(good_turing(np.array([3, 1])), [0.75, 0.25])


@given(npst.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 50)).filter(lambda counts: counts.sum() > 0))
def test_good_turing_is_a_distribution(counts: np.ndarray) -> None:
    probability = good_turing(counts)
    assert probability.sum() == pytest.approx(1.0)
    assert (probability >= 0).all()


@pytest.mark.parametrize("coherent", [False, True])
def test_scores_of_units_are_the_squared_change_of_the_next_matrix(make_structured: Callable[..., Any], coherent: bool) -> None:
    """One batch, written out: a head's inputs to the output matrix become its value bias, a block's the activated FFN bias."""
    problem = make_structured(0.2)
    model, units = problem.make_supernet().model, problem.table.removable.structure.units
    plain = BertForSequenceClassification(model.config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    data = problem.train().data.select(np.arange(8))
    scales = {p.matrix.name: torch.ones(p.matrix.rows, 5) for p in problem.table.partitions}
    counts = np.ones(200, dtype=np.int64)
    found = fisher_scores(plain, BERT, problem.table, QUANTIZER, scales, data, counts, 7, SilentProgress(), coherent).removals
    (order,) = data.by_length(32)
    batch, seen = data.collate(order), {}
    batch.pop("labels")
    layer = plain.bert.encoder.layer[1]
    for kind, module in (("head", layer.attention.output.dense), ("ffn", layer.output.dense)):
        module.register_forward_hook(lambda m, x, y, kind=kind: seen.update({kind: (m, x[0].detach(), y)}) or y.retain_grad())
    torch.manual_seed(7)
    fisher_loss(plain(**batch).logits).backward()
    constants = {"head": layer.attention.self.value.bias, "ffn": functional.gelu(layer.intermediate.dense.bias)}
    for unit, score in zip(units, found, strict=True):
        if unit.layer == 1:
            module, x, y = seen[unit.kind]
            change = (x - constants[unit.kind])[..., unit.start : unit.stop] @ module.weight[:, unit.start : unit.stop].T
            loss = y.grad * change
            expected = loss.sum(dim=(1, 2)).square().sum() if coherent else loss.square().sum()
            assert score * 8 == pytest.approx(expected.item(), rel=1e-4)
