"""A tiny classifier cut by a space, with scales, ready to be packed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel

from autoquant.backbones import BACKBONES
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel
from autoquant.core.space import load_space
from autoquant.pack.checkpoint import metadata_text, write_packed
from autoquant.quantizers import QUANTIZERS


@dataclass(frozen=True)
class Material:
    """Everything `write_packed` takes but the path."""

    state: dict[str, Tensor]
    scales: dict[str, Tensor]
    allocation: BitAllocation
    model: ByteModel
    settings: dict[str, object]

    def write(self, path: Path) -> Path:
        return write_packed(path, self.state, self.scales, self.allocation, self.model, QUANTIZERS["midrise"], self.settings)


def random_allocation(model: ByteModel, seed: int) -> BitAllocation:
    draw = np.random.default_rng(seed)
    return BitAllocation({p.matrix.name: tuple(int(b) for b in draw.choice(p.widths, p.groups)) for p in model.partitions})


def material(
    classifier: PreTrainedModel, scale: str = "row", activation_bits: int = 32, positions: int | None = None, seed: int = 0
) -> Material:
    backbone = BACKBONES[classifier.config.model_type]
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    name = f"{backbone.embedding_modules['position_embedding']}.weight"
    state[name] = state[name][:positions]
    space = load_space("default")
    counts = np.random.default_rng(seed).integers(0, 50, classifier.config.vocab_size)
    matrices = backbone.matrices(classifier.config, {name: tuple(t.shape) for name, t in state.items()})
    partitions = space.partition(matrices, classifier.config.num_attention_heads, counts)
    settings: dict[str, object] = {"quantizer": "midrise", "scale": scale, "activation_bits": activation_bits}
    names = {m.name for m in matrices}
    rest = {name: tuple(t.shape) for name, t in state.items() if name not in names}
    model = ByteModel(partitions, rest, scale, metadata_text(settings))
    draw = torch.Generator().manual_seed(seed)
    sizes = {p.matrix.name: p.matrix.rows if scale == "row" else p.groups for p in partitions}
    scales = {name: (0.01 + 0.02 * torch.rand(size, generator=draw)).half().float() for name, size in sizes.items()}
    return Material(state, scales, random_allocation(model, seed), model, settings)


@pytest.fixture(scope="session")
def make_material(tiny_classifier: BertForSequenceClassification) -> Callable[..., Material]:
    """`make_material(scale, activation_bits, positions, seed, classifier)`: a classifier and a random allocation of it."""
    return lambda *arguments, classifier=tiny_classifier, **options: material(classifier, *arguments, **options)
