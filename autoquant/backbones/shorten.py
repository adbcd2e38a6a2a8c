"""A transformers model with fewer layers: a student as DistilBERT begins, with some of its teacher's layers as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from autoquant.backbones.base import Backbone


def kept_layers(layers: int, keep: int) -> tuple[int, ...]:
    """Which `keep` of `layers` layers stay: evenly spread, the first and the last among them.

    >>> kept_layers(12, 6)  # as in DistilBERT's own code
    (0, 2, 4, 7, 9, 11)
    >>> kept_layers(6, 1)
    (0,)
    """
    return tuple(round(i * (layers - 1) / max(1, keep - 1)) for i in range(keep))


def keep_layers(model: nn.Module, backbone: Backbone, kept: Sequence[int]) -> nn.Module:
    """Drop all other encoder layers in place; returns `model`, whose config says so."""
    layers: Any = model.get_submodule(backbone.layers)
    model.set_submodule(backbone.layers, nn.ModuleList(layers[index] for index in kept))
    config: Any = model.config
    config.num_hidden_layers = len(kept)
    return model
