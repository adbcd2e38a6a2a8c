"""Measured losses against whole forward passes of a changed model."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from autoquant.backbones.bert import BERT
from autoquant.backbones.distilbert import DISTILBERT
from autoquant.backbones.roberta import ROBERTA
from autoquant.core.cost import ByteModel, ChoiceTable, choice_table
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.structure import GATED_KIND, find_units
from autoquant.core.subgroup import Partition
from autoquant.quantizers import Midrise
from autoquant.strategies.probe import measured_scores
from autoquant.strategies.sensitivity import Sensitivity
from autoquant.training.batches import Encoded
from autoquant.training.loop import Context

WIDTHS, QUANTIZER, TEXTS = (0, 1, 2, 8), Midrise(), 40
SMALL = {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS: dict[str, tuple[Any, Callable[[int], nn.Module]]] = {
    "bert": (BERT, lambda labels: BertForSequenceClassification(BertConfig(**SMALL, **SIZES, num_labels=labels))),
    "roberta": (ROBERTA, lambda labels: RobertaForSequenceClassification(RobertaConfig(**SMALL, **SIZES, num_labels=labels))),
    "distilbert": (
        DISTILBERT,
        lambda labels: DistilBertForSequenceClassification(
            DistilBertConfig(dim=16, hidden_dim=32, n_layers=3, n_heads=2, **SMALL, num_labels=labels)
        ),
    ),
}


class Case:
    """A small classifier with large weights, a table over its matrices, scores drawn at random."""

    def __init__(self, kind: str, labels: int = 2, units: bool = False) -> None:
        torch.manual_seed(0)
        self.backbone, make = MODELS[kind]
        self.model: Any = make(labels).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(0.4 * torch.randn_like(parameter))
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        matrices = self.backbone.matrices(self.model.config, shapes)
        found = find_units(matrices, 2, 4) if units else ()
        partitions = tuple(Partition(m, self.widths(m.kind), (m.rows - 1, 1)) for m in matrices)
        self.table: ChoiceTable = choice_table(ByteModel(partitions, {}, "row", "{}", found))
        above = sum(1 for width in self.table.widths if width)
        self.scales = {m.name: 0.1 + torch.rand(m.rows, above) for m in matrices}
        draw = np.random.default_rng(0)
        self.scores = Sensitivity(draw.random((len(self.table), len(self.table.widths))), draw.random(len(found)))
        ids = tuple(draw.integers(2, 50, length) for length in draw.integers(2, 9, TEXTS))
        self.data = Encoded(ids, None, np.zeros(TEXTS, dtype=np.int64), pad_id=0)

    @staticmethod
    def widths(kind: str) -> tuple[int, ...]:
        return {"classifier": (8,), "type_embedding": (2, 8)}.get(kind, WIDTHS)

    def measured(self) -> Sensitivity:
        with tempfile.TemporaryDirectory() as folder, RunDirectory.open(Path(folder) / "run", {}) as run:
            context = Context(run, SilentProgress(), torch.device("cpu"), 0)
            how = self.table, QUANTIZER, self.scales, self.data, context, "search"
            return measured_scores(self.scores, self.model, self.backbone, *how)

    @torch.no_grad()
    def loss(self, changed: nn.Module) -> float:
        """Text by text, without padding."""
        total = 0.0
        for ids in self.data.ids:
            batch = {"input_ids": torch.from_numpy(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            before, after = self.model(**batch).logits[0], changed(**batch).logits[0]
            if len(before) == 1:
                total += (before - after).square().item() / 2
            else:
                p = functional.softmax(before, 0)
                total += (p * (p.log() - functional.log_softmax(after, 0))).sum().item()
        return total / TEXTS


@pytest.mark.parametrize("kind", MODELS)
def test_scores_of_a_matrix_add_up_to_its_loss(kind: str) -> None:
    case = Case(kind)
    found = case.measured().choices
    for partition in case.table.partitions:
        name, rows = partition.matrix.name, case.table.slices()[partition.matrix.name]
        if len(partition.widths) == 1:
            np.testing.assert_array_equal(found[rows], case.scores.choices[rows])
            continue
        for column, width in enumerate(case.table.widths):
            if width not in partition.widths or width > 4:
                continue
            changed = copy.deepcopy(case.model)
            weight = changed.get_parameter(name).data
            scale = case.scales[name][:, column - 1]  # the first column of choices is 0 bits, which has no scale
            weight.copy_(QUANTIZER.fake_quantize(weight, scale, width) if width else torch.zeros_like(weight))
            assert found[rows, column].sum() == pytest.approx(case.loss(changed), rel=1e-3, abs=1e-6)


def test_a_matrix_loss_is_spread_as_its_scores_are_and_8_bits_follow_the_widest_measured() -> None:
    case = Case("bert")
    rows = case.table.slices()["bert.encoder.layer.1.intermediate.dense.weight"]
    before, after = case.scores.choices[rows], case.measured().choices[rows]
    ratios = after / before
    np.testing.assert_allclose(ratios[0], ratios[1])
    assert ratios[0, 3] == pytest.approx(ratios[0, 2])
    assert len(np.unique(ratios[0, :3].round(6))) == 3


def test_scores_of_units_add_up_to_the_loss_without_all_of_their_kind() -> None:
    case = Case("bert", units=True)
    found = case.measured().removals
    units = case.table.removable.structure.units  # type: ignore[union-attr]
    for layer in range(3):
        for kind in ("head", "ffn"):
            changed = copy.deepcopy(case.model)
            path = f"bert.encoder.layer.{layer}.{BERT.layer_modules[GATED_KIND[kind]]}.weight"
            changed.get_parameter(path).data.zero_()
            numbers = [i for i, unit in enumerate(units) if (unit.layer, unit.kind) == (layer, kind)]
            assert found[numbers].sum() == pytest.approx(case.loss(changed), rel=1e-3, abs=1e-6)
            before, after = case.scores.removals[numbers], found[numbers]
            np.testing.assert_allclose(after / after[0], before / before[0])


def test_the_loss_of_a_regression_is_half_the_squared_difference() -> None:
    case = Case("bert", labels=1)
    name = "bert.encoder.layer.2.output.dense.weight"
    changed = copy.deepcopy(case.model)
    changed.get_parameter(name).data.zero_()
    assert case.measured().choices[case.table.slices()[name], 0].sum() == pytest.approx(case.loss(changed), rel=1e-3)


def test_teacher_and_scores_stay_as_they_are() -> None:
    case = Case("bert", units=True)
    state = copy.deepcopy(case.model.state_dict())
    choices, removals = case.scores.choices.copy(), case.scores.removals.copy()
    case.measured()
    assert all(torch.equal(tensor, state[name]) for name, tensor in case.model.state_dict().items())
    np.testing.assert_array_equal(case.scores.choices, choices)
    np.testing.assert_array_equal(case.scores.removals, removals)


def test_a_score_of_nothing_stays_nothing() -> None:
    """A matrix that no text reaches has no gradient: its scores cannot be scaled."""
    case = Case("bert")
    rows = case.table.slices()["bert.encoder.layer.0.output.dense.weight"]
    case.scores.choices[rows] = 0.0
    assert (case.measured().choices[rows] == 0).all()
