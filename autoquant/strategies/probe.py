"""What does a whole matrix at one width really cost? Measured, one at a time; scores that are wrong in size are set right.

A quadratic score holds for small errors. That of a whole matrix at 0 bits is not small: it costs 2 to 30 times what its scores
add up to, and the last layer's values several hundred times; 2 bits and more cost less. How a matrix's loss spreads over its
sub-groups stays the scores' business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.backbones import Backbone
from autoquant.backbones.remove import constant_input
from autoquant.core.cost import ChoiceTable
from autoquant.core.progress import Progress
from autoquant.core.structure import COLUMN_KIND
from autoquant.core.subgroup import Partition
from autoquant.quantizers import Quantizer
from autoquant.strategies.sensitivity import Sensitivity, quantisation_errors
from autoquant.training.batches import Encoded

WIDEST = 4  # bits; above, the loss drowns in rounding, and scores are scaled as those of the widest below
LEAST_LOSS = 1e-7  # nats a text: what float32 can tell apart


@torch.no_grad()
def measured_scores(
    scores: Sensitivity,
    teacher: nn.Module,
    backbone: Backbone,
    table: ChoiceTable,
    quantizer: Quantizer,
    scales: Mapping[str, Tensor],
    data: Encoded,
    progress: Progress,
) -> Sensitivity:
    """The scores, scaled so that those of a whole matrix at one width add up to its measured loss, in nats per text of `data`:
    the teacher's predictions against its own with that matrix quantised alone (their divergence; of regression, half the squared
    difference). Those of units add up to the loss of removing all of their kind in a layer.
    """
    choices, removals = scores.choices.copy(), scores.removals.copy()
    probe = Probe(teacher, backbone, data)
    partitions = [p for p in table.partitions if len(p.widths) > 1]
    with progress.stage("Measured losses", total=len(partitions)) as bar:
        for partition in sorted(partitions, key=lambda p: p.matrix.layer or 0):
            rows = table.slices()[partition.matrix.name]
            choices[rows] *= _ratios(choices[rows], partition, table, quantizer, scales, probe)
            bar.advance()
    for at, numbers in _units_of_layers(table).items():
        loss = probe.without(*at)
        removals[numbers] *= _ratio(loss, removals[numbers].sum())
    return Sensitivity(choices, removals)


def _ratios(
    scores: np.ndarray, partition: Partition, table: ChoiceTable, quantizer: Quantizer, scales: Mapping[str, Tensor], probe: Probe
) -> np.ndarray:
    """Measured loss by added scores for every width of the table, [K]."""
    name, ratios = partition.matrix.name, np.ones(len(table.widths))
    weight = probe.weight(name)
    group = torch.from_numpy(partition.group_of_row).to(weight.device)
    errors = quantisation_errors(weight, scales[name].to(weight.device), table.widths, quantizer, group)
    last = 1.0
    for column, width in enumerate(table.widths):
        if width in partition.widths and width <= WIDEST:
            last = _ratio(probe.quantised(partition, weight - errors[column]), scores[:, column].sum())
        ratios[column] = last
    return ratios


def _ratio(loss: float, score: float) -> float:
    return max(loss, LEAST_LOSS) / score if score > 0 else 1.0


def _units_of_layers(table: ChoiceTable) -> dict[tuple[int, str], list[int]]:
    """Numbers of the removable units of every layer and kind."""
    units = table.removable.structure.units if table.removable else ()
    found: dict[tuple[int, str], list[int]] = {}
    for number, unit in enumerate(units):
        found.setdefault((unit.layer, unit.kind), []).append(number)
    return found


class Probe:
    """A copy of the teacher whose single matrices are changed, and what its predictions lose by it.

    Layers before the changed one are not computed again: their states are kept.
    """

    def __init__(self, teacher: nn.Module, backbone: Backbone, data: Encoded) -> None:
        self.model: Any = copy.deepcopy(teacher).eval()
        self.backbone, self.device = backbone, next(teacher.parameters()).device
        self.layers: Any = self.model.get_submodule(backbone.layers)
        self.batches = [data.collate(indices, self.device) for indices in data.by_length(32)]
        self.texts = len(data)
        for batch in self.batches:
            batch.pop("labels")
        outputs = [self.model(**batch, output_hidden_states=True) for batch in self.batches]
        self.logits = [output.logits.float() for output in outputs]
        self.states = [output.hidden_states for output in outputs]

    def weight(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()

    def quantised(self, partition: Partition, weight: Tensor) -> float:
        """Mean loss per text with a matrix's weights replaced."""
        parameter = self.model.get_parameter(partition.matrix.name)
        before = parameter.data
        parameter.data = weight.to(before.dtype)
        try:
            return self._loss(self._first_layer(partition))
        finally:
            parameter.data = before

    def without(self, layer: int, kind: str) -> float:
        """Mean loss per text without a layer's units of a kind: the next matrix is given their constants."""
        constant = constant_input(self.model, self.backbone, layer, kind)
        path = f"{self.backbone.layer.format(layer)}.{self.backbone.layer_modules[COLUMN_KIND[kind]]}"
        hook: Callable[..., Any] = lambda _, inputs: (constant.expand_as(inputs[0]),)  # noqa: E731
        handle = self.model.get_submodule(path).register_forward_pre_hook(hook)
        try:
            return self._loss(layer)
        finally:
            handle.remove()

    def _first_layer(self, partition: Partition) -> int:
        """The layer from which on states differ once this matrix does; of embeddings -1."""
        if partition.matrix.layer is not None:
            return partition.matrix.layer
        return -1 if partition.matrix.kind.endswith("embedding") else len(self.layers)

    def _loss(self, first: int) -> float:
        total = 0.0
        for number, batch in enumerate(self.batches):
            with self._from(first, number):
                total += _divergence(self.logits[number], self.model(**batch).logits.float())
        return total / self.texts

    @contextmanager
    def _from(self, first: int, number: int) -> Iterator[None]:
        """The model begins with layer `first`, at the states that it was given in a batch."""
        if first < 0:
            yield
            return
        embeddings = self.model.base_model.embeddings
        handle = embeddings.register_forward_hook(lambda *_: self.states[number][first])
        self.model.set_submodule(self.backbone.layers, self.layers[first:])
        try:
            yield
        finally:
            self.model.set_submodule(self.backbone.layers, self.layers)
            handle.remove()


def _divergence(before: Tensor, after: Tensor) -> float:
    """KL of predictions, summed over a batch; of regression (one output, unit Gaussian) half the squared difference."""
    if before.shape[-1] == 1:
        return (before - after).square().sum().item() / 2
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return functional.kl_div(q, p, log_target=True, reduction="sum").item()
