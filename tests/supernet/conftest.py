"""A tiny classifier with a calibrated supernet around it; everything runs uncompiled, but for the test of the compiler."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable, choice_table
from autoquant.core.settings import Recipe
from autoquant.core.space import load_space
from autoquant.supernet.build import Supernet
from autoquant.supernet.calibration import initial_scales, input_moments, input_ranges
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.load import load_glue
from autoquant.training.batches import Encoded


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS, "compile", False)


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, the table of its choices and their scales."""

    model: BertForSequenceClassification
    blueprint: Blueprint
    table: ChoiceTable
    scales: dict[str, Tensor]
    ranges: dict[str, tuple[float, float]]

    @property
    def data(self) -> Encoded:
        return self.blueprint.train

    def supernet(self, gates: bool = True) -> Supernet:
        per_row, bits = self.blueprint.space.scale == "row", self.blueprint.recipe.activation_bits
        backbone, quantizer = self.blueprint.source.backbone, self.blueprint.quantizer
        return Supernet(self.model, backbone, self.table, quantizer, self.scales, bits, per_row, gates, self.ranges)

    def allocation(self, seed: int = 0) -> BitAllocation:
        draw = np.random.default_rng(seed)
        parts = self.table.partitions
        return BitAllocation({p.matrix.name: tuple(int(b) for b in draw.choice(p.widths, p.groups)) for p in parts})

    def batch(self, count: int = 6) -> dict[str, Tensor]:
        batch = self.data.collate(np.arange(count))
        batch.pop("labels")
        return batch


@pytest.fixture(scope="session")
def lively_classifier(tiny_classifier: BertForSequenceClassification) -> BertForSequenceClassification:
    """Weights large enough for the logits to depend on the text, biases and norms that float16 does not hold."""
    model, draw = copy.deepcopy(tiny_classifier), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.fixture(scope="session")
def make_bench(
    lively_classifier: BertForSequenceClassification, tiny_classifier_dir: Path, tiny_data: Path
) -> Iterator[Callable[..., Bench]]:
    """`make_bench(scale, activation_bits, quantizer, activations, space)`."""
    data = load_glue("sst2", tiny_data)

    @lru_cache
    def make(
        scale: str = "row",
        activation_bits: Any = 32,
        quantizer: str = "midrise",
        activations: Any = "dynamic",
        space_name: str = "default",
    ) -> Bench:
        space = load_space(space_name)
        rules = {**space.rules, "word_embedding": dataclasses.replace(space.rules["word_embedding"], scale="row")}
        space = dataclasses.replace(space, scale=scale, rules=rules if quantizer == "lsq" else space.rules)
        recipe = Recipe(activation_bits=activation_bits, quantizer=quantizer, activations=activations)
        blueprint = Blueprint.draw(str(tiny_classifier_dir), data, recipe, 32, trim_positions=False, space=space)
        table = choice_table(blueprint.byte_model)
        few = blueprint.train.select(np.arange(48))
        moments = input_moments(lively_classifier, list(table.slices()), few)
        scales = initial_scales(lively_classifier, table, blueprint.quantizer, moments, scale == "row")
        ranges = input_ranges(lively_classifier, blueprint.ranged, few)
        return Bench(lively_classifier, blueprint, table, scales, ranges)

    with torch.random.fork_rng():
        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """Scales per row, activations as they are."""
    return make_bench()
