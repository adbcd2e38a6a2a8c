"""What does a whole matrix at one width really cost? Measured, one at a time; scores that are wrong in size are set right.

A quadratic score holds for small errors. That of a whole matrix at 0 bits is not small: it costs many times what its scores add
up to, the last layer's values most of all. How a matrix's loss spreads over its sub-groups stays the scores' business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.backbones import Backbone
from autoquant.backbones.remove import constant_input
from autoquant.core.cost import ChoiceTable
from autoquant.core.structure import COLUMN_KIND
from autoquant.core.subgroup import Partition
from autoquant.quantizers import Quantizer
from autoquant.strategies.sensitivity import Sensitivity, quantisation_errors
from autoquant.training.batches import Encoded
from autoquant.training.distillation import divergence
from autoquant.training.loop import Context, run_steps

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
    context: Context,
    stage: str,
) -> Sensitivity:
    """The scores, scaled so that those of a whole matrix at one width add up to its measured loss, in nats per text of `data`:
    the teacher's predictions against its own with that matrix quantised alone (their divergence; of regression half the squared
    difference). Those of units add up to the loss of removing all of their kind in a layer. What has no choice stays as it is.
    """
    probe, slices, units = Probe(teacher, backbone, data), table.slices(), _units_of_layers(table)
    open_ = [p for p in table.partitions if (table.allowed[slices[p.matrix.name]].sum(axis=1) > 1).any()]
    open_.sort(key=probe.first_layer)  # states of one layer after the other are needed
    ratios = _Ratios()

    def step(number: int) -> dict[str, float]:
        if number < len(open_):
            partition = open_[number]
            rows = scores.choices[slices[partition.matrix.name]]
            ratios.found[partition.matrix.name] = _ratios(rows, partition, table, quantizer, scales, probe)
            return {"loss": probe.last}
        for at, numbers in units.items():
            ratios.found[_name(*at)] = [_ratio(probe.without(*at), scores.removals[numbers].sum())]
        return {"loss": probe.last}

    run_steps(context, stage, "Measured losses", len(open_) + bool(units), step, {"ratios": ratios})
    choices, removals = scores.choices.copy(), scores.removals.copy()
    for partition in open_:
        choices[slices[partition.matrix.name]] *= ratios.found[partition.matrix.name]
    for at, numbers in units.items():
        removals[numbers] *= ratios.found[_name(*at)]
    return Sensitivity(choices, removals)


class _Ratios:
    """Measured loss by added scores: of every width of the table by matrix, and of a layer's units."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, list[float]]:
        return dict(self.found)

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.found = dict(state)


def _ratios(
    scores: np.ndarray, partition: Partition, table: ChoiceTable, quantizer: Quantizer, scales: Mapping[str, Tensor], probe: Probe
) -> list[float]:
    """Of every width of the table, [K]; a width that is not measured has the ratio of the next narrower one that is."""
    name, ratios, last = partition.matrix.name, [], 1.0
    weight = probe.model.get_parameter(name).detach()
    group = torch.from_numpy(partition.group_of_row).to(weight.device)
    errors = quantisation_errors(weight, scales[name].to(weight.device), table.widths, quantizer, group)
    for column, width in enumerate(table.widths):
        if width in partition.widths and width <= WIDEST:
            last = _ratio(probe.quantised(partition, weight - errors[column]), scores[:, column].sum())
        ratios.append(last)
    return ratios


def _ratio(loss: float, score: float) -> float:
    return float(max(loss, LEAST_LOSS) / score) if score > 0 else 1.0


def _name(layer: int, kind: str) -> str:
    return f"{layer}.{kind}"


def _units_of_layers(table: ChoiceTable) -> dict[tuple[int, str], list[int]]:
    """Numbers of the removable units of every layer and kind."""
    units = table.removable.structure.units if table.removable else ()
    found: dict[tuple[int, str], list[int]] = {}
    for number, unit in enumerate(units):
        found.setdefault((unit.layer, unit.kind), []).append(number)
    return found


class Probe:
    """A copy of the teacher whose single matrices are changed, and what its predictions lose by it, in nats per text.

    Layers before the changed one are not computed again: their states are kept, of one layer at a time.
    """

    last = 0.0  # the loss that was measured last

    def __init__(self, teacher: nn.Module, backbone: Backbone, data: Encoded) -> None:
        self.model: Any = copy.deepcopy(teacher).eval()
        self.backbone, self.texts = backbone, len(data)
        self.layers: Any = self.model.get_submodule(backbone.layers)
        self.batches = [data.collate(indices, next(teacher.parameters()).device) for indices in data.by_length(32)]
        for batch in self.batches:
            batch.pop("labels")
        self.logits = [self.model(**batch).logits.float() for batch in self.batches]
        self.first, self.states = -1, list[Tensor]()

    def first_layer(self, partition: Partition) -> int:
        """The layer from which on states differ once this matrix does; of embeddings -1."""
        if partition.matrix.layer is not None:
            return partition.matrix.layer
        return -1 if partition.matrix.kind.endswith("embedding") else len(self.layers)

    def quantised(self, partition: Partition, weight: Tensor) -> float:
        """The loss with a matrix's weights replaced."""
        self._keep_states(self.first_layer(partition))
        parameter = self.model.get_parameter(partition.matrix.name)
        before = parameter.data
        parameter.data = weight.to(before.dtype)
        try:
            return self._loss()
        finally:
            parameter.data = before

    def without(self, layer: int, kind: str) -> float:
        """The loss without a layer's units of a kind: the next matrix is given their constants."""
        self._keep_states(layer)
        constant = constant_input(self.model, self.backbone, layer, kind)
        path = f"{self.backbone.layer.format(layer)}.{self.backbone.layer_modules[COLUMN_KIND[kind]]}"
        hook: Callable[..., Any] = lambda _, inputs: (constant.expand_as(inputs[0]),)  # noqa: E731
        handle = self.model.get_submodule(path).register_forward_pre_hook(hook)
        try:
            return self._loss()
        finally:
            handle.remove()

    def _keep_states(self, first: int) -> None:
        """What layer `first` is given, batch by batch."""
        if first != self.first and first >= 0:
            outputs = (self.model(**batch, output_hidden_states=True) for batch in self.batches)
            self.states = [output.hidden_states[first] for output in outputs]
        self.first = first

    def _loss(self) -> float:
        total = 0.0
        for number, batch in enumerate(self.batches):
            with self._from_first(number):
                total += divergence(self.logits[number], self.model(**batch).logits.float())
        self.last = total / self.texts
        return self.last

    @contextmanager
    def _from_first(self, number: int) -> Iterator[None]:
        """The model begins with layer `first`, at the states that it is given in a batch."""
        if self.first < 0:
            yield
            return
        embeddings = self.model.base_model.embeddings
        handle = embeddings.register_forward_hook(lambda *_: self.states[number])
        self.model.set_submodule(self.backbone.layers, self.layers[self.first :])
        try:
            yield
        finally:
            self.model.set_submodule(self.backbone.layers, self.layers)
            handle.remove()
